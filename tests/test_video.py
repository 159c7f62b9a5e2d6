"""Pictures of what the model expects."""

import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dreamer.agent import Agent
from dreamer.errors import UserMistake
from dreamer.health import Health
from dreamer.logger import Logger
from dreamer.loop import Counters
from dreamer.replay import Batch
from dreamer.spaces import ActionPart, ActionSpec, ObservationSpec
from dreamer.terminal import Terminal
from dreamer.video import MARK, check_path, comparison, gif, open_loop, to_rgb, write

B, T = 2, 8


@pytest.fixture(scope="module")
def agent() -> Agent:
    observation = ObservationSpec(images={"view": (48, 48, 3)}, floats={"speed": 2}, integers={})
    action = ActionSpec((ActionPart("action", (3,)),))
    return Agent(tiny.tiny_config(), observation, action, torch.device("cpu"), torch.float32)


@pytest.fixture
def batch(agent) -> Batch:
    generator = torch.Generator().manual_seed(0)
    flags = torch.zeros(B, T, dtype=torch.bool)
    return Batch(
        observation={
            "view": torch.randint(0, 256, (B, T, 48, 48, 3), dtype=torch.uint8, generator=generator),
            "speed": torch.randn(B, T, 2, generator=generator),
        },
        prev_action=torch.nn.functional.one_hot(torch.randint(0, 3, (B, T), generator=generator), 3).float(),
        reward=torch.zeros(B, T),
        is_first=flags,
        is_last=flags,
        is_terminal=flags,
        start=agent.world_model.rssm.initial(B),
    )


def test_after_the_context_the_observations_no_longer_matter(agent, batch):
    context = 3
    other = batch._replace(observation={key: value.clone() for key, value in batch.observation.items()})
    for value in other.observation.values():
        value[:, context:] = 0
    one, two = open_loop(agent, batch, context), open_loop(agent, other, context)
    assert one["view"].shape == (B, T, 48, 48, 3) and one["speed"].shape == (B, T, 2)
    assert torch.equal(one["view"], two["view"]) and torch.equal(one["speed"], two["speed"])
    seen_more = open_loop(agent, batch, T)
    assert torch.equal(seen_more["view"][:, :context], one["view"][:, :context])
    assert not torch.equal(seen_more["view"], one["view"])


def test_the_actions_matter_after_the_context(agent, batch):
    turned = batch._replace(prev_action=batch.prev_action.roll(1, -1))
    assert not torch.equal(open_loop(agent, batch, 3)["speed"][:, 3:], open_loop(agent, turned, 3)["speed"][:, 3:])


def test_looking_draws_no_random_number_of_the_agent(agent, batch):
    before = agent.generator.get_state()
    open_loop(agent, batch)
    assert torch.equal(agent.generator.get_state(), before)


def test_rows_are_truth_model_and_error():
    truth = torch.full((1, 4, 48, 64, 1), 255, dtype=torch.uint8)
    frames = comparison(truth, torch.full((1, 4, 48, 64, 1), 0.2), context=2)
    assert frames.shape == (4, 3 + 3 * 48, 64, 3) and frames.dtype == np.uint8
    picture = frames[0, 3:]
    assert (picture[:48] == 255).all() and (picture[48:96] == 51).all()
    assert (picture[96:] == 25).all()  # (0.2 - 1 + 1) / 2 = 0.1
    assert (frames[:2, :3] == MARK).all() and (frames[2:, :3] == 0).all()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_any_number_of_channels_has_a_colour(channels):
    assert to_rgb(np.zeros((5, 4, channels), np.uint8)).shape == (5, 4, 3)


def test_a_gif_plays_all_frames(tmp_path):
    frames = np.zeros((6, 20, 30, 3), np.uint8)
    frames[3:, :, 15:] = 200
    for data in (gif(frames), (write(tmp_path / "a.gif", list(frames)), (tmp_path / "a.gif").read_bytes())[1]):
        picture = Image.open(io.BytesIO(data))
        assert picture.size == (30, 20) and picture.is_animated


@pytest.mark.parametrize("name", ["play.avi", "nowhere/play.gif"])
def test_a_path_that_cannot_be_is_a_sentence(tmp_path, name):
    with pytest.raises(UserMistake):
        check_path(tmp_path / name)
    check_path(tmp_path / "play.gif")


def test_an_mp4_needs_ffmpeg(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserMistake, match="ffmpeg"):
        check_path(tmp_path / "play.mp4")


def test_tensorboard_gets_the_episode_and_the_prediction(agent, batch, tmp_path):
    config = tiny.tiny_config("run.video_seconds=0.001")
    logger = Logger(tmp_path, config, Terminal(io.StringIO()), Counters(1), Health(config, agent.action_spec, 400))
    logger._shown = 0.0  # long ago
    rows = SimpleNamespace(
        observation={"view": batch.observation["view"][:1, 0].numpy()},
        reward=np.zeros(1),
        is_first=np.array([True]),
        is_last=np.array([True]),
        is_terminal=np.array([True]),
    )
    logger.rows(rows, Counters(1, rows=1))
    logger.show(agent, batch, Counters(1, rows=8))
    logger.close(Counters(1, rows=8))
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert set(events.Tags()["images"]) == {"episode/video", "open_loop/view"}
    image = events.Images("open_loop/view")[0]
    assert (image.step, image.width, image.height) == (8, 2 * 48, 3 + 3 * 48)
    assert image.encoded_image_string.startswith(b"GIF89a")
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0])["frames"] == 1
