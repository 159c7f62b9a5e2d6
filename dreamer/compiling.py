"""Compile an agent before its first step, and capture it on a GPU; or say what keeps it from that and go on without."""

import re
from pathlib import Path

import torch

from .agent import Agent
from .machine import is_out_of_memory, why_not_compile
from .replay import Batch


def prepare(agent: Agent, batch: Batch, environments: int) -> list[str]:
    """Compile, run everything once, and on a GPU capture.

    Args:
        batch: of the shapes that will come.
        environments: how many act at once.

    Returns:
        What did not work, a sentence each without its full stop; the agent works nevertheless.

    Raises:
        Exception: there is not enough memory; see `is_out_of_memory`.
    """
    return [
        problem for problem in (_compile(agent, batch, environments), _capture(agent, batch, environments)) if problem
    ]


def _compile(agent: Agent, batch: Batch, environments: int) -> str | None:
    problem = why_not_compile(agent.device)
    if problem is None:
        for _ in range(2):
            try:
                agent.compile()
                agent.warm_up(batch, environments)
                return None
            except Exception as error:  # whatever a compiler may raise
                if is_out_of_memory(error):
                    raise
                agent.uncompile()
                problem = _in_a_line(error)
                if not _removed_broken_library(error):
                    break
    return f"Not compiling: {problem}"


def _capture(agent: Agent, batch: Batch, environments: int) -> str | None:
    """Whether compiled or not."""
    if agent.device.type != "cuda":
        return None
    try:
        agent.capture(batch, environments)
    except Exception as error:  # whatever a driver may raise
        if is_out_of_memory(error):
            raise
        return f"Not capturing the update as one CUDA graph: {_in_a_line(error)}"
    return None


def _in_a_line(error: Exception) -> str:
    """Its first line, and the first in which a compiler that it has called names an error."""
    lines = (str(error).strip() or type(error).__name__).splitlines()
    cause = next((line.strip() for line in lines[1:] if "error: " in line), "")
    return f"{lines[0].rstrip('.')} ({cause})" if cause else lines[0].rstrip(".")


def _removed_broken_library(error: Exception) -> bool:
    """Whether compiling failed on what an interrupted compilation had left half written, which is then removed."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    found = re.search(r"(/\S+\.so): file too short", str(error))
    if found is None or not Path(found[1]).is_relative_to(cache_dir()):
        return False
    Path(found[1]).unlink(missing_ok=True)
    torch.compiler.reset()
    return True
