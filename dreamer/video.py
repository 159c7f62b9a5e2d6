"""Pictures that move: open-loop predictions beside the truth, as GIFs that play in TensorBoard and elsewhere."""

import io
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .agent import Agent
from .errors import UserMistake
from .replay import Batch
from .rssm import State, stack

CONTEXT = 5  # steps that the model sees before it is on its own
MARK = np.array([60, 200, 90], np.uint8)  # the bar over frames that the model has seen
BAR = 3  # its height


def open_loop(agent: Agent, batch: Batch, context: int = CONTEXT) -> dict[str, Tensor]:
    """What the model expects to see, from a few steps of context and the real actions.

    Args:
        agent: only its world model is asked; no random number of its own is drawn.
        batch: B sequences of T steps.
        context: the first steps, where the model sees the observation; after them it predicts.

    Returns:
        Predictions (B, T, ...) of every observation key, as of `Decoder.predict`.
    """
    rssm, decoder = agent.world_model.rssm, agent.world_model.decoder
    batch = batch.to(agent.device)
    size, length = batch.reward.shape
    context = min(context, length)
    generator = torch.Generator(agent.device).manual_seed(0)
    uniform = torch.rand(size, length, rssm.config.stoch, generator=generator, device=agent.device)
    # As in training, gradients and all: what was compiled for that serves here too.
    posterior = agent.world_model.observe(batch, uniform)[0].detach()
    with torch.no_grad():
        weights = rssm.recurrence()
        states = [State(posterior.deter[:, t], posterior.stoch[:, t]) for t in range(context)]
        for t in range(context, length):
            states.append(rssm.imagine_step(weights, states[-1], batch.prev_action[:, t], uniform[:, t]))
        return decoder.predict(decoder(rssm.feature(stack(states, 1))))


def comparison(truth: Tensor, prediction: Tensor, context: int = CONTEXT) -> np.ndarray:
    """Frames (T, height, width, 3) uint8: rows of truth, model and error, a column for each sequence.

    Args:
        truth: (B, T, H, W, C) uint8.
        prediction: (B, T, H, W, C) in [0, 1].
        context: so many frames get a green bar, since the model has seen them.
    """
    real = truth.float().cpu() / 255
    dream = prediction.float().cpu()
    rows = torch.cat([real, dream, (dream - real + 1) / 2], 2)  # (B, T, 3 H, W, C)
    frames = (rows.clamp(0, 1) * 255).to(torch.uint8).numpy()
    frames = np.concatenate(list(frames), 2)  # (T, 3 H, B W, C)
    frames = to_rgb(frames)
    bars = np.zeros((len(frames), BAR, *frames.shape[2:]), np.uint8)
    bars[:context] = MARK
    return np.concatenate([bars, frames], 1)


def to_rgb(images: np.ndarray) -> np.ndarray:
    """(..., C) uint8 -> (..., 3): one or two channels as grey, more as the first three."""
    return images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, -1)


def gif(frames: np.ndarray, fps: int = 10) -> bytes:
    """Frames (T, H, W, 3) uint8 as an animated GIF."""
    pictures = [Image.fromarray(frame) for frame in frames]
    buffer = io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=pictures[1:], duration=1000 // fps, loop=0, optimize=False
    )
    return buffer.getvalue()


def check_path(path: Path) -> None:
    """Raise UserMistake if `write` could not write there."""
    if path.suffix.lower() not in (".gif", ".mp4"):
        raise UserMistake(f"{path} is neither .gif nor .mp4; give the video one of these endings")
    check_place(path)
    if path.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise UserMistake("an .mp4 needs ffmpeg, which was not found (Debian: apt-get install ffmpeg); or give a .gif")


def check_place(path: Path) -> None:
    """Raise UserMistake if no file could be there."""
    if not path.parent.is_dir():
        raise UserMistake(f"there is no folder {path.parent} to write {path.name} to; make it first")
    if path.is_dir():
        raise UserMistake(f"{path} is a folder; give the name of a file")


def write(path: Path, frames: Sequence[np.ndarray], fps: int = 15) -> None:
    """Pictures (H, W, 3) uint8 as a GIF or, through ffmpeg, an MP4."""
    if path.suffix.lower() == ".gif":
        path.write_bytes(gif(np.stack(frames), fps))
        return
    height, width, _ = frames[0].shape
    command = ["ffmpeg", "-y", "-loglevel", "error", "-f", "rawvideo", "-pix_fmt", "rgb24"]
    command += ["-s", f"{width}x{height}", "-r", str(fps), "-i", "-"]
    # Most players want even sides and 4:2:0.
    command += ["-vf", "pad=ceil(iw/2)*2:ceil(ih/2)*2", "-pix_fmt", "yuv420p", str(path)]
    done = subprocess.run(command, input=np.stack(frames).tobytes(), capture_output=True)
    if done.returncode:
        words = " ".join(done.stderr.decode(errors="replace").split()[-30:])
        raise UserMistake(f"ffmpeg could not write {path}: {words}")
