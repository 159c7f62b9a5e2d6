import signal
import sys
from pathlib import Path

import pytest
import torch

# The project's `envs`, wherever the tests are started: beside this file lies a folder of that name too.
sys.path.insert(0, str(Path(__file__).parent.parent))

# More of them cost tiny models far more than they give.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def signals():
    """Training takes them over."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def gl():
    """For what needs OpenGL: a machine that has it must be able to use it."""
    from envs import dmc

    if not any(map(dmc._renders, dmc.RENDERERS)):
        pytest.skip(f"no OpenGL here: {dmc.RENDERING_HELP}")
