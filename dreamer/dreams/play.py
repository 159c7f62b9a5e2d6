"""A dream that a person plays in the browser, and the real environment beside it from the same start."""

import base64
import contextlib
import importlib.resources
import io
import json
import queue
import sys
import threading
from collections.abc import Callable, Collection
from concurrent.futures import Future
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import gymnasium
import numpy as np
import torch
from PIL import Image

from ..agent import Agent
from ..errors import UserMistake
from ..video import to_rgb
from .controls import Controls
from .dream import Dream

LONGEST = 10_000  # steps of a dream: all of them are kept, to go back to


class Stage:
    """A dream and the real environment, which get the same actions.

    Args:
        agent: dreams, and plays if it is let.
        environment: one of its task, as `envs.make` returns it.
        seed: of the episodes and of the dream.
    """

    def __init__(self, agent: Agent, environment: gymnasium.Env[Any, Any], seed: int):
        self.agent, self._environment, self._seed = agent, environment, seed
        names: list[str] = getattr(environment.unwrapped, "get_action_meanings", list)()
        self.controls = Controls(agent.action_spec, names)
        self._dream = Dream(agent, seed)
        self._draws = environment.render_mode == "rgb_array"
        self.reset(next_episode=False)

    @property
    def steps(self) -> int:
        return len(self._actions)

    def reset(self, next_episode: bool = True) -> None:
        """Begin anew; what is shown first, in the dream and beside it, is what the real environment began with."""
        seed = self._seed + next_episode
        real = self._begin(seed)  # first, since it is somebody else's code and may raise
        observation = {key: torch.from_numpy(np.array(value)[None]) for key, value in self._first.items()}
        flag = torch.zeros(1, dtype=torch.bool)
        self._states = [self.agent.act(observation, ~flag, flag, self.agent.start(1)).state]
        self._lasts = [1.0]  # the chance that the dream goes on until each step
        self._actions: list[np.ndarray] = []  # flat, of each step of the dream
        self._real, self._is_at = [real], 0  # and how many of the actions the environment has taken
        self._seed = seed
        self.controls.rest()

    def step(self, keys: Collection[str] = (), agent: bool = False) -> None:
        """One step of the dream by the keys that are pressed, or by the agent's own choice in its dream.

        Raises:
            UserMistake: it has gone on for `LONGEST` steps.
        """
        if self.steps == LONGEST:
            raise UserMistake(f"the dream has gone on for {LONGEST:,} steps; begin another episode")
        state = self._states[-1]
        if agent:
            action = self._dream.act(state)
        else:
            action = torch.from_numpy(self.controls.action(keys)).unsqueeze(0).to(self.agent.device)
        self._states.append(self._dream.step(state, action))
        self._lasts.append(self._lasts[-1] * float(self._dream.outcome(self._states[-1])[1]))
        self._actions.append(action[0].cpu().numpy())

    def rewind(self, steps: int) -> None:
        """Back by so many steps, or to the beginning."""
        left = max(0, self.steps - max(0, steps))
        del self._actions[left:], self._states[left + 1 :], self._lasts[left + 1 :], self._real[left + 1 :]

    def show(self, real: bool = False) -> dict[str, Any]:
        """What the dream looks like now and, if asked for, the real environment after the same actions."""
        moment = self._dream.read(self._states[-1])
        shown = {
            "step": self.steps,
            "dream": _described({key: value[0].cpu().numpy() for key, value in moment.observation.items()}),
            "reward": float(moment.reward),
            "value": float(moment.value),
            "goes_on": float(moment.goes_on),
            "lasts": self._lasts[-1],
        }
        return shown | {"real": self._beside()} if real else shown

    def _beside(self) -> dict[str, Any]:
        """The real environment at this step, once it has caught up."""
        if self._is_at >= len(self._real):  # it has gone further: play it again from its beginning
            self._real, self._is_at = [self._begin(self._seed)], 0
        while self._is_at < self.steps and not self._real[-1]["over"]:
            self._real.append(self._advance(self._actions[self._is_at]))
            self._is_at += 1
        return self._real[min(self.steps, len(self._real) - 1)]

    def _begin(self, seed: int) -> dict[str, Any]:
        self._first, _ = self._environment.reset(seed=seed)
        return {"seen": _described(self._first), "reward": 0.0, "over": False, "picture": self._picture()}

    def _advance(self, action: np.ndarray) -> dict[str, Any]:
        taken = {key: value[0] for key, value in self.agent.action_spec.to_environment(action[None]).items()}
        observation, reward, terminated, truncated, _ = self._environment.step(taken)
        return {
            "seen": _described(observation),
            "reward": float(reward),
            "over": bool(terminated or truncated),
            "picture": self._picture(),
        }

    def _picture(self) -> str | None:
        """Drawn by environments whose observations are no images."""
        if self.agent.observation_spec.images or not self._draws:
            return None
        try:
            picture = self._environment.render()
            return _png(picture) if isinstance(picture, np.ndarray) else None
        except Exception:  # whatever a drawing library may raise; the numbers are shown without it
            self._draws = False
            return None


def _described(observation: dict[str, np.ndarray]) -> dict[str, Any]:
    """For the page: images as PNG, all else as numbers."""
    return {
        key: _png(to_rgb(np.asarray(value).astype(np.uint8))) if np.ndim(value) == 3 else np.ravel(value).tolist()
        for key, value in observation.items()
    }


def _png(picture: np.ndarray) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


# The page ----------------------------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    """Serves the page, to this machine alone.

    Browsers hold several connections open, so each has a thread; but the stage is asked by the thread of `run` alone,
    since a drawing library's context belongs to a thread.

    Args:
        stage: what is played.
        title: of the page.
        port: 0 takes any that is free.

    Raises:
        UserMistake: the port is taken.
    """

    daemon_threads = True

    def __init__(self, stage: Stage, title: str, port: int):
        self.stage, self.title = stage, title
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]]] = queue.SimpleQueue()
        self._ends = threading.Event()
        try:
            super().__init__(("127.0.0.1", port), _Handler)
        except OSError as error:
            raise UserMistake(f"port {port} cannot be used ({error.strerror}); give another --port") from error
        self.port = int(self.server_address[1])

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def run(self) -> None:
        """Serve until `end`, or Ctrl-C."""
        threading.Thread(target=self.serve_forever, daemon=True).start()
        try:
            while not self._ends.is_set():
                with contextlib.suppress(queue.Empty):
                    job, answer = self._jobs.get(timeout=0.1)
                    try:
                        answer.set_result(job())
                    except Exception as error:  # whatever the environment raises
                        answer.set_exception(error)
        finally:
            self.shutdown()
            self.server_close()

    def end(self) -> None:
        self._ends.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing where the page went away while it was answered; whatever else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def ask(self, job: Callable[[], Any]) -> Any:
        """The result of a job for the thread of `run`."""
        answer: Future[Any] = Future()
        self._jobs.put((job, answer))
        return answer.result()


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        if not self._is_for_us():
            return self._answer(403, "text/plain", b"Not allowed.")
        if self.path == "/":
            text = importlib.resources.files("dreamer").joinpath("data/play.html").read_text()
            self._answer(200, "text/html; charset=utf-8", text.encode())
        elif self.path == "/about":
            stage = self.server.stage
            about = {"title": self.server.title, "keys": stage.controls.legend}
            self._answer(200, "application/json", json.dumps(about).encode())
        else:
            self._answer(404, "text/plain", b"There is nothing here.")

    def do_POST(self) -> None:
        # JSON alone: a page of another site may not send that unasked.
        if not self._is_for_us() or self.headers.get_content_type() != "application/json":
            return self._answer(403, "text/plain", b"Not allowed.")
        try:
            given = json.loads(self.rfile.read(max(0, min(int(self.headers.get("Content-Length", 0)), 10_000))))
            keys, agent = [str(key) for key in given.get("keys", [])], bool(given.get("agent"))
            steps, real = int(given.get("steps", 1)), bool(given.get("real"))
        except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
            return self._answer(400, "text/plain", b"Not what the page sends.")
        stage = self.server.stage
        jobs: dict[str, Callable[[], None]] = {
            "/show": lambda: None,
            "/step": lambda: stage.step(keys, agent),
            "/reset": stage.reset,
            "/rewind": lambda: stage.rewind(steps),
        }
        if self.path not in jobs:
            return self._answer(404, "text/plain", b"There is nothing here.")

        def work() -> dict[str, Any]:
            jobs[self.path]()
            return stage.show(real)

        try:
            data = json.dumps(self.server.ask(work), allow_nan=False)
        except UserMistake as error:
            return self._answer(500, "text/plain; charset=utf-8", str(error).encode())
        except Exception as error:  # the environment's own code, most likely
            words = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return self._answer(500, "text/plain; charset=utf-8", words.encode())
        self._answer(200, "application/json", data.encode())

    def _is_for_us(self) -> bool:
        """Whether it was asked for by this machine's name: other names may lead here, too, for a page of theirs."""
        return self.headers.get("Host") in {f"{name}:{self.server.port}" for name in ("127.0.0.1", "localhost")}

    def _answer(self, status: int, kind: str, data: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Nothing: fifteen lines a second."""
