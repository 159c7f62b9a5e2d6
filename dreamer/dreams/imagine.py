"""Real episodes beside what the model makes of them: scenes, and their pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import video
from ..agent import Agent
from ..errors import UserMistake
from ..rssm import State
from ..video import to_rgb
from .dream import Dream, Episode

FORMATS = (".gif", ".mp4", ".png")
WATCHED = 500  # steps of an episode from which a scene may be taken, besides its own
TRUTH, DREAM, SEEN = "#222222", "#D55E00", "#3CC85A"
COLUMNS = 4  # of curves, where one scene has the whole width
CURVES = 24  # of a scene, at most
SHEET = 10  # moments on a contact sheet
SIDE = 1.5  # inches of an image
DPI = 100
FPS = 10  # of films


@dataclass(frozen=True)
class Scene:
    """Some steps of an episode from a moment on, and the dream of the same steps."""

    observation: dict[str, np.ndarray]  # (L, ...) of each key, L at most C + H where the episode ends earlier
    reward: np.ndarray  # (L,)
    goes_on: np.ndarray  # (L,) 0 where the episode really ended
    dream: dict[str, np.ndarray]  # (C + H, ...) in the same units, images from 0 to 255
    dream_reward: np.ndarray  # (C + H,)
    dream_goes_on: np.ndarray  # (C + H,)
    begin: int  # the row of the episode that the scene begins with
    context: int  # C first steps, in which the model still sees: there the dream is what it read off its posterior
    is_free: bool  # whether the policy acted in the dream, else the actions are the real ones

    @property
    def steps(self) -> int:
        return len(self.dream_reward)


def scene(agent: Agent, episode: Episode, begin: int, context: int, horizon: int, free: bool, seed: int) -> Scene:
    """The model's dream of an episode from its row `begin`.

    Args:
        context: steps in which the model sees what there is, as in all before them, until it is on its own; at least 1.
        horizon: steps after these. Where the episode ends earlier and its actions are used, the last one is repeated.
        free: let the policy act in the dream instead.
    """
    dream = Dream(agent, seed)
    last = min(begin + context - 1, max(begin, len(episode) - 2))  # so that an action follows
    seen = State(episode.state.deter[begin : last + 1], episode.state.stoch[begin : last + 1])
    start = State(seen.deter[-1:], seen.stoch[-1:])
    if free:
        ahead = dream.live(start, horizon)
    else:
        rows = torch.arange(last, last + horizon, device=agent.device).clamp(max=max(last, len(episode) - 2))
        ahead = dream.follow(start, episode.action[rows].unsqueeze(1))
    moment = dream.read(State(torch.cat([seen.deter, ahead.deter[:, 0]]), torch.cat([seen.stoch, ahead.stoch[:, 0]])))
    rows_there = slice(begin, begin + len(moment.reward))
    return Scene(
        observation={key: value[rows_there] for key, value in episode.observation.items()},
        reward=episode.reward[rows_there],
        goes_on=episode.goes_on[rows_there],
        dream={key: value.float().cpu().numpy() for key, value in moment.observation.items()},
        dream_reward=moment.reward.cpu().numpy(),
        dream_goes_on=moment.goes_on.cpu().numpy(),
        begin=begin,
        context=last + 1 - begin,
        is_free=free,
    )


def scenes(
    agent: Agent, episodes: Sequence[Episode], context: int, horizon: int, free: bool = False, seed: int = 0
) -> list[Scene]:
    """One scene of each episode, from a random moment that leaves room for it, where there is one."""
    generator = np.random.default_rng(seed)
    result = []
    for episode in episodes:
        room = max(0, len(episode) - context - horizon)
        begin = int(generator.integers(room + 1))
        result.append(scene(agent, episode, begin, context, horizon, free, seed))
    return result


# Pictures ----------------------------------------------------------------------------------------------


def check_path(path: Path) -> None:
    """Raise UserMistake if `draw` could not write there."""
    if path.suffix.lower() not in FORMATS:
        raise UserMistake(f"{path} does not end in {', '.join(FORMATS)}; give the picture one of these endings")
    if path.suffix.lower() != ".png":
        video.check_path(path)
    video.check_place(path)


def draw(scenes: Sequence[Scene], title: str, path: Path) -> None:
    """Write scenes side by side: a film that walks through their steps or, as .png, all steps on one sheet."""
    if path.suffix.lower() == ".png":
        _Picture(scenes, title, is_sheet=True).save(path)
    else:
        picture = _Picture(scenes, title, is_sheet=False)
        video.write(path, list(picture.frames()), FPS)


class _Picture:
    """A column for each scene: images, then reward and continue, then a curve for each number of a vector."""

    def __init__(self, scenes: Sequence[Scene], title: str, is_sheet: bool):
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        self._pyplot, self._is_sheet = pyplot, is_sheet
        self._moving: list[tuple[Scene, Any, Any]] = []  # what shows one step: scene, artist, its images
        self._cursors: list[Any] = []
        self._steps = max(scene.steps for scene in scenes)
        style: dict[Any, Any] = {
            "font.size": 8,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 8,
        }
        with matplotlib.rc_context(style):
            layouts = [_Layout(scene, is_sheet, wide=len(scenes) == 1) for scene in scenes]
            size = sum(layout.width for layout in layouts), max(layout.height for layout in layouts) + 0.7
            self.figure = pyplot.figure(figsize=size, dpi=DPI, layout="constrained")
            self._canvas: Any = self.figure.canvas
            columns = self.figure.subfigures(1, len(scenes), squeeze=False, width_ratios=[e.width for e in layouts])[0]
            for column, layout in zip(columns, layouts):
                self._draw_scene(column, layout)
            if left_out := max(layout.left_out for layout in layouts):
                title += f"\nwithout {left_out} numbers, which vary least"
            self.figure.suptitle(title, fontsize=10)
            names = ["truth", "dream, the policy acting" if scenes[0].is_free else "dream"]
            lines = [pyplot.Line2D([], [], color=color) for color in (TRUTH, DREAM)]
            self.figure.legend(lines, names, loc="upper right", ncol=2, fontsize=7, frameon=False)

    def save(self, path: Path) -> None:
        self.figure.savefig(path)
        self._pyplot.close(self.figure)

    def frames(self) -> Iterator[np.ndarray]:
        """Pictures (H, W, 3) uint8, one for each step."""
        for step in range(self._steps):
            for scene, artist, images in self._moving:
                if step < scene.steps:
                    artist.set_data(images[step])
                artist.axes.spines[:].set_visible(step < scene.context)
            for cursor in self._cursors:
                cursor.set_xdata([step, step])
            self._canvas.draw()
            self.figure.set_layout_engine("none")  # it stays, and takes longer than all the rest
            yield np.asarray(self._canvas.buffer_rgba())[..., :3].copy()
        self._pyplot.close(self.figure)

    def _draw_scene(self, column: Any, layout: "_Layout") -> None:
        scene = layout.scene
        places = column.subfigures(len(layout.heights), 1, squeeze=False, height_ratios=layout.heights)
        parts = iter(places[:, 0])
        for rows in layout.images.values():
            if self._is_sheet:
                self._draw_sheet(next(parts), rows, scene)
            else:
                self._draw_images(next(parts), rows, scene)
        outcome = next(parts).subplots(1, 2, squeeze=False)[0]
        self._draw_curve(outcome[0], "reward", scene, scene.reward, scene.dream_reward)
        self._draw_curve(outcome[1], "goes on", scene, scene.goes_on, scene.dream_goes_on)
        outcome[1].set_ylim(-0.08, 1.08)
        low, high = outcome[0].get_ylim()
        least = 0.1 * max(abs(low), abs(high))  # or what hardly varies would look as if it did
        if high - low < least:
            outcome[0].set_ylim((low + high - least) / 2, (low + high + least) / 2)
        if not layout.curves:
            return
        panels = next(parts).subplots(-(-len(layout.curves) // layout.columns), layout.columns, squeeze=False).flat
        for (name, truth, dream), panel in zip(layout.curves, panels):
            self._draw_curve(panel, name, scene, truth, dream)
        for panel in panels:
            panel.set_visible(False)

    def _draw_images(self, place: Any, rows: dict[str, np.ndarray], scene: Scene) -> None:
        panels = place.subplots(1, len(rows), squeeze=False)[0]
        for panel, (name, images) in zip(panels, rows.items()):
            self._moving.append((scene, panel.imshow(images[0], interpolation="nearest"), images))
            panel.set_title(name)
            panel.set(xticks=[], yticks=[])
            panel.spines[:].set(color=SEEN, linewidth=2)

    def _draw_sheet(self, place: Any, rows: dict[str, np.ndarray], scene: Scene) -> None:
        steps = _moments(scene.steps)
        panels = place.subplots(len(rows), len(steps), squeeze=False)
        for line, (name, images) in zip(panels, rows.items()):
            for panel, step in zip(line, steps):
                panel.imshow(images[step], interpolation="nearest")
                panel.set(xticks=[], yticks=[])
                panel.spines[:].set_visible(step < scene.context)
                panel.spines[:].set(color=SEEN, linewidth=2)
            line[0].set_ylabel(name)
        for panel, step in zip(panels[0], steps):
            panel.set_title(f"step {step}")

    def _draw_curve(self, panel: Any, name: str, scene: Scene, truth: np.ndarray, dream: np.ndarray) -> None:
        panel.axvspan(-0.5, scene.context - 0.5, color=SEEN, alpha=0.18, lw=0)
        panel.plot(np.arange(len(truth)), truth, color=TRUTH, lw=1.2)
        panel.plot(np.arange(len(dream)), dream, color=DREAM, lw=1.2)
        panel.set_title(name)
        panel.set_xlim(-0.5, scene.steps - 0.5)
        panel.margins(y=0.12)
        panel.grid(alpha=0.2, lw=0.5)
        if not self._is_sheet:
            self._cursors.append(panel.axvline(0, color="#888888", lw=0.8))


class _Layout:
    """What a scene has to show, and the inches that takes."""

    def __init__(self, scene: Scene, is_sheet: bool, wide: bool):
        self.scene = scene
        self.images = {key: _image_rows(scene, key) for key, value in scene.observation.items() if value.ndim == 4}
        curves = [
            (f"{key} {i}" if value.shape[1] > 1 else key, value[:, i], scene.dream[key][:, i])
            for key, value in scene.observation.items()
            if value.ndim == 2
            for i in range(value.shape[1])
        ]
        varying = sorted(range(len(curves)), key=lambda i: -np.ptp(curves[i][1]))
        self.curves = [curves[i] for i in sorted(varying[:CURVES])]
        self.left_out = len(curves) - len(self.curves)
        self.columns = min(COLUMNS, len(self.curves)) if wide else 1
        rows = len(next(iter(self.images.values()), ()))
        self.width = SIDE * (len(_moments(scene.steps)) if is_sheet else 3) * 1.2 if self.images else 0.0
        self.width = max(self.width, 2.2 * max(2, self.columns))
        self.heights = [SIDE * (rows * 0.95 if is_sheet else 1) * 1.25 for _ in self.images] + [1.4]
        if self.curves:
            self.heights.append(1.25 * -(-len(self.curves) // self.columns))
        self.height = sum(self.heights)


def _moments(steps: int) -> list[int]:
    return sorted({round(step) for step in np.linspace(0, steps - 1, SHEET)})


def _image_rows(scene: Scene, key: str) -> dict[str, np.ndarray]:
    """Pictures (C + H, H, W, 3) uint8 by name."""
    dream = scene.dream[key]
    truth = np.zeros_like(dream)
    truth[: len(scene.observation[key])] = scene.observation[key]
    rows = {"truth": truth, "dream": dream}
    if not scene.is_free:  # else they show different things
        difference = 127.5 + (dream - truth) / 2
        difference[len(scene.observation[key]) :] = 127.5
        rows["difference"] = difference
    return {name: to_rgb(images.astype(np.uint8)) for name, images in rows.items()}
