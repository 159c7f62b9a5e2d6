import json
import pickle
from pathlib import Path

import pytest
import tiny
import torch

from dreamer.checkpoint import CheckpointError, RunFolder, write_atomically
from dreamer.config import make_config
from dreamer.errors import UserMistake
from dreamer.train import Counters, progress, train


class Run:
    """A tiny run and its folder."""

    def __init__(self, path, *settings, capacity=400, **given):
        self.config, self.agent, self.vector, self.replay, self.counters = tiny.tiny_run(
            "ratio=0.5", *settings, capacity=capacity, **given
        )
        self.folder = RunFolder(path)

    def create(self):
        self.folder.create(self.config, self.agent.observation_spec, self.agent.action_spec)
        return self

    def play(self, rows):
        """That many more rows of each stream, and an update now and then."""
        frames = self.counters.rows + rows * self.config.envs
        config = make_config(self.config.task, settings=[], frames=frames)
        config = type(config)(**{**vars(self.config), "frames": frames})
        nothing, never = (lambda: None), (lambda: False)
        train(config, self.agent, self.vector, self.replay, self.counters, tiny.Silent(), nothing, never, never)
        return self

    def save(self):
        sampler = {"sampler": self.replay.generator.get_state()}
        self.folder.save(progress(self.counters, self.agent) | sampler, self.replay)
        return self

    def load(self):
        state = self.folder.load()
        self.agent.load_state_dict(state["agent"])
        self.counters = Counters(**state["counters"])
        self.replay.generator.set_state(state["sampler"])
        self.folder.load_replay(self.replay)
        return self

    @property
    def files(self):
        return sorted(path.name for path in (self.folder.path / "replay").iterdir())


def tensors(value, name=""):
    """All tensors and numbers inside nested containers, by path."""
    if isinstance(value, dict):
        return {key: leaf for k, v in value.items() for key, leaf in tensors(v, f"{name}/{k}").items()}
    if isinstance(value, list | tuple):
        return {key: leaf for k, v in enumerate(value) for key, leaf in tensors(v, f"{name}/{k}").items()}
    return {name: value}


def same_agent(one, other):
    ours, theirs = tensors(one.agent.state_dict()), tensors(other.agent.state_dict())
    assert ours.keys() == theirs.keys() and len(ours) > 100
    for key, value in ours.items():
        assert torch.equal(value, theirs[key]), key
    for mine, yours in zip(one.agent.parameters, other.agent.parameters, strict=True):
        assert torch.equal(mine, yours)


def same_replay(one, other):
    one, other = one.replay, other.replay
    assert (one.count, one.oldest, one.queue) == (other.count, other.oldest, other.queue)
    rows = torch.arange(one.oldest, one.count)
    for key, value in one.data.items():
        assert torch.equal(value[:, rows % one.rows], other.data[key][:, rows % other.rows]), key


# There and back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("envs", [1, 2])
def test_a_run_comes_back_as_it_was(tmp_path, envs):
    run = Run(tmp_path / "run", envs=envs).create().play(40).save()
    assert run.counters.updates >= 2 and run.replay.queue
    again = Run(tmp_path / "run", envs=envs, seed=5)
    assert not torch.equal(again.agent.parameters[0], run.agent.parameters[0])
    again.load()
    assert again.counters == run.counters
    same_agent(run, again)
    same_replay(run, again)
    # The generators too: from here on both do the same.
    one, other = run.replay.sample(2), again.replay.sample(2)
    assert one[1] == other[1]
    mine, yours = run.agent.update(one[0])[1], again.agent.update(other[0])[1]
    assert torch.equal(mine.deter, yours.deter) and torch.equal(mine.stoch, yours.stoch)
    same_agent(run, again)


def test_what_describes_a_run(tmp_path):
    run = Run(tmp_path / "deep" / "run").create()
    assert run.folder.holds_run and not run.folder.has_checkpoint
    assert run.folder.config() == run.config
    assert run.folder.spaces() == (run.agent.observation_spec, run.agent.action_spec)
    versions = json.loads((run.folder.path / "versions.json").read_text())
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"python", "platform", "dreamer", "numpy", "gymnasium"} <= set(versions)
    run.save()
    assert run.folder.has_checkpoint


def test_rows_are_written_once_and_dropped_when_overwritten(tmp_path):
    run = Run(tmp_path, capacity=50).create().play(15).save()
    first = (tmp_path / "replay" / "rows-0-15.pt").stat()
    run.play(15).save().play(15).save()
    assert run.files == ["latents-45.pt", "rows-0-15.pt", "rows-15-30.pt", "rows-30-45.pt"]
    again = (tmp_path / "replay" / "rows-0-15.pt").stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    run.save()
    assert run.files == ["latents-45.pt", "rows-0-15.pt", "rows-15-30.pt", "rows-30-45.pt"]
    run.play(15).save()  # rows 10..59 are held
    assert "rows-0-15.pt" in run.files
    same_replay(run, Run(tmp_path, capacity=50).load())
    run.play(4).save()  # rows 14..63 are held: one of the first file
    assert "rows-0-15.pt" in run.files
    run.play(1).save()
    assert "rows-0-15.pt" not in run.files
    run.play(10).save()  # rows 25..74 are held
    pieces = ["rows-15-30.pt", "rows-30-45.pt", "rows-45-60.pt", "rows-60-64.pt", "rows-64-65.pt", "rows-65-75.pt"]
    assert run.files == ["latents-75.pt", *pieces]
    same_replay(run, Run(tmp_path, capacity=50).load())
    run.play(70).save()  # all that was saved before is overwritten, and some that never was
    assert run.files == ["latents-145.pt", "rows-95-145.pt"]
    same_replay(run, Run(tmp_path, capacity=50).load())


def test_a_run_that_was_continued_can_be_saved_and_continued_again(tmp_path):
    Run(tmp_path, capacity=30).create().play(20).save()
    second = Run(tmp_path, capacity=30).load().play(20).save()
    # The environments began anew, so the last row before is an end.
    places = [row % 30 for row in range(18, 22)]
    assert second.replay.data["is_first"][0, places].tolist()[2]
    assert second.replay.data["is_last"][0, places].tolist()[1]
    third = Run(tmp_path, capacity=30).load()
    same_replay(second, third)
    same_agent(second, third)


def test_a_larger_replay_does_not_serve_rows_that_were_lost(tmp_path):
    run = Run(tmp_path, capacity=30).create().play(70).save()
    larger = Run(tmp_path, capacity=300)
    for value in larger.replay.data.values():
        value.fill_(1)
    larger.load()
    same_replay(run, larger)
    larger.replay.queue.clear()
    batch, _ = larger.replay.sample(200)
    assert set(batch.observation["where"][..., 1].flatten().tolist()) == set(range(41, 70))


def test_the_same_weights_can_be_read_without_the_replay(tmp_path):
    run = Run(tmp_path).create().play(30).save()
    for path in (tmp_path / "replay").iterdir():
        path.unlink()
    again = Run(tmp_path)
    again.agent.load_state_dict(again.folder.load()["agent"])
    same_agent(run, again)


# Interrupted ---------------------------------------------------------------------------------------------


def fail_at(monkeypatch, name):
    """Writing a file whose name begins so gets half way and fails."""
    real = torch.save

    def save(data, target):
        if Path(target.name).name.startswith(name):
            target.write(b"half")
            raise OSError(28, "No space left on device")
        real(data, target)

    monkeypatch.setattr(torch, "save", save)


@pytest.mark.parametrize("name", ["rows", "latents", "checkpoint"])
def test_an_interrupted_save_leaves_the_last_checkpoint(tmp_path, monkeypatch, name):
    run = Run(tmp_path, capacity=50).create().play(30).save()
    expected = Run(tmp_path, capacity=50).load()
    with monkeypatch.context() as patch:
        fail_at(patch, name)
        with pytest.raises(OSError, match="No space"):
            run.play(30).save()
    assert Run(tmp_path, capacity=50).folder.load()["counters"]["rows"] == 30
    again = Run(tmp_path, capacity=50).load()
    same_agent(expected, again)
    same_replay(expected, again)
    # What the interrupted save left behind does not get in the way of other rows with the same numbers.
    again.play(35).save()
    same_replay(again, Run(tmp_path, capacity=50).load())


def test_a_first_save_that_was_interrupted_does_no_harm(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, "checkpoint")
        with pytest.raises(OSError, match="No space"):
            Run(tmp_path).create().play(30).save()
    assert not RunFolder(tmp_path).has_checkpoint
    # So the run begins anew in this folder, with other rows.
    run = Run(tmp_path, seed=3).create().play(20).save()
    same_replay(run, Run(tmp_path).load())
    run.play(20).save()
    same_replay(run, Run(tmp_path).load())


def test_files_are_replaced_whole(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(target):
        assert target != path and target.parent == path.parent
        target.write_text("new")
        assert path.read_text() == "old"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert path.read_text() == "old"
    write_atomically(path, lambda target: target.write_text("newer") and None)
    assert path.read_text() == "newer"
    assert [child.name for child in tmp_path.iterdir()] == ["file"]


# Damaged or foreign --------------------------------------------------------------------------------------


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def harmful(path, content):
    """A checkpoint that would create a file if what it holds were executed."""
    mark = path.parent / "executed"
    content(path, Trap(mark))
    return mark


@pytest.mark.parametrize(
    "content",
    [
        lambda path, trap: torch.save({"version": 1, "state": trap, "replay": {}}, path),
        lambda path, trap: torch.save(trap, path, _use_new_zipfile_serialization=False),
        lambda path, trap: path.write_bytes(pickle.dumps(trap)),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_not_executed(tmp_path, content):
    run = Run(tmp_path).create()
    mark = harmful(tmp_path / "checkpoint.pt", content)
    with pytest.raises(CheckpointError, match="checkpoint.pt is not a readable checkpoint") as error:
        run.folder.load()
    assert "\n" not in str(error.value)
    assert not mark.exists()


def test_code_in_saved_rows_is_not_executed(tmp_path):
    run = Run(tmp_path).create().play(10).save()
    mark = harmful(tmp_path / "replay" / "rows-0-10.pt", lambda path, trap: torch.save({"reward": trap}, path))
    with pytest.raises(CheckpointError, match="rows-0-10.pt"):
        run.folder.load_replay(run.replay)
    assert not mark.exists()


def broken(content, length):
    """Ways in which a file can be wrong."""
    yield b""
    for part in (1, 10, length // 3, length // 2, length - 100, length - 1):
        yield content[:part]
    yield b"hello"
    yield b"{}"
    yield b"\x80\x02."
    yield b"\x80\x04\x95"
    yield b"PK\x03\x04" + b"\0" * 50
    yield pickle.dumps({"version": 1})
    yield pickle.dumps([1, 2])
    yield bytes(range(256)) * 4
    for first in b"()]}.0NctRbusj\x80\x85\x94":
        yield bytes([first]) * 3
        yield b"\x80\x02" + bytes([first]) + b"."


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_is_a_plain_error(tmp_path):
    run = Run(tmp_path).create().play(12).save()
    path = tmp_path / "checkpoint.pt"
    content = path.read_bytes()
    for wrong in broken(content, len(content)):
        path.write_bytes(wrong)
        with pytest.raises(CheckpointError, match="checkpoint.pt") as error:
            run.folder.load()
        assert "\n" not in str(error.value), wrong[:20]


@pytest.mark.parametrize("content", [5, [1], {}, {"model": {}}, {"version": 1}, {"version": 1, "state": {}}, None])
def test_a_foreign_checkpoint_is_a_plain_error(tmp_path, content):
    run = Run(tmp_path).create()
    torch.save(content, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match="was not written by this program"):
        run.folder.load()
    with pytest.raises(CheckpointError, match="was not written by this program"):
        run.folder.load_replay(run.replay)


def test_a_checkpoint_of_another_version_says_so(tmp_path):
    run = Run(tmp_path).create()
    torch.save({"version": 99, "state": {}, "replay": {}}, tmp_path / "checkpoint.pt")
    with pytest.raises(CheckpointError, match=r"has format 99, this program reads 1.*versions\.json"):
        run.folder.load()


@pytest.mark.parametrize("missing", ["checkpoint.pt", "replay/latents-45.pt"])
def test_a_missing_file_is_named(tmp_path, missing):
    run = Run(tmp_path).create().play(45).save()
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=missing.rpartition("/")[2] + " is missing"):
        run.folder.load_replay(run.replay)


@pytest.mark.parametrize("missing", ["rows-0-15.pt", "rows-15-30.pt", "rows-30-45.pt"])
def test_missing_rows_are_not_replaced_by_others(tmp_path, missing):
    Run(tmp_path).create().play(15).save().play(15).save().play(15).save()
    (tmp_path / "replay" / missing).unlink()
    again = Run(tmp_path)
    for value in again.replay.data.values():
        value.fill_(1)
    try:
        again.load()
    except CheckpointError as error:
        assert "rows" in str(error)
    else:  # the oldest may be missing: then the rest is served
        assert missing == "rows-0-15.pt" and again.replay.oldest == 15
        same = again.replay.sample(100)[0].observation["where"][..., 1]
        assert set(same.flatten().tolist()) <= set(range(16, 45))


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give the folder of a run"):
        RunFolder(tmp_path / "file")
    with pytest.raises(CheckpointError, match="cannot write to .*; give another --run"):
        Run(tmp_path / "file" / "run").create()


def test_a_folder_without_a_run(tmp_path):
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(CheckpointError, match="holds no run"):
            RunFolder(path).config()


@pytest.mark.parametrize("name", ["config.json", "spaces.json"])
@pytest.mark.parametrize("content", ["", "{", '{"task": ', "\x00\x00", "5", "null", "[]", "{}", '{"model": 5}'])
def test_damaged_json_is_a_plain_error(tmp_path, name, content):
    run = Run(tmp_path).create()
    (tmp_path / name).write_text(content)
    with pytest.raises(UserMistake) as error:
        run.folder.config() if name == "config.json" else run.folder.spaces()
    assert "\n" not in str(error.value)
