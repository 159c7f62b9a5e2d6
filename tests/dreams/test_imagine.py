"""Scenes of real episodes beside their dreams, and the pictures of them."""

import dataclasses

import numpy as np
import pytest
import tiny
from click.testing import CliRunner
from PIL import Image, ImageSequence

from dreamer.cli import main
from dreamer.dreams.dream import Dream, record
from dreamer.dreams.imagine import Scene, _Layout, draw, scene, scenes
from dreamer.rssm import State


@pytest.fixture(scope="module")
def played():
    _, agent, *_ = tiny.tiny_run()
    return agent, record(agent, tiny.counting_vector(1, episodes=((30, True),)), 2)


def test_the_context_is_read_and_the_rest_is_dreamt(played):
    agent, (episode, _) = played
    found = scene(agent, episode, begin=4, context=3, horizon=6, free=False, seed=1)
    assert found.steps == 9 and found.context == 3
    np.testing.assert_array_equal(found.observation["where"][:, 3], np.arange(4, 13))
    np.testing.assert_array_equal(found.reward, episode.reward[4:13])
    dream = Dream(agent, seed=1)
    seen = State(episode.state.deter[4:7], episode.state.stoch[4:7])
    read = dream.read(seen)
    np.testing.assert_allclose(found.dream["where"][:3], read.observation["where"], rtol=1e-5, atol=1e-5)
    # The action of row 6 leads to row 7, the first that is dreamt.
    state = State(seen.deter[2:3], seen.stoch[2:3])
    for step in range(6):
        state = dream.step(state, episode.action[6 + step : 7 + step])
        expected = dream.read(state)
        np.testing.assert_allclose(
            found.dream["where"][3 + step], expected.observation["where"][0], rtol=1e-4, atol=1e-4
        )
        assert found.dream_reward[3 + step] == pytest.approx(float(expected.reward), abs=1e-5)


def test_nothing_is_seen_after_the_context(played):
    agent, (episode, _) = played
    before = scene(agent, episode, 4, 3, 6, False, 1)
    state = State(episode.state.deter.clone(), episode.state.stoch.clone())
    state.deter[7:] = 1e3  # what the agent thought once it had seen more
    changed = {key: value.copy() for key, value in episode.observation.items()}
    changed["where"][7:] = -1e3
    after = scene(agent, dataclasses.replace(episode, observation=changed, state=state), 4, 3, 6, False, 1)
    assert np.array_equal(after.dream["where"], before.dream["where"])
    state.deter[6] = 1e3
    after = scene(agent, dataclasses.replace(episode, state=state), 4, 3, 6, False, 1)
    assert not np.array_equal(after.dream["where"][3:], before.dream["where"][3:])
    assert np.array_equal(after.dream["where"][:2], before.dream["where"][:2])


def test_an_episode_that_ends_in_a_scene(played):
    agent, (episode, _) = played
    found = scene(agent, episode, begin=25, context=3, horizon=10, free=False, seed=1)
    assert len(found.reward) == 6 and found.steps == 13
    assert found.goes_on.tolist() == [1, 1, 1, 1, 1, 0]
    found = scene(agent, episode, begin=29, context=5, horizon=2, free=False, seed=1)
    assert found.context == 1 and found.steps == 3  # of the last row nothing follows


def test_a_policy_that_acts_in_its_dream(played):
    agent, (episode, _) = played
    found = scene(agent, episode, begin=4, context=3, horizon=6, free=True, seed=1)
    states = Dream(agent, seed=1).live(State(episode.state.deter[6:7], episode.state.stoch[6:7]), 6)
    expected = Dream(agent).read(State(states.deter[:, 0], states.stoch[:, 0]))
    np.testing.assert_allclose(found.dream_reward[3:], expected.reward, rtol=1e-5, atol=1e-5)


def test_scenes_have_room_where_there_is_some(played):
    agent, episodes = played
    begins = {found.begin for seed in range(20) for found in scenes(agent, episodes, 5, 10, seed=seed)}
    assert max(begins) <= 31 - 15 and len(begins) > 5
    assert {found.begin for found in scenes(agent, episodes, 5, 50)} == {0}


def imagine(*arguments):
    return CliRunner().invoke(main, ["imagine", *map(str, arguments)])


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Of images, vectors and classes."""
    return tiny.trained_run(tmp_path_factory.mktemp("runs") / "run", "mixed:Signals", 30)


def test_a_film(run, tmp_path):
    path = tmp_path / "dream.gif"
    result = imagine(run, "--out", path, "--horizon", 6, "--context", 3, "--scenes", 2)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"Wrote {path}\n"
    with Image.open(path) as film:
        frames = [np.array(frame.convert("RGB"), int) for frame in ImageSequence.Iterator(film)]
    assert len(frames) == 9
    # The cursor moves, so each frame differs from the one before.
    assert all((a != b).any() for a, b in zip(frames, frames[1:]))
    # The context is marked by a green ground.
    green = frames[0][..., 1] > frames[0][..., 0] + 20
    assert green.mean() > 0.005


def test_of_many_numbers_those_that_vary_most_are_drawn(tmp_path):
    wide = np.zeros((6, 40), np.float32)
    wide[3, 7:] = np.arange(33)  # number 7 + n moves by n
    ones = np.ones(6, np.float32)
    shown = Scene({"x": wide}, ones, ones, {"x": wide}, ones, ones, begin=0, context=2, is_free=False)
    layout = _Layout(shown, is_sheet=False, wide=True)
    assert [name for name, *_ in layout.curves] == [f"x {i}" for i in range(16, 40)] and layout.left_out == 16
    draw([shown], "wide", tmp_path / "wide.png")
    with Image.open(tmp_path / "wide.png") as picture:
        assert picture.size[1] < 2000


@pytest.mark.parametrize("options", [(), ("--policy",)])
def test_a_sheet(run, tmp_path, options):
    path = tmp_path / "dream.png"
    assert imagine(run, "--out", path, "--horizon", 12, *options).exit_code == 0
    with Image.open(path) as picture:
        assert picture.size[0] > 800 and np.array(picture.convert("L")).std() > 10


def test_vectors_alone(tmp_path):
    folder = tiny.trained_run(tmp_path / "run", "gym/CartPole-v1", 30)
    assert imagine(folder, "--out", tmp_path / "dream.gif", "--horizon", 4).exit_code == 0
    with Image.open(tmp_path / "dream.gif") as film:
        assert film.n_frames == 9


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--out", "dream.bmp"], "dream.bmp does not end in .gif, .mp4, .png"),
        (["--out", "nowhere/dream.png"], "there is no folder nowhere to write dream.png to"),
        (["--out", "nowhere/dream.gif"], "there is no folder nowhere"),
        (["--out", "folder.gif"], "folder.gif is a folder; give the name of a file"),
        (["--horizon", "0"], "see dreamer imagine --help"),
    ],
)
def test_bad_options(run, tmp_path, monkeypatch, options, named):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.gif").mkdir()
    result = imagine(run, *options)
    assert result.exit_code == 2 and named in result.stderr and "Traceback" not in result.stderr


def test_a_folder_without_a_run(tmp_path):
    result = imagine(tmp_path, "--out", tmp_path / "dream.gif")
    assert result.exit_code == 2 and "holds no run" in result.stderr


def test_images_are_shown_in_their_own_units(run):
    from dreamer.checkpoint import RunFolder

    agent = RunFolder(run).load_agent("cpu")
    import envs

    episodes = record(agent, envs.Vector([lambda: envs.make("mixed:Signals")], [0]), 1)
    found = scene(agent, episodes[0], 0, 3, 5, False, 0)
    state = episodes[0].state
    read = Dream(agent).read(State(state.deter[:3], state.stoch[:3]))
    np.testing.assert_allclose(found.dream["screen"][:3], read.observation["screen"], rtol=1e-4, atol=1e-3)
