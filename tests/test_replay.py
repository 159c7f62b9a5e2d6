import math
from collections import Counter, deque

import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamer.errors import UserMistake
from dreamer.loop import train
from dreamer.replay import Replay, Window, row_bytes
from dreamer.rssm import State
from dreamer.spaces import ObservationSpec


def served(replay, batch):
    """The windows of a sample, after a look at every row of it."""
    sample, windows = replay.sample(batch)
    assert len(windows) == batch
    for i, (stream, start) in enumerate(windows):
        steps = torch.arange(start + 1, start + 1 + replay.length).float()
        assert replay.oldest <= start <= replay.count - replay.length - 1
        assert sample.observation["id"][i, :, 0].tolist() == [stream] * replay.length
        assert torch.equal(sample.observation["id"][i, :, 1], steps)
        assert torch.equal(sample.reward[i], steps + 0.25)
        assert torch.equal(sample.prev_action[i], torch.stack([steps - 0.5, 1 - steps], 1))
        assert sample.start.deter[i].tolist() == [start + 0.125] * tiny.DETER
        assert sample.start.stoch[i].argmax(-1).tolist() == [start % tiny.CLASSES, (start + 1) % tiny.CLASSES]
    return windows


# From the environment to the batch -----------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
def test_action_observation_and_reward_belong_together(count):
    lengths, really = (3, 5, 1, 2), (True, False, True, False)
    # So large a batch that no update comes: the latents stay those of acting.
    config, agent, vector, replay, counters = tiny.tiny_run("replay.batch=300", envs=count, frames=60 * count)
    train(config, agent, vector, replay, counters, [tiny.Silent()], tiny.Unsaved(), tiny.never)
    assert replay.count == 60 and counters.updates == 0
    batch, windows = replay.sample(400)
    assert {(w.stream, w.start) for w in windows} >= {(s, t) for s in range(count) for t in (0, 30, 55)}
    where = batch.observation["where"].numpy()
    seen = Counter()
    for i, window in enumerate(windows):
        for t in range(config.replay.length):
            stream, row, episode, step, act, *move = where[i, t]
            kind, previous = int(episode) % 4, batch.prev_action[i, t]
            assert (stream, row) == (window.stream, window.start + 1 + t)
            assert bool(batch.is_first[i, t]) == (step == 0)
            assert bool(batch.is_last[i, t]) == (step == lengths[kind])
            assert bool(batch.is_terminal[i, t]) == (step == lengths[kind] and really[kind])
            if step == 0:
                assert batch.reward[i, t] == 0 and not previous.any()
            else:
                # The flat action holds sorted keys: `act`, one-hot of 4, then `move`, 2 numbers.
                assert previous[:4].tolist() == [float(n == act) for n in range(4)]
                assert previous[4:].clamp(-1, 1).tolist() == move
                assert batch.reward[i, t] == act + 1
            seen[int(act)] += 1
    assert set(seen) == {-1, 0, 1, 2, 3}

    # deter follows from the row before alone: its latents and its action, or zeros at a reset.
    uniform = torch.rand(400, config.replay.length, config.model.stoch)
    deter = agent.world_model.observe(batch, uniform)[0].deter[:, 0]
    stored = torch.stack([replay.data["deter"][w.stream, w.start + 1] for w in windows])
    torch.testing.assert_close(deter, stored.float(), rtol=0, atol=2**-11)  # half precision
    assert (stored[batch.is_first[:, 0]] - stored[batch.is_first[:, 0]][:1]).abs().max() < 1e-6
    assert stored.std(0).min() > 1e-3


# Which windows -------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_windows_are_whole_and_fresh_ones_come_first_and_once(data):
    streams, length = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 5))
    capacity = data.draw(st.integers(streams * (length + 1), streams * 24))
    replay = tiny.id_replay(streams, capacity, length, seed=data.draw(st.integers(0, 99)))
    assert replay.rows == capacity // streams
    fresh: deque = deque()
    for count in range(1, data.draw(st.integers(1, 60)) + 1):
        replay.add(tiny.id_row(streams, count - 1))
        if count % (length + 1) == 0:
            fresh.extend((stream, count - length - 1) for stream in range(streams))
        starts = range(max(0, count - replay.rows), count - length)
        assert replay.starts == streams * len(starts)
        if starts and data.draw(st.integers(0, 3)) == 0:
            windows, expected = served(replay, data.draw(st.integers(1, 6))), []
            while fresh and len(expected) < len(windows):
                window = fresh.popleft()
                expected += [window] if window[1] >= starts[0] else []
            assert [tuple(window) for window in windows[: len(expected)]] == expected
            assert all(window.start in starts and 0 <= window.stream < streams for window in windows)


def test_fresh_windows_are_disjoint_and_cover_each_stream():
    replay = tiny.fill(tiny.id_replay(streams=2, length=3), 13)
    windows = [tuple(window) for window in served(replay, 6)]
    assert windows == [(0, 0), (1, 0), (0, 4), (1, 4), (0, 8), (1, 8)]
    assert not replay.queue  # row 12 waits for three more


def test_fresh_windows_already_overwritten_are_dropped():
    replay = tiny.fill(tiny.id_replay(capacity=10, length=3), 17)
    # Of the windows 0, 4, 8 and 12 only the last two are still whole: rows 7..16 are held.
    assert [window.start for window in served(replay, 2)] == [8, 12]
    assert not replay.queue


def test_a_row_on_the_brink_is_still_served():
    replay = tiny.fill(tiny.id_replay(capacity=8, length=3), 8)
    assert served(replay, 1) == [Window(0, 0)]
    replay = tiny.fill(tiny.id_replay(capacity=8, length=3), 9)
    assert served(replay, 1) == [Window(0, 4)]


def test_the_rest_is_uniform_over_all_starts_of_all_streams():
    replay = tiny.fill(tiny.id_replay(streams=3, capacity=3 * 20, length=4), 47)
    replay.queue.clear()
    draws = 16_000
    counts = Counter(map(tuple, (window for _ in range(4) for window in served(replay, draws // 4))))
    expected = {(stream, start) for stream in range(3) for start in range(27, 43)}
    assert set(counts) == expected and len(expected) == replay.starts == 48
    mean = draws / len(expected)
    chi_square = sum((count - mean) ** 2 / mean for count in counts.values())
    # 47 degrees of freedom: mean 47, standard deviation 9.7.
    assert chi_square < 47 + 4 * math.sqrt(2 * 47)


def test_uniform_draws_cross_the_ends_of_episodes():
    replay = tiny.id_replay(length=4)
    for row in range(20):
        replay.add(tiny.id_row(1, row, is_first=[row % 3 == 0]))
    replay.queue.clear()
    assert {window.start for window in served(replay, 400)} == set(range(16))


def test_the_generator_decides():
    def starts(seed):
        replay = tiny.fill(tiny.id_replay(seed=seed), 60)
        replay.queue.clear()
        return [window.start for window in served(replay, 20)]

    assert starts(1) == starts(1) != starts(2)


def test_a_sample_is_a_copy():
    replay = tiny.fill(tiny.id_replay(capacity=10), 10)
    batch, windows = replay.sample(2)
    before = [value.clone() for value in (batch.observation["id"], *batch[1:6], *batch.start)]
    tiny.fill(replay, 10, first=10)
    replay.refresh(windows, latents(len(windows), 4, 9))
    after = (batch.observation["id"], *batch[1:6], *batch.start)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


# Latents -------------------------------------------------------------------------------------------------


def latents(batch, length, value):
    """Posteriors (B, T) with deter `value` + b + t / 4 and all classes `value` % K."""
    deter = value + torch.arange(batch).view(-1, 1, 1) + torch.arange(length).view(1, -1, 1) / 4
    stoch = torch.eye(tiny.CLASSES)[torch.full((batch, length, tiny.STOCH), value % tiny.CLASSES)]
    return State(deter.expand(batch, length, tiny.DETER), stoch)


def test_latents_of_rows_1_to_t_are_overwritten_and_no_others():
    replay = tiny.fill(tiny.id_replay(streams=2, length=4), 30)
    before = {key: value.clone() for key, value in replay.data.items()}
    replay.refresh([Window(1, 10)], latents(1, 4, 100))
    replay.settle()
    expected = before["deter"].clone()
    expected[1, 11:15] = torch.tensor([100.0, 100.25, 100.5, 100.75]).half().unsqueeze(1)
    assert torch.equal(replay.data["deter"][:, :30], expected[:, :30])
    classes = before["stoch"].clone()
    classes[1, 11:15] = 100 % tiny.CLASSES
    assert torch.equal(replay.data["stoch"][:, :30], classes[:, :30])
    for key in set(before) - {"deter", "stoch"}:
        assert torch.equal(replay.data[key][:, :30], before[key][:, :30]), key


def test_of_overlapping_windows_the_last_one_counts():
    replay = tiny.fill(tiny.id_replay(length=4), 30)
    replay.refresh([Window(0, 10), Window(0, 12), Window(0, 11)], latents(3, 4, 100))
    replay.settle()
    written = replay.data["deter"][0, 10:18, 0].tolist()
    assert written == pytest.approx([10.125, 100, 102, 102.25, 102.5, 102.75, 101.75, 17.125])


@pytest.mark.parametrize(
    "look",
    [
        lambda replay: replay.sample(1),
        lambda replay: replay.export_latents(0, 30),
        lambda replay: replay.refresh([Window(0, 20)], latents(1, 4, 7)),
    ],
    ids=["sample", "export", "refresh"],
)
def test_a_refresh_waits_for_nothing_until_somebody_looks(monkeypatch, look):
    waited = []

    def fetch(values, device):
        return lambda: waited.append(len(waited)) or values

    monkeypatch.setattr("dreamer.replay.fetch", fetch)
    replay = tiny.fill(tiny.id_replay(length=4), 30)
    latent = latents(1, 4, 100)
    replay.refresh([Window(0, 10)], latent)
    assert not waited
    look(replay)
    assert waited == [0] and replay.data["deter"][0, 11:15, 0].tolist() == [100, 100.25, 100.5, 100.75]
    replay.settle()
    replay.settle()
    assert len(waited) <= 2  # once for each refresh


def test_rows_are_added_while_latents_are_on_their_way():
    """A ring of 10 rows, of which 8 to 17 are held; four more overwrite 8 to 11, two of which were refreshed."""
    replay = tiny.fill(tiny.id_replay(capacity=10, length=4), 18)
    replay.refresh([Window(0, 9)], latents(1, 4, 50))  # rows 10, 11, 12, 13
    tiny.fill(replay, 4, first=18)
    added = replay.data["deter"][0, [8, 9, 0, 1], 0].tolist()
    assert added == pytest.approx([18.125, 19.125, 20.125, 21.125])
    replay.settle()
    assert replay.data["deter"][0, [8, 9, 0, 1], 0].tolist() == added
    assert replay.data["deter"][0, [2, 3, 4], 0].tolist() == pytest.approx([50.5, 50.75, 14.125])


def test_latents_are_refreshed_across_the_seam_and_served_afterwards():
    replay = tiny.fill(tiny.id_replay(capacity=10, length=4), 18)
    replay.refresh([Window(0, 8)], latents(1, 4, 50))  # rows 9, 10, 11, 12 lie at 9, 0, 1, 2
    replay.settle()
    assert replay.data["deter"][0, [8, 9, 0, 1, 2, 3], 0].tolist() == pytest.approx(
        [8.125, 50, 50.25, 50.5, 50.75, 13.125]
    )
    replay.queue = deque([Window(0, 11)])
    batch, _ = replay.sample(1)
    assert batch.start.deter[0].tolist() == pytest.approx([50.5] * tiny.DETER)
    assert batch.start.stoch[0].argmax(-1).tolist() == [50 % tiny.CLASSES] * 2


def test_an_update_refreshes_what_it_has_seen():
    config, agent, vector, replay, counters = tiny.tiny_run(frames=200)
    train(config, agent, vector, replay, counters, [tiny.Silent()], tiny.Unsaved(), tiny.never)
    replay.settle()
    before = replay.data["deter"].clone()
    batch, windows = replay.sample(2)
    _, posterior = agent.update(batch)
    replay.refresh(windows, posterior)
    replay.settle()
    places = {(w.stream, w.start + 1 + t) for w in windows for t in range(4)}
    changed = (replay.data["deter"] != before)[:, : replay.count].any(-1).nonzero().tolist()
    # A row right after a reset depends on nothing but the weights, so it may stay as it was; the others move.
    assert set(map(tuple, changed)) <= places and len(changed) >= 4


# Rows ----------------------------------------------------------------------------------------------------


def test_the_row_before_a_reset_is_last():
    replay = tiny.id_replay(streams=2, capacity=2 * 6, length=3)
    for row in range(20):
        replay.add(tiny.id_row(2, row, is_first=[row == 18, row in (0, 16, 17)]))
    # Rows 14..19 lie at 2, 3, 4, 5, 0, 1.
    order = [2, 3, 4, 5, 0, 1]
    assert replay.data["is_last"][0, order].tolist() == [False, False, False, True, False, False]
    assert replay.data["is_last"][1, order].tolist() == [False, True, True, False, False, False]
    assert not replay.data["is_terminal"].any()


def test_the_bytes_of_a_row():
    integers = {"card": (4, 9), "page": (300,)}
    spec = ObservationSpec(images={"image": (48, 64, 3)}, floats={"speed": 5}, integers=integers)
    expected = 48 * 64 * 3 + 4 * 5 + 2 + 4 + 4 * 6 + 4 + 3 + 2 * 16 + 2
    assert row_bytes(spec, action_width=6, deter=16, stoch=2) == expected
    replay = Replay(spec, 6, (16, 2, 3), 2, 40, 4, torch.Generator())
    held = sum(value.numel() * value.element_size() for value in replay.data.values())
    assert held == 40 * expected
    assert replay.data["observation/image"].dtype == torch.uint8


def test_latents_may_come_in_another_precision():
    """As replays had them that were saved before."""
    replay = tiny.fill(tiny.id_replay(), 30)
    saved = {key: value.float() for key, value in replay.export_latents(10, 20).items()}
    replay.data["deter"][:] = 0
    replay.put(10, saved)
    assert replay.data["deter"][0, 9:21, 0].tolist() == [0, *(row + 0.125 for row in range(10, 20)), 0]


@pytest.mark.parametrize(("streams", "capacity"), [(1, 4), (3, 14), (8, 7)])
def test_too_small_a_capacity_is_a_plain_error(streams, capacity):
    with pytest.raises(UserMistake, match=rf"raise replay.capacity to at least {streams * 5}\b"):
        tiny.id_replay(streams, capacity, length=4)
    tiny.id_replay(streams, streams * 5, length=4)


def test_a_blank_batch_is_like_a_sampled_one():
    spec = ObservationSpec(images={"image": (48, 48, 1)}, floats={"speed": 5}, integers={"card": (4, 9)})
    replay = Replay(spec, 6, (16, 2, 3), 1, 40, 4, torch.Generator())
    for value in replay.data.values():
        value.zero_()
    replay.count = 30
    for one, other in zip(flat(replay.sample(3)[0]), flat(replay.blank(3)), strict=True):
        assert one.shape == other.shape and one.dtype == other.dtype
        assert one.is_contiguous() and other.is_contiguous()  # compiled code asks for the same strides
        assert not other[1:].float().sum() or other.shape == (3, 2, 3)  # one-hots are never all zero
    assert replay.blank(3).observation["card"].dtype == torch.int64


def flat(batch):
    return [*batch.observation.values(), *batch[1:6], *batch.start]


# Saving --------------------------------------------------------------------------------------------------


def contents(replay):
    """All that is held, oldest row first."""
    places = torch.arange(replay.oldest, replay.count) % replay.rows
    return {key: value[:, places] for key, value in replay.data.items()}


def same(one, other):
    assert (one.count, one.oldest, one.starts, one.queue) == (other.count, other.oldest, other.starts, other.queue)
    assert contents(one).keys() == contents(other).keys()
    for key, value in contents(one).items():
        assert torch.equal(value, contents(other)[key]), key


def load(replay, state, *pieces):
    """All that was saved, pieces that end at the last row."""
    replay.load_state_dict(state)
    firsts = [replay.count - next(iter(piece.values())).shape[1] for piece in pieces]
    for first, piece in zip(firsts, pieces):
        replay.put(first, piece)
    replay.hold_from(max(firsts))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 3), st.integers(5, 20), st.integers(1, 60), st.integers(0, 59), st.lists(st.booleans(), min_size=60)
)
def test_rows_saved_in_pieces_come_back(streams, rows, count, cut, firsts):
    replay = tiny.id_replay(streams, streams * rows)
    cut, piece, rest = min(cut, count), {}, {}
    for row in range(count):
        if row == cut:
            piece = replay.export_rows(replay.oldest, replay.count)
        replay.add(tiny.id_row(streams, row, is_first=[firsts[row]] * streams))
    start = max(cut, replay.oldest) if piece else replay.oldest
    rest = replay.export_rows(start, replay.count)
    saved = {key: torch.cat([piece[key], rest[key]], 1) for key in rest} if piece else rest
    assert set(rest) == {"observation/id", "action", "reward", "is_first", "is_last", "is_terminal"}
    assert {key: value.shape[1] for key, value in replay.export_latents(replay.oldest, replay.count).items()} == {
        "deter": min(rows, count),
        "stoch": min(rows, count),
    }
    if piece and start > cut:
        saved = rest  # what lies between was overwritten
    loaded = tiny.id_replay(streams, streams * rows)
    load(loaded, replay.state_dict(), saved, replay.export_latents(replay.oldest, replay.count))
    same(replay, loaded)
    for other in (replay, loaded):
        other.generator.manual_seed(7)
        tiny.fill(other, 8, first=count)
    same(replay, loaded)
    assert served(replay, 5) == served(loaded, 5)


def test_an_end_that_was_found_out_after_its_row_was_saved_comes_back():
    replay = tiny.fill(tiny.id_replay(), 10)
    saved = replay.export_rows(0, replay.count)
    assert not saved["is_last"].any()
    replay.add(tiny.id_row(1, 10, is_first=[True]))
    saved = {key: torch.cat([value, replay.export_rows(10, replay.count)[key]], 1) for key, value in saved.items()}
    loaded = tiny.id_replay()
    load(loaded, replay.state_dict(), saved, replay.export_latents(replay.oldest, replay.count))
    assert loaded.data["is_last"][0, :11].tolist() == [False] * 9 + [True, False]


@pytest.mark.parametrize("rows", [7, 11, 200])
def test_a_ring_of_another_length_holds_what_both_can(rows):
    replay = tiny.fill(tiny.id_replay(streams=2, capacity=2 * 10), 33)  # holds rows 23..32
    loaded = tiny.id_replay(streams=2, capacity=2 * rows)
    for value in loaded.data.values():
        value.fill_(77)
    load(
        loaded,
        replay.state_dict(),
        replay.export_rows(replay.oldest, replay.count),
        replay.export_latents(replay.oldest, replay.count),
    )
    held = min(rows, 10)
    assert loaded.oldest == 33 - held and loaded.starts == 2 * (held - 4)
    served(loaded, 50)
    tiny.fill(loaded, 60, first=33)
    assert loaded.oldest == 93 - min(rows, 10 + 60)
    served(loaded, 300)
