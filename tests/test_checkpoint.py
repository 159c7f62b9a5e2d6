import hashlib
import itertools
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch

from dreamer import checkpoint, snapshot
from dreamer.checkpoint import CheckpointError, RunFolder, arrays, plain, write_atomically, write_tensors
from dreamer.config import make_config
from dreamer.errors import UserMistake
from dreamer.loop import Counters, train


class Run:
    """A tiny run and its folder."""

    def __init__(self, path, *settings, capacity=400, **given):
        self.config, self.agent, self.vector, self.replay, self.counters = tiny.tiny_run(
            "ratio=0.5", *settings, capacity=capacity, **given
        )
        self.folder = RunFolder(path)

    def create(self):
        self.folder.describe(self.config, self.agent.observation_spec, self.agent.action_spec)
        return self

    def play(self, rows):
        """That many more rows of each stream, and an update now and then."""
        frames = self.counters.rows + rows * self.config.envs
        config = make_config(self.config.task, settings=[], frames=frames)
        config = type(config)(**{**vars(self.config), "frames": frames})
        observers = [tiny.Silent()]
        train(config, self.agent, self.vector, self.replay, self.counters, observers, tiny.Unsaved(), tiny.never)
        return self

    def save(self):
        state = snapshot.take(self.agent, self.replay, self.counters, tiny.Silent(), self.vector, None)
        self.folder.save(state, self.replay)
        return self

    def load(self):
        said = []
        checkpoint = self.create().folder.resume(said.append)
        self.said = said
        state = checkpoint.state()
        checkpoint.fill(self.replay)
        assert snapshot.restore(state, self.agent, self.replay, tiny.Silent(), self.vector) is None
        self.counters = Counters(**state["counters"])
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


def test_rows_are_written_once_and_dropped_when_no_checkpoint_needs_them(tmp_path):
    run = Run(tmp_path, capacity=50).create().play(15).save()
    assert run.files == ["latents-15-0-15.pt", "rows-0-15.pt"]
    first = (tmp_path / "replay" / "rows-0-15.pt").stat()
    run.play(15).save().play(15).save()
    assert run.files == ["latents-30-0-30.pt", "latents-45-0-45.pt", "rows-0-15.pt", "rows-15-30.pt", "rows-30-45.pt"]
    assert sorted(path.name for path in tmp_path.glob("state-*")) == ["state-30.pt", "state-45.pt"]
    again = (tmp_path / "replay" / "rows-0-15.pt").stat()
    assert (first.st_ino, first.st_mtime_ns) == (again.st_ino, again.st_mtime_ns)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    run.save()  # nothing has happened since
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.*")}
    run.play(15).save()  # rows 10..59 are held
    assert "rows-0-15.pt" in run.files
    same_replay(run, Run(tmp_path, capacity=50).load())
    run.play(5).save()  # rows 15..64 are held, but the checkpoint before needs 10..14
    assert "rows-0-15.pt" in run.files
    run.play(1).save()
    assert "rows-0-15.pt" not in run.files
    same_replay(run, Run(tmp_path, capacity=50).load())
    run.play(70).save()  # all that was saved before is overwritten, and some that never was
    assert {"latents-136-86-136.pt", "rows-86-136.pt"} < set(run.files)
    same_replay(run, Run(tmp_path, capacity=50).load())
    run.play(1).save()
    assert run.files == ["latents-136-86-136.pt", "latents-137-87-137.pt", "rows-136-137.pt", "rows-86-136.pt"]


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
    again.agent.load_state_dict(again.folder.newest().state()["agent"])
    same_agent(run, again)


def test_a_run_that_was_shared_without_its_replay_cannot_be_trained_on(tmp_path):
    Run(tmp_path).create().play(30).save()
    shutil.rmtree(tmp_path / "replay")
    assert RunFolder(tmp_path).newest().rows
    with pytest.raises(CheckpointError, match="has no replay/, so its agent can act but not train on: evaluate it"):
        RunFolder(tmp_path).newest(with_replay=True)
    (tmp_path / "state-30.pt").write_bytes(b"")  # another matter
    with pytest.raises(CheckpointError, match="state-30.pt is damaged"):
        RunFolder(tmp_path).newest()


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


@pytest.mark.parametrize("name", ["replay/rows", "replay/latents", "state"])
def test_an_interrupted_save_leaves_the_last_checkpoint(tmp_path, monkeypatch, name):
    run = Run(tmp_path, capacity=50).create().play(30).save()
    expected, files = Run(tmp_path, capacity=50).load(), run.files
    with monkeypatch.context() as patch:
        fail_at(patch, name.rpartition("/")[2])
        with pytest.raises(OSError, match="No space"):
            run.play(30).save()
    assert run.files == files, "what cannot be used takes no place on a full disk"
    again = Run(tmp_path, capacity=50).load()
    assert again.counters.rows == 30 and not again.said
    same_agent(expected, again)
    same_replay(expected, again)
    again.play(35).save()
    same_replay(again, Run(tmp_path, capacity=50).load())


def test_the_run_goes_on_after_a_save_that_failed(tmp_path, monkeypatch):
    run = Run(tmp_path).create().play(30).save()
    with monkeypatch.context() as patch:
        fail_at(patch, "state")
        with pytest.raises(OSError, match="No space"):
            run.play(30).save()
    run.play(10).save()
    again = Run(tmp_path).load()
    assert again.counters.rows == 70
    same_replay(run, again)


def copies(run, monkeypatch):
    """The folder as a process that is killed before each renaming of a file, and after the last, leaves it."""
    real, folder, number = Path.replace, run.folder.path, itertools.count()

    def replace(source, target):
        shutil.copytree(folder, folder.with_name(f"killed {next(number)}"))
        return real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        run.save()
    return sorted(folder.parent.glob("killed *")) + [folder]


def test_killed_at_any_moment_of_a_save(tmp_path, monkeypatch):
    run = Run(tmp_path / "run", capacity=50).create().play(20).save().play(20).save()
    before = Run(tmp_path / "run", capacity=50).load()
    folders = copies(run.play(20), monkeypatch)
    assert len(folders) == 6  # rows, latents, state, the lists of both checkpoints; and done
    for folder in folders:
        again = Run(folder, capacity=50).load()
        expected = run if folder == folders[-1] else before
        assert not again.said and again.counters == expected.counters
        same_agent(expected, again)
        same_replay(expected, again)
        again.play(25).save().play(25).save()
        same_replay(again, Run(folder, capacity=50).load())
        assert not list(folder.rglob("*.partial"))


def test_a_first_save_that_was_interrupted_does_no_harm(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_at(patch, "state")
        with pytest.raises(OSError, match="No space"):
            Run(tmp_path).create().play(30).save()
    assert not RunFolder(tmp_path).has_checkpoint
    assert RunFolder(tmp_path).resume(print) is None
    # So the run begins anew in this folder, with other rows.
    run = Run(tmp_path, seed=3).create().play(20).save()
    same_replay(run, Run(tmp_path).load())
    run.play(20).save()
    same_replay(run, Run(tmp_path).load())


def test_a_folder_that_is_removed_is_written_anew(tmp_path):
    run = Run(tmp_path / "run", capacity=50).create().play(40).save()
    shutil.rmtree(tmp_path / "run")
    run.play(30).save()
    again = Run(tmp_path / "run", capacity=50).load()
    assert again.folder.config() == run.config
    same_replay(run, again)
    same_agent(run, again)


def test_a_folder_can_be_moved(tmp_path):
    run = Run(tmp_path / "here").create().play(40).save()
    shutil.move(tmp_path / "here", tmp_path / "there")
    same_replay(run, Run(tmp_path / "there").load())


def test_one_process_at_a_time(tmp_path):
    with RunFolder(tmp_path / "run").lock():
        second = RunFolder(tmp_path / "run").lock()
        with pytest.raises(CheckpointError, match=rf"is in use: process {os.getpid()} on .* trains there; stop it"):
            second.__enter__()
        with RunFolder(tmp_path / "other").lock():
            pass
    with RunFolder(tmp_path / "run").lock():
        pass


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


def sign(folder, name):
    """Make a file the one that the newest checkpoint names."""
    path = folder / "checkpoint.json"
    manifest = json.loads(path.read_text())
    manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "content",
    [
        lambda path, trap: torch.save({"state": trap, "replay": {}}, path),
        lambda path, trap: torch.save(trap, path, _use_new_zipfile_serialization=False),
        lambda path, trap: path.write_bytes(pickle.dumps(trap)),
    ],
)
@pytest.mark.parametrize("name", ["state-10.pt", "replay/rows-0-10.pt", "replay/latents-10-0-10.pt"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_code_in_a_checkpoint_is_not_executed(tmp_path, name, content):
    run = Run(tmp_path).create().play(10).save()
    mark = harmful(tmp_path / name, content)
    sign(tmp_path, name)
    checkpoint = RunFolder(tmp_path).newest(with_replay=True)
    with pytest.raises(CheckpointError, match=f"{name} is not a readable checkpoint") as error:
        checkpoint.state()
        checkpoint.fill(run.replay)
    assert "\n" not in str(error.value)
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


@pytest.mark.parametrize(
    "name", ["state-24.pt", "replay/rows-12-24.pt", "replay/latents-24-0-24.pt", "checkpoint.json"]
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(tmp_path, name):
    run = Run(tmp_path).create().play(12).save()
    before = Run(tmp_path).load()
    run.play(12).save()
    path = tmp_path / name
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for wrong in (*broken(content.rstrip(), len(content.rstrip())), bytes(flipped)):
        path.write_bytes(wrong)
        said = []
        found = RunFolder(tmp_path).newest(with_replay=True, say=said.append)
        assert found.state()["counters"]["rows"] == 12, wrong[:20]
        assert len(said) == 1 and "the checkpoint before it is used" in said[0]
        assert str(path) in said[0] or path.name == "checkpoint.json", "a wrong hash looks like a wrong file"
        assert "\n" not in said[0]
    path.unlink()
    again = Run(tmp_path).load()
    same_agent(before, again)
    same_replay(before, again)
    # From here on the damaged one is not taken for the one before.
    again.play(12).save()
    (tmp_path / "state-24.pt").write_bytes(b"")
    assert Run(tmp_path).load().counters.rows == 12
    # The replay is not needed to act.
    (tmp_path / "replay" / "rows-0-12.pt").unlink()
    assert RunFolder(tmp_path).newest(say=said.append).state()["counters"]["rows"] == 12
    # What is left of the older one are its weights.
    again = Run(tmp_path).load()
    assert again.replay.oldest == again.replay.count == 12 and again.replay.starts == 0
    assert "the rows up to row 12 of each environment are lost" in again.said[0]
    again.play(11 + 16)  # nothing is owed for the rows before there are B * T start positions again
    assert again.counters.updates == before.counters.updates + 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "5",
        "[1]",
        "{}",
        '{"format": 3}',
        '{"format": 3, "counters": {}}',
        '{"format": 3, "counters": {}, "files": 5}',
        "\x00",
    ],
)
def test_a_foreign_checkpoint_is_a_plain_error(tmp_path, content):
    run = Run(tmp_path).create()
    (tmp_path / "checkpoint.json").write_text(content)
    with pytest.raises(CheckpointError, match="was not written by this program|is damaged") as error:
        run.folder.newest()
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_format_says_so(tmp_path):
    run = Run(tmp_path).create()
    (tmp_path / "checkpoint.json").write_text('{"format": 99, "counters": {}, "files": {}}')
    with pytest.raises(CheckpointError, match=r"has format 99, this program reads 3.*versions\.json"):
        run.folder.resume(print)


def test_no_checkpoint_yet(tmp_path):
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        Run(tmp_path).create().folder.newest()


@pytest.mark.parametrize("missing", ["state-45.pt", "replay/latents-45-0-45.pt"])
def test_a_missing_file_is_named(tmp_path, missing):
    Run(tmp_path).create().play(15).save().play(15).save().play(15).save()
    (tmp_path / "previous.json").unlink()
    (tmp_path / missing).unlink()
    with pytest.raises(CheckpointError, match=f"{missing} is missing"):
        Run(tmp_path).load()


@pytest.mark.parametrize(("lost", "row"), [("rows-0-15.pt", 15), ("rows-15-30.pt", 30)])
def test_old_rows_that_are_damaged_are_done_without(tmp_path, lost, row):
    Run(tmp_path).create().play(15).save().play(15).save().play(15).save()
    (tmp_path / "replay" / lost).write_bytes(b"PK")
    again = Run(tmp_path)
    for value in again.replay.data.values():
        value.fill_(1)
    again.load()
    sentence = f"{lost} is damaged: it is not what was saved; the rows up to row {row} of each environment are lost"
    assert len(again.said) == 1 and sentence in again.said[0]
    assert again.counters.rows == 45 and again.replay.oldest == row
    same = again.replay.sample(100)[0].observation["where"][..., 1]
    assert set(same.flatten().tolist()) <= set(range(row + 1, 45))
    again.play(15).save()
    assert not (tmp_path / "replay" / lost).exists() or lost in (tmp_path / "previous.json").read_text()
    once_more = Run(tmp_path).load()
    assert not once_more.said
    same_replay(again, once_more)


def test_the_newest_rows_are_not_worth_all_others(tmp_path):
    Run(tmp_path).create().play(15).save().play(15).save()
    (tmp_path / "replay" / "rows-15-30.pt").unlink()
    again = Run(tmp_path).load()
    assert again.counters.rows == 15 and again.replay.oldest == 0
    assert "rows-15-30.pt is missing or cannot be read" in again.said[0]


def test_the_good_checkpoint_survives_when_its_list_cannot_be_read(tmp_path, monkeypatch):
    run = Run(tmp_path).create().play(20).save().play(20).save()
    files, good = run.files, (tmp_path / "checkpoint.json").read_bytes()
    (tmp_path / "checkpoint.json").write_bytes(b"")
    with monkeypatch.context() as patch:
        fail_at(patch, "state")
        with pytest.raises(OSError, match="No space"):
            run.play(20).save()
    assert set(files) <= set(run.files)
    (tmp_path / "checkpoint.json").write_bytes(good)
    assert Run(tmp_path).load().counters.rows == 40


def test_a_large_replay_is_saved_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "PART_BYTES", 1000)
    run = Run(tmp_path, capacity=50, envs=2).create().play(40).save()
    rows = 1000 * run.replay.rows // run.replay.bytes
    assert 2 <= rows < 10
    assert len(list(tmp_path.glob("replay/rows-*"))) == len(list(tmp_path.glob("replay/latents-*"))) == -(-25 // rows)
    same_replay(run, Run(tmp_path, capacity=50, envs=2).load())
    run.play(7).save()
    same_replay(run, Run(tmp_path, capacity=50, envs=2).load())


def test_arrays_survive_as_tensors(tmp_path):
    state = {
        "key": np.arange(3, dtype=np.uint32),
        "deep": {"console": b"\x00\xff", "large": 2**127, "list": [np.zeros((0, 2)), np.array(True)]},
        "number": np.float64(0.1),
        "none": None,
    }
    write_tensors(tmp_path / "state.pt", plain(state))
    read = arrays(torch.load(tmp_path / "state.pt", weights_only=True))
    np.testing.assert_equal(read, state)
    assert read["key"].dtype == np.uint32 and read["deep"]["list"][0].shape == (0, 2)


def test_a_file_where_a_folder_should_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="is a file; give the folder of a run$"):
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
