"""One environment for `Vector`, in this process (`Local`) or in a process of its own (`Worker`).

Both are asked and answer later, so that several workers are busy at the same time:

    here                                           in the worker's process
    Worker(factory)         -- sys.path, factory -->   import, make the environment
    worker.facts            <-- facts, or an error --
    answer = worker.ask(..) -- method, arguments -->   step
    answer()                <-- outcome, or an error --
    worker.close()          -- end of file -->         close the environment, end

The pipes are the worker's standard input and output. Whatever ends this process also closes them, and that
ends the worker; one that hangs meanwhile sees that its parent is gone. It ignores Ctrl-C and SIGTERM, which
often reach a whole group of processes: what becomes of a run is decided here. What the environment prints
goes to the standard error.

Not `multiprocessing`, which would import the caller's main script once more in every worker: all that it
imports, and all that it does where it has no `if __name__ == "__main__"`.

A process that crashes, or is ended since it hangs, writes where it is to a file that both sides have open.
"""

import contextlib
import faulthandler
import functools
import math
import os
import pickle
import re
import selectors
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator
from typing import IO, Any, BinaryIO, NamedTuple

import gymnasium
import numpy as np

from .errors import EnvironmentFailed, TaskError, blaming, is_own
from .integers import as_integers
from .saving import can_save_state

# How long an environment may take to close before its process is killed.
GRACE_SECONDS = 5.0

_serving = False

Factory = Callable[[], gymnasium.Env[Any, Any]]


class WorkerDied(EnvironmentFailed):
    """The process of an environment has ended, or was ended since it took too long: it answers no more."""


class Facts(NamedTuple):
    """What does not change about an environment."""

    observation_space: gymnasium.spaces.Dict
    action_space: gymnasium.spaces.Dict
    repeat: int
    notes: list[str]
    can_save_state: bool


class Outcome(NamedTuple):
    """Of a step, or of a reset, whose reward is 0."""

    observation: dict[str, np.ndarray]
    reward: float
    terminated: bool
    truncated: bool


class Local:
    """An environment in this process.

    name: of the environment, for messages.

    Raises TaskError if it resets itself; EnvironmentFailed for whatever else it raises, here and in all methods, and
    if an observation or a reward has numbers that are not finite.
    """

    def __init__(self, factory: Factory, name: str = "the environment"):
        self._name = name
        with blaming(name, "when it was made"):
            self._env = _refuse_autoreset(factory())
        self.facts = Facts(
            self._env.observation_space,
            self._env.action_space,
            getattr(self._env, "repeat", 1),
            list(getattr(self._env, "notes", [])),
            can_save_state(self._env),
        )

    def ask(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Returns what gives the answer of a method below; it does the work, and is to be called once."""
        return functools.partial(getattr(self, method), *arguments)

    def reset(self, seed: int | None) -> Outcome:
        with blaming(self._name, "in reset"):
            observation, _ = self._env.reset(seed=seed)
        return self._sound(Outcome(observation, 0.0, False, False))

    def step(self, action: dict[str, Any]) -> Outcome:
        with blaming(self._name, "in step"):
            observation, reward, terminated, truncated, info = self._env.step(action)
        if (terminated or truncated) and ("final_obs" in info or "final_observation" in info):
            raise TaskError(_RESETS_ITSELF)
        return self._sound(Outcome(observation, float(reward), bool(terminated), bool(truncated)))

    def render(self) -> Any:
        """Whatever it draws, None if it never does. Raises TaskError if it cannot."""
        try:
            return self._env.render()
        except NotImplementedError:
            return None
        except Exception as error:  # whatever a drawing library may raise
            words = " ".join(str(error).split()) or type(error).__name__
            raise TaskError(f"The environment cannot draw itself: {words}.") from error

    def get_state(self) -> dict[str, Any]:
        """See `saving`."""
        with blaming(self._name, "when its state was saved"):
            return self._env.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        with blaming(self._name, "when its state was restored"):
            self._env.set_state(state)

    def _sound(self, outcome: Outcome) -> Outcome:
        """The outcome, with arrays that are what the observation space says."""
        if not isinstance(outcome.observation, dict):
            raise EnvironmentFailed(f"{self._name} returned an observation that is no dict, unlike its space.")
        observation = {}
        for key, space in self.facts.observation_space.spaces.items():
            if key not in outcome.observation:
                raise EnvironmentFailed(f"{self._name} returned an observation without '{key}', which its space has.")
            dtype = np.dtype(space.dtype)
            with blaming(self._name, f"when its observation '{key}' was read"):
                value = np.asarray(outcome.observation[key], dtype if dtype.kind == "f" else None)
            if dtype.kind != "f":
                value = as_integers(value, dtype, f"{self._name} returned an observation whose '{key}'")
            if value.shape != space.shape:
                raise EnvironmentFailed(
                    f"{self._name} returned the observation '{key}' with shape {value.shape}; its space has "
                    f"{space.shape}."
                )
            if value.dtype.kind == "f" and not np.isfinite(value).all():
                raise EnvironmentFailed(f"{self._name} returned NaN or infinite numbers in the observation '{key}'.")
            if isinstance(space, gymnasium.spaces.MultiDiscrete) and ((value < 0) | (value >= space.nvec)).any():
                raise EnvironmentFailed(
                    f"{self._name} returned values from {value.min()} to {value.max()} in the observation '{key}', "
                    f"beyond its space."
                )
            observation[key] = value
        if not np.isfinite(np.float32(outcome.reward)):  # as it is stored
            raise EnvironmentFailed(f"{self._name} returned the reward {outcome.reward}.")
        return outcome._replace(observation=observation)

    def hang_up(self) -> None:
        """Nothing to do here; see `Worker`."""

    def close(self) -> None:
        with contextlib.suppress(Exception):  # it is not needed any more
            self._env.close()


class Worker:
    """An environment in a process of its own, as `Local` otherwise.

    factory: is sent there, so it must be picklable and not defined in the main script; its modules are looked
    for where this process would find them now. name: of the environment, for messages. patience: seconds to wait for
    it to be made, and for each answer, where the system can wait for a limited time.

    The constructor does not wait. `facts` and the answers raise
        TaskError            as `Local` does
        EnvironmentFailed    as `Local` does, with the traceback from there as a note; it can still be asked
        WorkerDied           when the process has ended, with what it said of the place where it was as a note: close
                             this and make another one
    """

    def __init__(self, factory: Factory, name: str = "the environment", patience: float = math.inf):
        self.name, self._patience = name, patience
        try:
            pickled = pickle.dumps(factory)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TaskError(
                f"{name} cannot be sent to a process of its own ({error}): make it with a function of a module "
                "or functools.partial, and with arguments that can be pickled."
            ) from error
        self._process = _Process()
        self._end = weakref.finalize(self, self._process.end)  # at the interpreter's exit, too
        self._process.send(list(sys.path))
        self._process.send(("make", (pickled, name)))
        self._until = time.monotonic() + patience
        self._is_unread = True

    @functools.cached_property
    def facts(self) -> Facts:
        return self._answer(self._until)

    def ask(self, method: str, *arguments: Any) -> Callable[[], Any]:
        """Sends a question; returns what waits for the answer. Ask again only once that has been called.

        An answer that nobody waited for, since another environment's raised, is dropped by the next question.
        """
        assert self._end.alive, "asked after it was closed"
        _ = self.facts
        if self._is_unread:
            with contextlib.suppress(TaskError):
                self._answer(time.monotonic() + self._patience)
        self._process.send((method, arguments))
        self._is_unread = True
        return functools.partial(self._answer, time.monotonic() + self._patience)

    def reset(self, seed: int | None) -> Outcome:
        return self.ask("reset", seed)()

    def step(self, action: dict[str, Any]) -> Outcome:
        return self.ask("step", action)()

    def render(self) -> Any:
        return self.ask("render")()

    def get_state(self) -> dict[str, Any]:
        return self.ask("get_state")()

    def set_state(self, state: dict[str, Any]) -> None:
        self.ask("set_state", state)()

    def hang_up(self) -> None:
        """Begins to close, without waiting for it."""
        self._process.hang_up()

    def close(self) -> None:
        self._end()

    def _answer(self, until: float) -> Any:
        try:
            data = self._process.receive(until)
        except TimeoutError:
            self._process.kill()
            raise self._died(f"{self.name} did not answer within {self._patience:g} s") from None
        except (EOFError, OSError):
            raise self._died(f"The process of {self.name} {self._process.ending()}") from None
        self._is_unread = False
        with blaming(self.name, "when its answer was read here"):
            kind, value = pickle.loads(data)
        if kind == _DONE:
            return value
        if kind == _MISTAKE:
            raise TaskError(value)
        message, details = value
        error = EnvironmentFailed(message)
        error.add_note(f"In the process of {self.name}:\n\n{details.rstrip()}")
        raise error

    def _died(self, message: str) -> WorkerDied:
        words = self._process.last_words()
        frames = re.findall(r'File "(.+)", line (\d+) in', words)
        own = next((f" ({path}, line {line})" for path, line in frames if is_own(path)), "")
        error = WorkerDied(f"{message}{own}.")
        if words:
            error.add_note(f"Where the process of {self.name} was:\n\n{words}")
        return error


class _Process:
    """A Python process that runs `_serve`, and the pipes to it."""

    def __init__(self) -> None:
        self._last_words: IO[bytes] | None = None
        if sys.platform != "win32":
            with contextlib.suppress(OSError):  # a full disk, say: it can do without
                self._last_words = tempfile.TemporaryFile()  # noqa: SIM115, closed by `end`
        shared = [self._last_words.fileno()] if self._last_words else []
        # Read before anything that belongs to the project can be imported.
        code = (
            "import os, pickle, sys; questions = os.fdopen(os.dup(0), 'rb'); "
            f"sys.path[:] = pickle.load(questions); from {__name__} import _serve; "
            f"_serve(questions, {os.getpid()}, *{shared})"
        )
        with _signals_blocked():
            self._popen = subprocess.Popen(
                [sys.executable, "-c", code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                pass_fds=shared,
                # On Windows, which has no signals to block, this keeps Ctrl-C away.
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._questions, self._answers = self._popen.stdin, self._popen.stdout
        self._hung_up: float | None = None
        if sys.platform != "win32":
            self._selector = selectors.DefaultSelector()
            self._selector.register(self._answers, selectors.EVENT_READ)

    def send(self, question: Any) -> None:
        data = pickle.dumps(question)
        with contextlib.suppress(OSError):  # it has died, as the answer will tell
            view = memoryview(data)
            while view:
                view = view[self._questions.write(view) :]

    def receive(self, until: float) -> bytes:
        """An answer, pickled. Raises TimeoutError if it is not complete in time, EOFError if the process has ended."""
        (length,) = _LENGTH.unpack(self._read(_LENGTH.size, until))
        return self._read(length, until)

    def _read(self, count: int, until: float) -> bytes:
        data = bytearray()
        while len(data) < count:
            self._wait(until)
            part = os.read(self._answers.fileno(), count - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)

    def _wait(self, until: float) -> None:
        """Until there is something to read; on Windows reading itself waits, without end."""
        while sys.platform != "win32":
            seconds = until - time.monotonic()
            # A last second for one that was stopped with this process, as by Ctrl-Z, and had no time to answer.
            if self._selector.select(min(seconds, 1.0) if seconds > 0 else 1.0):
                return
            if self._popen.poll() is not None:  # and something that it has started holds its pipe
                raise EOFError
            if seconds <= 0:
                raise TimeoutError

    def kill(self) -> None:
        """Ends one that hangs, once it has said where."""
        if sys.platform != "win32":
            self._popen.send_signal(signal.SIGUSR1)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(1.0)
        self._popen.kill()

    def last_words(self) -> str:
        """Where a process that has ended was at last, if it could say so."""
        if self._last_words is None:
            return ""
        self._last_words.seek(0)
        return self._last_words.read().decode(errors="replace").strip()

    def ending(self) -> str:
        """How it ended, for a message, once it cannot be understood any more."""
        pid = self._popen.pid
        try:
            code = self._popen.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            return f"(pid {pid}) answered with what cannot be read and was stopped"
        if code >= 0:
            return f"(pid {pid}) ended by itself with exit code {code}"
        hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        return f"(pid {pid}) was killed by signal {signal.Signals(-code).name}{hint}"

    def hang_up(self) -> None:
        if self._hung_up is None:
            self._hung_up = time.monotonic()
        if sys.platform != "win32":
            self._selector.close()
        for pipe in (self._questions, self._answers):
            with contextlib.suppress(OSError):  # it has died with a question in the pipe
                pipe.close()

    def end(self) -> None:
        self.hang_up()
        assert self._hung_up is not None
        try:
            self._popen.wait(max(0.0, self._hung_up + GRACE_SECONDS - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        if self._last_words:
            self._last_words.close()


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    """A process started meanwhile is born with them blocked, and does not die before it can ignore them."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _TO_GROUPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_LENGTH = struct.Struct(">Q")  # before each answer

# What a terminal or a shell sends to all processes of a job at once.
_TO_GROUPS = {getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)}

# Kinds of answers.
_DONE, _MISTAKE, _FAILURE = "done", "mistake", "failure"


def is_worker() -> bool:
    """Whether this process was made to step an environment."""
    return _serving


def _serve(questions: BinaryIO, parent: int, last_words: int | None = None) -> None:
    """The life of a worker's process, until the other side, which is process `parent`, hangs up.

    last_words: the number of an open file.
    """
    global _serving
    _serving = True
    _ignore_signals()
    if sys.platform != "win32":
        threading.Thread(target=_end_with, args=[parent], daemon=True).start()
    if last_words is not None:
        faulthandler.enable(last_words)
        faulthandler.register(signal.SIGUSR1, last_words, chain=True)  # says where it is, and ends
    answers = _take_standard_streams()
    env: Local | None = None

    def make(pickled: bytes, name: str) -> Facts:
        nonlocal env
        env = Local(_load_factory(pickled), name)
        return env.facts

    try:
        while True:
            method, arguments = pickle.load(questions)
            reply = _reply(make if method == "make" else getattr(env, method), arguments)
            answers.write(_LENGTH.pack(len(reply)) + reply)
            answers.flush()
            if env is None:
                break
    except (EOFError, OSError, pickle.UnpicklingError):
        pass  # closed here or there, or the other side is gone
    finally:
        with contextlib.suppress(OSError):
            answers.close()
        if env is not None:
            env.close()


def _end_with(parent: int) -> None:
    """Ends this process if that one is gone, even if the environment hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)


def _reply(function: Callable[..., Any], arguments: tuple[Any, ...]) -> bytes:
    try:
        return pickle.dumps((_DONE, function(*arguments)))
    except Exception as error:
        if isinstance(error, TaskError) and not isinstance(error, EnvironmentFailed):
            return pickle.dumps((_MISTAKE, str(error)))
        return pickle.dumps((_FAILURE, (str(error), traceback.format_exc())))


def _load_factory(pickled: bytes) -> Factory:
    try:
        return pickle.loads(pickled)
    except (AttributeError, ImportError) as error:
        raise TaskError(
            f"The environment's factory is not found by a process of its own ({error}): define it in a module, "
            "not in the main script."
        ) from error


def _ignore_signals() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Not ignored, since programs that the environment starts would inherit that and could not be stopped.
    for name in _TO_GROUPS - {signal.SIGINT}:
        if signal.getsignal(name) != signal.SIG_IGN:  # as nohup has it
            signal.signal(name, lambda number, frame: None)
    if sys.platform != "win32":
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _TO_GROUPS)


def _take_standard_streams() -> BinaryIO:
    """Returns the pipe for answers; the environment is left with no input, and with stderr for its output."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return answers


_RESETS_ITSELF = (
    "The environment resets itself at the end of an episode, which would mix two episodes: take "
    "away the wrapper that does so (gymnasium.wrappers.Autoreset) and return a single environment."
)


def _refuse_autoreset(env: Any) -> Any:
    layer = env
    while isinstance(layer, gymnasium.Wrapper):
        if isinstance(layer, gymnasium.wrappers.Autoreset):
            env.close()
            raise TaskError(_RESETS_ITSELF)
        layer = layer.env
    if isinstance(layer, gymnasium.vector.VectorEnv):
        env.close()
        raise TaskError(_RESETS_ITSELF)
    return env
