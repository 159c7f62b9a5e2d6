import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import envs
from envs import atari

GAMES_57 = """
alien amidar assault asterix asteroids atlantis bank_heist battle_zone beam_rider berzerk bowling boxing
breakout centipede chopper_command crazy_climber defender demon_attack double_dunk enduro fishing_derby
freeway frostbite gopher gravitar hero ice_hockey jamesbond kangaroo krull kung_fu_master montezuma_revenge
ms_pacman name_this_game phoenix pitfall pong private_eye qbert riverraid road_runner robotank seaquest
skiing solaris space_invaders star_gunner surround tennis time_pilot tutankham up_n_down venture
video_pinball wizard_of_wor yars_revenge zaxxon
"""
GAMES_26 = """
alien amidar assault asterix bank_heist battle_zone boxing breakout chopper_command crazy_climber
demon_attack freeway frostbite gopher hero jamesbond kangaroo krull kung_fu_master ms_pacman pong
private_eye qbert road_runner seaquest up_n_down
"""


def play(env, steps, seed=0):
    """Images and rewards of random actions, through resets."""
    rng = np.random.default_rng(seed)
    images, rewards = [], []
    for _ in range(steps):
        observation, reward, terminated, truncated, _ = env.step({"action": rng.integers(6)})
        images.append(observation["image"])
        rewards.append(reward)
        if terminated or truncated:
            images.append(env.reset()[0]["image"])
    return np.stack(images), rewards


def same_play(one, other, steps=40, seed=0):
    images, rewards = play(one, steps, seed)
    other_images, other_rewards = play(other, steps, seed)
    return np.array_equal(images, other_images) and rewards == other_rewards


def test_the_protocol_of_200_million_frames():
    env = envs.make("atari/pong", seed=0)
    observation, _ = env.reset()
    assert observation.keys() == {"image"}
    assert observation["image"].shape == env.observation_space["image"].shape == (96, 96, 1)
    assert observation["image"].dtype == np.uint8
    assert env.action_space["action"].n == 18
    assert env.repeat == 4
    assert env.notes == []
    game = env.unwrapped
    assert (game.sticky, game.noops, game.time_limit_frames) == (0.25, 30, 108_000)
    assert game.ale.getFloat("repeat_action_probability") == 0  # stickiness is drawn here, not twice


def test_the_protocol_of_400_thousand_frames():
    env = envs.make("atari100k/pong", seed=0)
    observation, _ = env.reset()
    assert observation["image"].shape == env.observation_space["image"].shape == (64, 64, 3)
    assert env.action_space["action"].n == 6
    assert env.repeat == 4
    assert env.unwrapped.sticky == 0


def test_every_published_game_is_known():
    known = set(atari.names())
    assert len(GAMES_57.split()) == 57 and set(GAMES_57.split()) <= known
    assert len(GAMES_26.split()) == 26 and set(GAMES_26.split()) <= known
    assert "combat" not in known  # for two players only; the emulator would end the process


@pytest.mark.parametrize("game", ["jamesbond", "surround", "up_n_down"])
def test_a_game_can_be_played(game):
    env = envs.make(f"atari/{game}", seed=0)
    env.reset()
    images, _ = play(env, 3)
    assert images.max() > 0


def test_each_step_is_as_many_frames_as_repeat():
    for repeat in (1, 4, 5):
        env = envs.make("atari/pong", seed=0, repeat=repeat, noops=0)
        env.reset()
        assert env.repeat == repeat
        assert env.unwrapped.ale.getEpisodeFrameNumber() == 0
        for steps in range(1, 6):
            env.step({"action": 2})
            assert env.unwrapped.ale.getEpisodeFrameNumber() == steps * repeat


def test_rewards_of_all_frames_are_summed():
    """Without a move Pong is lost point by point: the sum must not depend on how frames are grouped."""
    totals = []
    for repeat in (1, 4):
        env = envs.make("atari100k/pong", seed=0, repeat=repeat, noops=0)
        env.reset()
        rewards = [env.step({"action": 0})[1] for _ in range(400 // repeat)]
        totals.append(sum(rewards))
    assert totals[0] == totals[1] < -1


def test_the_image_is_the_maximum_of_the_last_two_frames():
    """Against raw frames of an emulator of the test's own, of a game whose frames differ."""
    import ale_py
    from ale_py import roms

    env = envs.make("atari100k/asterix", seed=0, noops=0)
    first, _ = env.reset()
    ale = ale_py.ALEInterface()
    ale.setFloat("repeat_action_probability", 0.0)
    ale.loadROM(roms.get_rom_path("asterix"))
    ale.reset_game()
    actions = ale.getMinimalActionSet()

    def resized(frame):
        return np.asarray(Image.fromarray(frame).resize((64, 64), Image.Resampling.BILINEAR))

    assert np.array_equal(first["image"], resized(ale.getScreenRGB()))
    differences = 0
    for action in np.random.default_rng(0).integers(len(actions), size=40):
        frames = []
        for _ in range(4):
            ale.act(actions[action])
            frames.append(ale.getScreenRGB())
        observation, *_ = env.step({"action": action})
        assert np.array_equal(observation["image"], resized(np.maximum(frames[2], frames[3])))
        differences += not np.array_equal(frames[2], frames[3])
    assert differences > 10


def test_grey_is_the_weighted_sum_truncated():
    image = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [10, 20, 30], [1, 1, 1]]], np.uint8)
    # 76.245, 149.685, 29.07, 255, 2.99 + 11.74 + 3.42 = 18.15, 1
    assert atari.to_grey(image).tolist() == [[[76], [149], [29], [255], [18], [1]]]


def test_grey_is_taken_after_resizing():
    grey = envs.make("atari/pong", seed=0, sticky=0.0)
    colour = envs.make("atari/pong", seed=0, sticky=0.0, grey=False)
    assert np.array_equal(grey.reset()[0]["image"], atari.to_grey(colour.reset()[0]["image"]))


def test_resizing_weighs_every_pixel():
    """A bright row among 210 must leave its share of the light wherever it lies."""
    for row in range(90, 100):
        frame = np.zeros((210, 160, 3), np.uint8)
        frame[row] = 255
        light = envs.images.resize(frame, (48, 48)).sum() / 3 / 48
        assert light == pytest.approx(255 * 48 / 210, rel=0.05)


def test_a_seed_determines_everything():
    one, other, third = (envs.make("atari/breakout", seed=seed) for seed in (5, 5, 6))
    starts = [env.reset()[0]["image"] for env in (one, other, third)]
    assert np.array_equal(starts[0], starts[1])
    assert same_play(one, other)
    one.reset(seed=5), third.reset(seed=6)
    assert not same_play(one, third)


def test_reset_with_a_seed_starts_over_after_any_history():
    """Assault keeps memory across a reset of the console."""
    used, fresh = envs.make("atari/assault", seed=1), envs.make("atari/assault", seed=2)
    used.reset()
    play(used, 50)
    assert np.array_equal(used.reset(seed=9)[0]["image"], fresh.reset(seed=9)[0]["image"])
    assert same_play(used, fresh)


def test_the_next_episode_is_another_one():
    env = envs.make("atari/pong", seed=5)
    env.reset()
    first, _ = play(env, 30)
    env.reset()
    second, _ = play(env, 30)
    assert not np.array_equal(first, second)


def test_without_a_seed_two_environments_differ():
    env, other = envs.make("atari/pong"), envs.make("atari/pong")
    env.reset(), other.reset()
    assert not same_play(env, other)


def test_noops_are_drawn_from_zero_to_the_most():
    env = envs.make("atari/pong", seed=0, noops=3)
    counts = set()
    for _ in range(60):
        env.reset()
        counts.add(env.unwrapped.ale.getEpisodeFrameNumber())
    assert counts == {0, 1, 2, 3}


def held_actions(sticky, wanted, repeat):
    """What the console is given, frame by frame. None among what is wanted is a reset."""
    env = envs.make("atari/pong", seed=0, sticky=sticky, noops=0, repeat=repeat)
    env.reset()
    game = env.unwrapped
    console, given = game.ale, []

    class Recorder:
        def act(self, action):
            given.append(action)
            return console.act(action)

        def __getattr__(self, name):
            return getattr(console, name)

    game.ale = Recorder()
    for action in wanted:
        env.reset() if action is None else env.step({"action": action})
    return given


def test_without_stickiness_the_console_gets_what_is_asked():
    assert held_actions(0.0, [3, 4], repeat=4) == [3, 3, 3, 3, 4, 4, 4, 4]


def test_stickiness_holds_the_last_action_of_a_frame():
    """The action changes each frame, so that a frame with that of the frame before is one that stuck."""
    wanted = [2 + i % 2 for i in range(2000)]
    given = held_actions(0.25, wanted, repeat=1)
    stuck = [held != asked for held, asked in zip(given[1:], wanted[1:], strict=True)]
    # The other action is held after an odd number of frames stuck in a row:
    # 0.25 * 0.75 + 0.25^3 * 0.75 + ... = 0.2
    assert np.mean(stuck) == pytest.approx(0.2, abs=0.03)
    assert set(given) <= {0, 2, 3}


def test_an_action_does_not_stick_across_a_reset():
    given = held_actions(0.9, [3] * 20 + [None] + [4] * 3, repeat=1)
    assert 3 in given[:20]
    assert set(given[20:]) <= {0, 4}


def test_a_time_limit_truncates_and_does_not_terminate():
    env = envs.make("atari/pong", seed=0, noops=0, time_limit_frames=18)
    for _ in range(2):
        env.reset()
        ends = [env.step({"action": 0})[2:4] for _ in range(5)]
        assert ends == [(False, False)] * 4 + [(False, True)]
        assert env.unwrapped.ale.getEpisodeFrameNumber() == 18


def test_the_end_of_the_game_terminates():
    env = envs.make("atari100k/pong", seed=0, noops=0)
    env.reset()
    total, ended = 0, False
    while not ended:
        _, reward, terminated, truncated, _ = env.step({"action": 0})
        total += reward
        ended = terminated or truncated
    assert (terminated, truncated, total) == (True, False, -21)


def test_the_loss_of_a_life_is_no_end_and_rewards_are_not_clipped():
    env = envs.make("atari100k/breakout", seed=0)
    env.reset()
    lives = {env.unwrapped.ale.lives()}
    for _ in range(100):
        _, _, terminated, truncated, _ = env.step({"action": 1})
        if terminated:
            break
        assert not truncated
        lives.add(env.unwrapped.ale.lives())
    assert len(lives) > 2
    points = set()
    env = envs.make("atari100k/qbert", seed=0)
    env.reset()
    for action in np.random.default_rng(0).integers(6, size=200):
        points.add(env.step({"action": action})[1])
    assert max(points) >= 25


@pytest.mark.parametrize("game", ["pong", "qbert", "tetris"])
def test_a_saved_state_goes_on_exactly(game):
    """In a console of its own, with another seed and history, sticky actions and resets included."""
    env, other = (envs.make(f"atari/{game}", seed=seed, sticky=0.5, time_limit_frames=200) for seed in (1, 2))
    env.reset(), other.reset()
    play(env, 31, seed=4)
    assert env.can_save_state
    state = env.get_state()
    other.set_state(state)
    expected = play(env, 80)
    images, rewards = play(other, 80)
    assert np.array_equal(images, expected[0]) and rewards == expected[1]
    env.set_state(state)  # and again in the console that has played on
    images, rewards = play(env, 80)
    assert np.array_equal(images, expected[0]) and rewards == expected[1]


@pytest.mark.parametrize("game", ["pong", "qbert"])
def test_a_state_saved_right_after_a_reset_goes_on_exactly(game):
    """The console's reset switch is still pressed then."""
    env, other = (envs.make(f"atari100k/{game}", seed=seed, noops=0) for seed in (1, 2))
    env.reset(), other.reset()
    play(other, 5)
    other.set_state(env.get_state())
    assert same_play(env, other)


def test_a_state_set_before_the_first_reset_is_kept():
    env, other = envs.make("atari/pong", seed=1), envs.make("atari/pong", seed=2)
    env.reset()
    play(env, 10)
    other.set_state(env.get_state())
    assert np.array_equal(env.reset()[0]["image"], other.reset()[0]["image"])
    assert same_play(env, other)


def test_images_are_not_overwritten_by_the_next_step():
    env = envs.make("atari/pong", seed=0)
    first = env.reset()[0]["image"]
    kept = first.copy()
    play(env, 20)
    assert np.array_equal(first, kept)


def test_render_shows_the_whole_screen():
    env = envs.make("atari/pong", seed=0)
    env.reset()
    assert env.render().shape == (210, 160, 3)


def test_nothing_is_printed():
    code = "import envs; envs.make('atari/pong', seed=0).reset(); envs.make('gym/ALE/Pong-v5').reset()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 84}, "size=84 .* Use size=80"),
        ({"size": 32}, "Use size=48"),
        ({"sticky": 1.5}, "probability"),
        ({"actions": "some"}, "'all' or 'minimal'"),
        ({"noops": -1}, "noops=-1"),
        ({"time_limit_frames": 0}, "time_limit_frames=0"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(envs.TaskError, match=message):
        envs.make("atari/pong", **options)
