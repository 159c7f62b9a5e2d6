import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import envs

# The length of each episode in turn, and how it ends.
TERMINATED, TRUNCATED, BOTH = "terminated", "truncated", "both"


class Counting(gymnasium.Env):
    """Says in each observation which environment, episode and step it is, and which action it was given.

    The reward is ten times the step; one buffer is used for all observations.
    """

    def __init__(self, name, episodes):
        self.observation_space = spaces.Dict({"where": spaces.Box(-1, 1e6, (4,), np.float32)})
        self.action_space = spaces.Dict({"action": spaces.Discrete(100)})
        self.name, self.episodes = name, episodes
        self.episode, self.count = -1, 0
        self.buffer = np.zeros(4, np.float32)
        self.seeds = []
        self.closed = False

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        self.episode += 1
        self.count = 0
        return self.observe(-1), {}

    def step(self, action):
        length, end = self.episodes[self.episode]
        assert self.count < length, "stepped after its end"
        self.count += 1
        over = self.count == length
        terminated, truncated = over and end in (TERMINATED, BOTH), over and end in (TRUNCATED, BOTH)
        return self.observe(action["action"]), 10.0 * self.count, terminated, truncated, {}

    def observe(self, action):
        self.buffer[:] = self.name, self.episode, self.count, action
        return {"where": self.buffer}

    def close(self):
        self.closed = True

    def get_state(self):
        return {"episode": self.episode, "count": self.count}

    def set_state(self, state):
        self.episode, self.count = state["episode"], state["count"]


def make(*episodes, seeds=None):
    made = [Counting(name, list(lengths)) for name, lengths in enumerate(episodes)]
    factories = [lambda env=env: envs.Adapt(env, repeat=3) for env in made]
    return envs.Vector(factories, seeds or range(len(made))), made


def run(vector, calls, first=0):
    """Rows of consecutive calls; call t acts with t."""
    return [vector.step({"action": np.full(len(vector), first + t)}) for t in range(calls)]


def column(rows, name, stream):
    return [getattr(row, name)[stream].item() for row in rows]


def places(rows, stream):
    """(episode, step, action) of each row."""
    return [tuple(row.observation["where"][stream, 1:].astype(int).tolist()) for row in rows]


def test_one_stream_row_by_row():
    vector, _ = make([(2, TERMINATED), (3, TRUNCATED), (1, BOTH), (9, TERMINATED)])
    rows = run(vector, 10)
    # The call's number is its action: those of calls 0, 3, 7 and 9 are not taken, since they reset.
    assert places(rows, 0) == [
        (0, 0, -1),
        (0, 1, 1),
        (0, 2, 2),
        (1, 0, -1),
        (1, 1, 4),
        (1, 2, 5),
        (1, 3, 6),
        (2, 0, -1),
        (2, 1, 8),
        (3, 0, -1),
    ]
    yes, no = True, False
    assert column(rows, "is_first", 0) == [yes, no, no, yes, no, no, no, yes, no, yes]
    assert column(rows, "is_last", 0) == [no, no, yes, no, no, no, yes, no, yes, no]
    assert column(rows, "is_terminal", 0) == [no, no, yes, no, no, no, no, no, yes, no]
    assert column(rows, "reward", 0) == [0, 10, 20, 0, 10, 20, 30, 0, 10, 0]


def test_streams_of_unequal_episodes_keep_step():
    vector, _ = make([(1, TRUNCATED)] * 9, [(2, TERMINATED)] * 9, [(20, TERMINATED)])
    rows = run(vector, 6)
    for stream in range(3):
        assert [int(row.observation["where"][stream, 0]) for row in rows] == [stream] * 6
    assert [place[:2] for place in places(rows, 0)] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert [place[:2] for place in places(rows, 1)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert [place[:2] for place in places(rows, 2)] == [(0, step) for step in range(6)]
    assert column(rows, "is_first", 0) == [True, False] * 3
    assert column(rows, "is_last", 1) == [False, False, True] * 2
    assert column(rows, "is_last", 2) == [False] * 6
    assert not any(column(rows, "is_terminal", 0))


def test_each_stream_gets_its_own_action():
    vector, _ = make([(9, TERMINATED)], [(9, TERMINATED)], [(9, TERMINATED)])
    vector.step({"action": np.zeros(3, int)})
    rows = vector.step({"action": np.array([7, 8, 9])})
    assert rows.observation["where"][:, 3].tolist() == [7, 8, 9]


def test_shapes_and_kinds():
    vector, _ = make([(2, TERMINATED)], [(2, TERMINATED)])
    rows = vector.step({"action": np.zeros(2, int)})
    assert rows.observation["where"].shape == (2, 4) and rows.observation["where"].dtype == np.float32
    assert rows.reward.shape == (2,) and rows.reward.dtype == np.float32
    for flag in (rows.is_first, rows.is_last, rows.is_terminal):
        assert flag.shape == (2,) and flag.dtype == bool
    assert len(vector) == 2 and vector.repeat == 3 and vector.notes == []
    assert vector.observation_space["where"].shape == (4,) and vector.action_space["action"].n == 100


def test_rows_are_not_overwritten_by_later_ones():
    vector, _ = make([(3, TERMINATED)] * 9)
    rows = run(vector, 6)
    arrays = [[*row.observation.values(), *row[1:]] for row in rows]
    for one in range(6):
        for other in range(one):
            assert not any(np.shares_memory(a, b) for a in arrays[one] for b in arrays[other])
    assert [place[1] for place in places(rows, 0)] == [0, 1, 2, 3, 0, 1]


def test_each_environment_is_seeded_once():
    vector, made = make([(1, TERMINATED)] * 9, [(2, TERMINATED)] * 9, seeds=[5, 6])
    run(vector, 6)
    assert made[0].seeds == [5, None, None]
    assert made[1].seeds == [6, None]


@pytest.mark.parametrize("history", [0, 3])
@pytest.mark.parametrize("calls", range(7))  # among them some that end with a row that is last
def test_a_saved_state_goes_on_exactly(calls, history):
    episodes = [(1, TRUNCATED), (4, TERMINATED)] * 5, [(3, TERMINATED)] * 9, [(20, TERMINATED)]
    vector, _ = make(*episodes)
    run(vector, calls)
    assert vector.can_save_state
    other, made = make(*episodes)
    run(other, history)
    other.set_state(vector.get_state())
    for env in made:
        env.seeds.clear()
    for row, expected in zip(run(other, 8, calls), run(vector, 8, calls), strict=True):
        assert np.array_equal(row.observation["where"], expected.observation["where"])
        assert all(np.array_equal(a, b) for a, b in zip(row[1:], expected[1:], strict=True))
    # Seeds are for the first reset of a run, not for the first after it was resumed.
    later = {seed for env in made for seed in env.seeds}
    assert later == ({None} if calls else {None, 0, 1, 2})


def test_where_one_refuses_its_state_all_begin_anew():
    episodes = [(4, TERMINATED)] * 5, [(9, TERMINATED)] * 5
    vector, _ = make(*episodes)
    run(vector, 3)  # in mid-episode
    other, made = make(*episodes)

    def refuse(state):
        raise ValueError("of another version")

    made[1].set_state = refuse
    with pytest.raises(ValueError, match="of another version"):
        other.set_state(vector.get_state())
    other.reseed([7])
    assert run(other, 1)[0].is_first.tolist() == [True, True]
    assert all(len(env.seeds) == 1 and env.seeds[0] is not None for env in made)


def test_a_saved_state_does_not_change_with_what_follows():
    vector, _ = make([(2, TERMINATED)] * 9)
    state = vector.get_state()
    run(vector, 4)
    assert state["needs_reset"].tolist() == [True] and state["is_seeded"].tolist() == [False]


def test_atari_streams_go_on_exactly():
    def vector():
        return envs.Vector([lambda: envs.make("atari/pong", time_limit_frames=120)] * 2, [1, 2])

    one, other = vector(), vector()
    run_atari(one, 25, seed=0)
    run_atari(other, 3, seed=1)
    other.set_state(one.get_state())
    for row, expected in zip(run_atari(one, 40, seed=2), run_atari(other, 40, seed=2), strict=True):
        assert np.array_equal(row.observation["image"], expected.observation["image"])
        assert all(np.array_equal(a, b) for a, b in zip(row[1:], expected[1:], strict=True))


def run_atari(vector, calls, seed):
    rng = np.random.default_rng(seed)
    return [vector.step({"action": rng.integers(18, size=len(vector))}) for _ in range(calls)]


def test_streams_with_different_seeds_differ():
    vector = envs.Vector([lambda: envs.make("atari/pong")] * 2, [1, 2])
    rows = run_atari(vector, 10, seed=0)
    assert any(not np.array_equal(*row.observation["image"]) for row in rows)


def test_what_cannot_be_saved_says_so():
    vector = envs.Vector([lambda: envs.make("gym/CartPole-v1")], [0])
    assert not vector.can_save_state


def test_closing_closes_all():
    vector, made = make([(1, TERMINATED)], [(1, TERMINATED)])
    vector.close()
    assert [env.closed for env in made] == [True, True]


def test_environments_that_reset_themselves_are_refused():
    def wrapped():
        return envs.Adapt(gymnasium.wrappers.Autoreset(gymnasium.make("CartPole-v1")))

    with pytest.raises(envs.TaskError, match="resets itself"):
        envs.Vector([wrapped], [0])
    with pytest.raises(envs.TaskError, match="resets itself"):
        envs.Vector([lambda: gymnasium.make_vec("CartPole-v1", num_envs=2)], [0])


def test_one_that_resets_itself_unseen_is_found_out_at_its_first_end():
    class Sly(Counting):
        def step(self, action):
            observation, reward, terminated, truncated, _ = super().step(action)
            info = {}
            if terminated:
                info["final_obs"] = observation
                observation, _ = self.reset()
            return observation, reward, terminated, truncated, info

    vector = envs.Vector([lambda: envs.Adapt(Sly(0, [(2, TERMINATED)] * 3))], [0])
    run(vector, 2)
    with pytest.raises(envs.TaskError, match="resets itself"):
        run(vector, 1)


def test_environments_must_be_alike():
    made = [Counting(0, [(1, TERMINATED)]), Counting(1, [(1, TERMINATED)])]
    made[1].action_space = spaces.Dict({"action": spaces.Discrete(3)})
    with pytest.raises(envs.TaskError, match="differ in their spaces"):
        envs.Vector([lambda env=env: env for env in made], [0, 1])
    assert [env.closed for env in made] == [True, True]


# Environments that fail ----------------------------------------------------------------------------------


class Breaking(Counting):
    """Raises at a step of an episode, or at a reset, as often as it is told to."""

    def __init__(self, plan):
        super().__init__(0, [(3, TERMINATED)] * 99)
        self.plan = plan  # shared by all that are made: calls until one fails, in turn

    def reset(self, *, seed=None, options=None):
        self.fail()
        return super().reset(seed=seed)

    def step(self, action):
        self.fail()
        return super().step(action)

    def fail(self):
        self.plan[0] -= 1
        if self.plan[0] < 0:
            self.plan.pop(0)
            raise RuntimeError("out of fuel")


def breaking(*plan, restarts=2):
    plan, made, said = [*plan, 10**9], [], []

    def factory():
        made.append(Breaking(plan))
        return envs.Adapt(made[-1])

    steady = Counting(1, [(4, TRUNCATED)] * 99)
    vector = envs.Vector([factory, lambda: envs.Adapt(steady)], [5, 6], restarts=restarts)
    vector.on_restart = said.append
    return vector, made, said


def test_one_that_fails_is_made_anew_and_its_episode_ends():
    vector, made, said = breaking(2)  # after the reset and a step
    rows = run(vector, 6)
    assert column(rows, "is_first", 0) == [True, False, True, False, False, False]
    assert column(rows, "is_last", 0) == [False, False, False, False, False, True]
    assert column(rows, "reward", 0) == [0, 10, 0, 10, 20, 30]
    assert [place[:2] for place in places(rows, 0)] == [(0, 0), (0, 1), (0, 0), (0, 1), (0, 2), (0, 3)]
    # The other one notices nothing.
    assert [place[1] for place in places(rows, 1)] == [0, 1, 2, 3, 4, 0]
    assert made[0].closed and not made[1].closed and len(made) == 2
    assert made[0].seeds == [5] and made[1].seeds not in ([5], [None])
    assert [str(error)[:60] for error in said] == ["environment 1 of 2 raised RuntimeError in step: out of fuel "]


def test_a_reset_may_fail_too_and_again():
    vector, made, said = breaking(4, 0)  # at the second reset, and at the one after
    rows = run(vector, 6)
    assert column(rows, "is_first", 0) == [True, False, False, False, True, False]
    assert column(rows, "is_last", 0) == [False, False, False, True, False, False]
    assert len(made) == 3 and len(said) == 2


@pytest.mark.parametrize("restarts", [0, 1, 2])
def test_an_episode_has_so_many_restarts(restarts):
    vector, made, said = breaking(*[2] * (restarts + 1), restarts=restarts)
    with pytest.raises(envs.EnvironmentFailed, match="out of fuel"):
        run(vector, 30)
    assert len(said) == restarts and len(made) == restarts + 1


def test_an_episode_that_ends_well_gives_them_back():
    # An episode takes 4 calls. Each of five has one failure, after its reset and a step.
    vector, made, said = breaking(2, 6, 6, 6, 6, restarts=1)
    rows = run(vector, 31)
    assert len(said) == 5 and len(made) == 6
    assert sum(column(rows, "is_last", 0)) == 5


class Odd(Counting):
    """Ends the process, or gives a reward that a float32 cannot hold, or a class beyond its space."""

    def __init__(self, what):
        super().__init__(0, [(9, TERMINATED)] * 9)
        self.what = what
        if what == "class":
            self.observation_space = spaces.Discrete(3)

    def step(self, action):
        if self.what == "exit":
            raise SystemExit(0)
        observation, _, *rest = super().step(action)
        return observation, 1e300 if self.what == "reward" else 0.0, *rest

    def observe(self, action):
        return 2 + self.count if self.what == "class" else super().observe(action)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("exit", "environment 1 of 1 raised SystemExit in step"),
        ("reward", r"environment 1 of 1 returned the reward 1e\+300"),
        ("class", "Observation 'vector' has values from 3 to 3, outside its space"),
    ],
)
def test_what_counts_as_a_failure(what, said):
    vector = envs.Vector([lambda: envs.Adapt(Odd(what))], [1])
    with pytest.raises(envs.EnvironmentFailed, match=said):
        run(vector, 2)


IMAGE = spaces.Box(0, 255, (48, 48, 3), np.uint8)


class Painting(gymnasium.Env):
    """Shows whatever it is given, whatever its space."""

    action_space = spaces.Discrete(2)

    def __init__(self, space, value):
        self.observation_space, self.value = space, value

    def reset(self, *, seed=None, options=None):
        return self.value, {}


def image(dtype, value=0, height=48):
    return np.full((height, 48, 3), value, dtype)


@pytest.mark.parametrize(
    ("space", "value", "said"),
    [
        (IMAGE, image(float), "'image' is float64, but its space says uint8: convert it with astype"),
        (IMAGE, image(int, 256), "'image' has values from 256 to 256, but its space says uint8: correct one of them"),
        (IMAGE, image(np.int8, -1), "'image' has values from -1 to -1, but its space says uint8"),
        (spaces.Discrete(3), 1.5, "'vector' is float64, but its space says int64"),
    ],
)
@pytest.mark.parametrize("adapted", [True, False])
def test_integers_are_what_their_space_says(space, value, said, adapted):
    """Nothing is cast into another number; an environment that is used as it is (not adapted) is held to it, too."""
    if not adapted:
        space = spaces.Dict({"image": IMAGE} if space is IMAGE else {"vector": spaces.MultiDiscrete([3])})
        value = {key: np.reshape(value, part.shape) for key, part in space.items()}
    vector = envs.Vector([lambda: envs.Adapt(Painting(space, value))], [1])
    with pytest.raises(envs.EnvironmentFailed, match=said):
        vector.step({"action": np.zeros(1, int)})


def test_images_have_the_shape_of_their_space():
    vector = envs.Vector([lambda: envs.Adapt(Painting(IMAGE, image(np.uint8, height=50)))], [1])
    with pytest.raises(envs.EnvironmentFailed, match=r"of shape \(50, 48, 3\), but its space says \(48, 48, 3\)"):
        vector.step({"action": np.zeros(1, int)})


@pytest.mark.parametrize("dtype", [np.uint8, np.int64, np.uint16, bool])
def test_integers_of_another_kind_are_taken(dtype):
    vector = envs.Vector([lambda: envs.Adapt(Painting(IMAGE, image(dtype, 1)))], [1])
    seen = vector.step({"action": np.zeros(1, int)}).observation["image"]
    assert seen.dtype == np.uint8 and (seen == 1).all()
