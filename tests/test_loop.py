import contextlib
from collections import Counter
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

import envs
from dreamer.acting import Memory
from dreamer.loop import Counters, Schedule, train
from dreamer.replay import Replay
from dreamer.rssm import State

# When to learn -------------------------------------------------------------------------------------------


def updates_by_row(config, calls):
    """{rows after which updates came: how many}, counting start positions as the replay does."""
    counters, result = Counters(repeat=1), {}
    schedule = Schedule(config, counters)
    for call in range(1, calls + 1):
        starts = config.envs * max(0, call - config.replay.length)
        due = schedule.due(config.envs, starts)
        counters.updates += due
        if due:
            result[call * config.envs] = due
    return result


@pytest.mark.parametrize("count", [1, 16])
@pytest.mark.parametrize("ratio", ["512", "32", "0.5", "2.5", "100.75", "1536"])
def test_updates_follow_the_ratio_from_the_first_whole_batch_on(ratio, count):
    config = tiny.tiny_config(f"ratio={ratio}", "replay.batch=16", "replay.length=64", envs=count)
    steps, first = 16 * 64, 16 * 64 + count * 64
    result = updates_by_row(config, 9000 // count)
    assert min(result) == first and result[first] == 1
    total = 0
    for rows in range(first, 9000 // count * count + 1, count):
        total += result.get(rows, 0)
        # Nothing is owed for the rows before the first update.
        assert total == 1 + int(Fraction(ratio) * (rows - first) / steps), rows


def test_the_first_update_waits_for_whole_rows_of_all_environments():
    # 8 start positions of 5 rows: with 3 environments after 3 * (3 + 4) rows there are 9.
    assert min(updates_by_row(tiny.tiny_config(envs=3), 50)) == 3 * (3 + 4)
    assert min(updates_by_row(tiny.tiny_config(envs=1), 50)) == 8 + 4


def test_the_published_ratios_in_words():
    config = tiny.tiny_config("ratio=512", "replay.batch=16", "replay.length=64")
    result = updates_by_row(config, 1100)
    assert list(result.items())[:4] == [(1088, 1), (1090, 1), (1092, 1), (1094, 1)]
    config = tiny.tiny_config("ratio=32", "replay.batch=16", "replay.length=64", envs=16)
    result = updates_by_row(config, 140)
    assert list(result.items())[:4] == [(2048, 1), (2080, 1), (2112, 1), (2144, 1)]


def test_a_ratio_without_exact_binary_form_keeps_its_rate():
    config = tiny.tiny_config("ratio=0.7", "replay.batch=16", "replay.length=64")
    total = sum(updates_by_row(config, 1088 + 102_400).values())
    assert total in (70, 71)  # 1 + 102400 * 0.7 / 1024, where rounding may defer the last


def test_what_is_owed_outlives_the_schedule():
    config, counters = tiny.tiny_config("ratio=3"), Counters(1, rows=100, updates=5, owed=5.0)
    assert Schedule(config, counters).due(1, 90) == 1  # 5 + 3 = 8 = B * T
    assert counters.owed == 0


@pytest.mark.parametrize("starts", [0, 7])
def test_a_run_whose_replay_was_lost_collects_anew_before_it_learns(starts):
    """A few sequences, replayed at the full ratio, would be all that the next updates see."""
    config, counters = tiny.tiny_config("ratio=16"), Counters(1, rows=100, updates=5)
    assert Schedule(config, counters).due(1, starts) == 0 and counters.owed == 0
    assert Schedule(config, counters).due(1, 8) == 2  # nothing is owed for the rows before


def test_frames_count_the_repeat():
    assert Counters(repeat=4, rows=25).frames == 100


# The order of events -------------------------------------------------------------------------------------

LATENT = 2


class World:
    """Environments, agent, replay and observer in one, all writing to a tape.

    Row r of the run holds observation r; the agent chooses `10 * act + environment` at its act-th call.
    """

    def __init__(self, config, lengths=(3,)):
        self.config, self.lengths, self.tape = config, lengths, []
        self.count, self.calls, self.acts, self.samples = config.envs, 0, 0, 0
        self.steps = [None] * self.count
        self.counters = Counters(repeat=4)
        self.held = 0
        self.action_spec = SimpleNamespace(to_environment=lambda action: {"flat": action})
        self.stop_after = None

    def __len__(self):
        return self.count

    # Environments

    def step(self, actions):
        self.tape.append(("step", actions["flat"][:, 0].tolist()))
        first, last = [], []
        for i in range(self.count):
            self.steps[i] = 0 if self.steps[i] in (None, self.lengths[i % len(self.lengths)]) else self.steps[i] + 1
            first.append(self.steps[i] == 0)
            last.append(self.steps[i] == self.lengths[i % len(self.lengths)])
        self.calls += 1
        return SimpleNamespace(
            observation={"row": np.full((self.count, 1), self.calls, np.float32)},
            reward=np.full(self.count, self.calls / 2, np.float32),
            is_first=np.array(first),
            is_last=np.array(last),
            is_terminal=np.array(last),
        )

    # Agent

    def start(self, count):
        assert count == self.count
        self.tape.append(("start",))
        return self.memory(0)

    def memory(self, number):
        action = 10.0 * number + torch.arange(self.count).unsqueeze(1)
        return Memory(State(torch.full((self.count, LATENT), float(number)), torch.zeros(self.count, 1, 2)), action)

    def act(self, observation, is_first, is_last, memory):
        row, before = int(observation["row"][0, 0]), int(memory.state.deter[0, 0])
        self.tape.append(("act", row, "after", before, is_first.tolist(), is_last.tolist()))
        self.acts += 1
        return self.memory(self.acts)

    @contextlib.contextmanager
    def learning(self):
        self.tape.append(("aside",))
        yield
        self.tape.append(("back",))

    def update(self, batch):
        self.tape.append(("update", batch))
        return {"number": torch.tensor(float(self.samples))}, f"posterior of {batch}"

    # Replay

    def add(self, transition):
        row, reward = int(transition.observation["row"][0, 0]), transition.reward[0].item()
        chosen, latent = transition.action[:, 0].tolist(), transition.latent.deter[0, 0].item()
        assert reward == row / 2 and latent == self.acts
        self.tape.append(("add", row, chosen))
        self.held += 1

    def sample(self, batch):
        assert batch == self.config.replay.batch
        self.samples += 1
        self.tape.append(("sample",))
        return f"batch {self.samples}", f"windows {self.samples}"

    def refresh(self, windows, posterior):
        self.tape.append(("refresh", windows, posterior))

    # Observer and the rest

    def saw_rows(self, rows, counters):
        assert counters is self.counters
        self.tape.append(("rows", int(rows.observation["row"][0, 0]), counters.rows))

    def saw_update(self, metrics, batch, counters):
        assert batch == f"batch {self.samples}"
        self.tape.append(("updated", int(metrics["number"]), counters.updates))

    def save_due(self):
        self.tape.append(("due?",))
        return self.calls % 5 == 0

    def save(self, memory):
        assert memory.state.deter[0, 0] == self.acts
        self.tape.append(("save", self.counters.rows, self.counters.updates))

    def stopped(self):
        return self.stop_after is not None and self.calls >= self.stop_after

    def run(self):
        length = self.config.replay.length
        world = self

        class Held:
            add, sample, refresh = world.add, world.sample, world.refresh
            streams, rows, length = world.count, 10**6, world.config.replay.length
            device = torch.device("cpu")
            starts = property(lambda held: world.count * max(0, world.held - length))

        train(
            self.config,
            self,
            self,
            Held(),
            self.counters,
            [SimpleNamespace(rows=self.saw_rows, update=self.saw_update, show=lambda *_: None)],
            SimpleNamespace(save=self.save, due=self.save_due),
            self.stopped,
        )
        return self.tape


def updates_after_rows(tape):
    """{rows seen: updates that followed}."""
    rows, found = 0, Counter()
    for name, *rest in tape:
        rows = rest[1] if name == "rows" else rows
        found[rows] += name == "update"
    return {rows: count for rows, count in found.items() if count}


def test_one_environment_row_by_row():
    # B * T = 8: the first update after 8 + 4 rows, then one every 2 rows. Episodes are 4 rows long.
    world = World(tiny.tiny_config("ratio=4", frames=4 * 14))
    tape = world.run()
    no, yes = [False], [True]
    assert tape[:11] == [
        ("start",),
        ("step", [0]),
        ("act", 1, "after", 0, yes, no),
        ("add", 1, [10]),
        ("rows", 1, 1),
        ("due?",),
        ("step", [10]),
        ("act", 2, "after", 1, no, no),
        ("add", 2, [20]),
        ("rows", 2, 2),
        ("due?",),
    ]
    assert tape[tape.index(("step", [110])) :] == [
        ("step", [110]),
        ("act", 12, "after", 11, no, yes),
        ("add", 12, [120]),
        ("rows", 12, 12),
        ("aside",),
        ("sample",),
        ("update", "batch 1"),
        ("refresh", "windows 1", "posterior of batch 1"),
        ("updated", 1, 1),
        ("back",),
        ("due?",),
        ("step", [120]),
        ("act", 13, "after", 12, yes, no),
        ("add", 13, [130]),
        ("rows", 13, 13),
        ("due?",),
        ("step", [130]),
        ("act", 14, "after", 13, no, no),
        ("add", 14, [140]),
        ("rows", 14, 14),
        ("aside",),
        ("sample",),
        ("update", "batch 2"),
        ("refresh", "windows 2", "posterior of batch 2"),
        ("updated", 2, 2),
        ("back",),
        ("due?",),
        ("save", 14, 2),
    ]


def test_environments_step_while_the_update_runs(monkeypatch):
    """Nothing that waits for a GPU's update comes after it but for what is done aside, and saving."""
    world = World(tiny.tiny_config("ratio=8", frames=4 * 20))
    fetch = torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda value: world.tape.append(("fetch",)) or fetch(value))
    turns = " ".join(name for name, *_ in world.run()).split("step ")
    learning = [turn.split() for turn in turns if "update " in turn]
    assert len(learning) == 9
    for turn in learning:
        assert " ".join(turn[:11]) == "act add fetch rows aside sample update refresh updated back due?"
        assert set(turn[11:]) <= {"save"}


def test_several_environments_row_by_row():
    # B * T = 8: the first update after 8 + 2 * 4 rows; then 2 rows at ratio 12 are worth three updates.
    world = World(tiny.tiny_config("ratio=12", envs=2, frames=4 * 18), lengths=(3, 1))
    tape = world.run()
    assert tape[tape.index(("step", [70, 71])) :] == [
        ("step", [70, 71]),
        ("act", 8, "after", 7, [False, False], [True, True]),
        ("add", 8, [80, 81]),
        ("rows", 8, 16),
        ("aside",),
        ("sample",),
        ("update", "batch 1"),
        ("refresh", "windows 1", "posterior of batch 1"),
        ("updated", 1, 1),
        ("back",),
        ("due?",),
        ("step", [80, 81]),
        ("act", 9, "after", 8, [True, True], [False, False]),
        ("add", 9, [90, 91]),
        ("rows", 9, 18),
        ("aside",),
        ("sample",),
        ("update", "batch 2"),
        ("refresh", "windows 2", "posterior of batch 2"),
        ("updated", 2, 2),
        ("back",),
        ("aside",),
        ("sample",),
        ("update", "batch 3"),
        ("refresh", "windows 3", "posterior of batch 3"),
        ("updated", 3, 3),
        ("back",),
        ("aside",),
        ("sample",),
        ("update", "batch 4"),
        ("refresh", "windows 4", "posterior of batch 4"),
        ("updated", 4, 4),
        ("back",),
        ("due?",),
        ("save", 18, 4),
    ]


@pytest.mark.parametrize("lengths", [(1,), (2,), (7,), (100,)])
def test_which_update_follows_which_row_does_not_depend_on_episodes(lengths):
    world = World(tiny.tiny_config("ratio=2.5", frames=4 * 29), lengths)
    # 12, then whenever another 8 / 2.5 = 3.2 rows are full.
    assert updates_after_rows(world.run()) == {12: 1, 16: 1, 19: 1, 22: 1, 25: 1, 28: 1}


def test_which_update_follows_which_row_with_several_environments():
    world = World(tiny.tiny_config("ratio=2.5", envs=3, frames=4 * 48), (1, 2, 3))
    # 9 start positions after 3 * 7 rows; then every 3 rows are worth 7.5 / 8 of an update.
    assert updates_after_rows(world.run()) == {21: 1} | {rows: 1 for rows in range(27, 49, 3)}


def test_it_stops_at_the_frames():
    # Frames are rows * 4: the row that reaches them is the last.
    assert World(tiny.tiny_config(frames=41)).run()[-3:] == [("rows", 11, 11), ("due?",), ("save", 11, 0)]
    assert World(tiny.tiny_config(frames=40)).run()[-4] == ("rows", 10, 10)  # a save is due every fifth call
    assert World(tiny.tiny_config(frames=41, envs=2)).run()[-3:] == [("rows", 6, 12), ("due?",), ("save", 12, 0)]


def test_nothing_happens_when_all_frames_are_seen():
    world = World(tiny.tiny_config(frames=40))
    world.counters.rows = 10
    assert world.run() == [("start",), ("save", 10, 0)]


def test_it_goes_on_counting_where_a_run_stopped():
    world = World(tiny.tiny_config("ratio=4", frames=4 * 103))
    world.held, world.counters = 50, Counters(4, rows=100, updates=7, owed=4.0)
    assert updates_after_rows(world.run()) == {101: 1, 103: 1}
    assert (world.counters.rows, world.counters.updates) == (103, 9)


def test_a_request_stops_after_a_whole_turn():
    world = World(tiny.tiny_config("ratio=4", frames=4000))
    world.stop_after = 12
    tape = world.run()
    assert tape[-9:] == [
        ("rows", 12, 12),
        ("aside",),
        ("sample",),
        ("update", "batch 1"),
        ("refresh", "windows 1", "posterior of batch 1"),
        ("updated", 1, 1),
        ("back",),
        ("due?",),
        ("save", 12, 1),
    ]


def test_it_saves_after_the_updates_of_a_row():
    world = World(tiny.tiny_config("ratio=4", frames=4 * 21))
    tape = world.run()
    saves = [event for event in tape if event[0] == "save"]
    assert saves == [("save", 5, 0), ("save", 10, 0), ("save", 15, 2), ("save", 20, 5), ("save", 21, 5)]
    assert all(tape[tape.index(event) - 1] == ("due?",) for event in saves)
    assert tape[-1] == saves[-1]  # and at the end


# With the real things ------------------------------------------------------------------------------------


class Tape(Replay):
    """A replay that remembers what it was given and what it gave."""

    def add(self, transition):
        self.log.append(("add", transition))
        super().add(transition)

    def sample(self, batch):
        result = super().sample(batch)
        self.log.append(("sample", result[1]))
        return result

    def refresh(self, windows, latent):
        self.log.append(("refresh", windows, latent))
        super().refresh(windows, latent)


@pytest.mark.parametrize("count", [1, 3])
def test_a_real_run(count):
    config, agent, vector, replay, counters = tiny.tiny_run("ratio=2", envs=count, frames=36)
    replay.__class__, replay.log = Tape, []
    before = [p.clone() for p in agent.parameters]
    train(config, agent, vector, replay, counters, [tiny.Silent()], tiny.Unsaved(), tiny.never)
    first = {1: 12, 3: 21}[count]
    assert (counters.rows, replay.count) == (36, 36 // count)
    assert counters.updates == 1 + (36 - first) * 2 // 8
    # Zero right where an episode ends, and only there.
    transitions = [entry[1] for entry in replay.log if entry[0] == "add"]
    ends = torch.stack([transition.is_last for transition in transitions])
    idle = torch.stack([~transition.action.any(-1) for transition in transitions])
    assert torch.equal(ends, idle) and ends.any() and not ends.all()
    # After each sample comes the refresh of the same windows, with posteriors that this update computed.
    pairs = [entry for entry in replay.log if entry[0] != "add"]
    assert [entry[0] for entry in pairs] == ["sample", "refresh"] * counters.updates
    for (_, sampled), (_, refreshed, latent) in zip(pairs[::2], pairs[1::2], strict=True):
        assert sampled is refreshed
        assert latent.deter.shape == (2, 4, 16) and latent.stoch.shape == (2, 4, 2, 3)
        assert not latent.deter.requires_grad
    assert any(not torch.equal(p, old) for p, old in zip(agent.parameters, before, strict=True))


def placed(physics, seen, stream, step):
    """Walker's physics as it was at a step; orientations are cosine and sine of seven bodies' angles."""
    cosine, sine = seen["orientations"][stream, step].reshape(7, 2).T
    torso, *legs = np.arctan2(sine, cosine)
    joints = [torso]
    for above, part in zip((torso, *legs[:2], torso, *legs[3:5]), legs):  # thigh, leg, foot, on the right and the left
        joints.append((above - part + np.pi) % (2 * np.pi) - np.pi)
    with physics.reset_context():
        physics.data.qpos[:] = 0
    height = seen["height"][stream, step, 0] - physics.torso_height()
    with physics.reset_context():
        physics.data.qpos[:] = height, 0, *joints
        physics.data.qvel[:] = seen["velocity"][stream, step]


def test_what_is_learned_from_is_what_physics_does():
    """Each step of a sequence follows from the one before it and its action, by the real walker's own equations."""
    config = tiny.tiny_config(task="dmc/walker_walk", envs=2, frames=240)
    vector = envs.Vector([partial(envs.make, config.task, repeat=2)] * 2, range(2))
    agent = tiny.tiny_agent(config, vector)
    replay = tiny.tiny_replay(config, agent)
    train(config, agent, vector, replay, Counters(2), [tiny.Silent()], tiny.Unsaved(), tiny.never)
    from dm_control import suite  # not before `envs`, which chooses how it renders

    walker = suite.load("walker", "walk")
    walker.reset()
    compared = 0
    for _ in range(20):
        batch, _ = replay.sample(config.replay.batch)
        seen = {key: value.double().numpy() for key, value in batch.observation.items()}
        for stream, step in np.argwhere(~batch.is_first[:, 1:].numpy()):
            placed(walker.physics, seen, stream, step)
            reward = sum(walker.step(batch.prev_action[stream, step + 1].numpy()).reward for _ in range(2))
            physics = walker.physics
            expected = [physics.torso_height(), *physics.orientations(), *physics.velocity(), reward]
            found = [seen[key][stream, step + 1] for key in ("height", "orientations", "velocity")]
            found.append(batch.reward[stream, step + 1 : step + 2].numpy())
            np.testing.assert_allclose(np.concatenate(found), expected, rtol=0, atol=1e-4)
            compared += 1
    assert compared > 50
