"""Environments with one interface: `make("atari/pong")` is a Gymnasium environment with spaces as in `adapt`.

Nothing here knows of the agent. The engines of a suite are imported when one of its tasks is made.
"""

from .adapt import Adapt
from .check import check
from .errors import EnvironmentFailed, TaskError
from .registry import Suite, check_name, make, steps_in_processes, suites, wants_processes
from .saving import can_save_state
from .vector import Rows, Vector
from .workers import Worker, WorkerDied, is_worker

# For an importer to see that it got this package, since others go by the same name.
PROJECT = "dreamer"

__all__ = [
    "PROJECT",
    "Adapt",
    "EnvironmentFailed",
    "Rows",
    "Suite",
    "TaskError",
    "Vector",
    "Worker",
    "WorkerDied",
    "can_save_state",
    "check",
    "check_name",
    "is_worker",
    "make",
    "steps_in_processes",
    "suites",
    "wants_processes",
]
