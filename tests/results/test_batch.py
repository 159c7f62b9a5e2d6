"""A list of runs that is worked through."""

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner

import envs
from dreamer.checkpoint import CheckpointError, RunFolder
from dreamer.cli import main
from dreamer.config import to_json
from dreamer.errors import UserMistake
from dreamer.results import batch, record, scores
from dreamer.results.batch import Runner
from dreamer.results.index import write_index
from dreamer.results.worklist import Entry, read

SETTINGS = " ".join(setting for setting in tiny.WIDTHS if not setting.startswith(("ratio", "run.device")))


def write(folder, *lines):
    path = folder / "list.csv"
    path.write_text("\n".join(["task,seed,size,ratio,frames,settings", *lines]) + "\n")
    return path


def work(folder, path, *options):
    places = ["--runs", str(folder / "runs"), "--results", str(folder / "results")]
    return CliRunner().invoke(main, ["batch", str(path), *places, *options])


def test_a_list_is_worked_through(tmp_path):
    lines = [f"gym/CartPole-v1,{seed},1m,1,{60 + 20 * seed},{SETTINGS}" for seed in (0, 1)]
    result = work(tmp_path, write(tmp_path, *lines), "--at-once", "2")
    assert result.exit_code == 0, result.stderr
    entries = read(tmp_path / "list.csv")
    for seed, entry in enumerate(entries):
        place = tmp_path / "results" / entry.name
        assert record.frames(tmp_path / "runs" / entry.name) == entry.config.frames
        curve = scores.read(place)
        assert curve.config.seed == seed and 0 < curve.last <= 60 + 20 * seed
        made = json.loads((place / "run.json").read_text())
        assert made["finished"] and made["frames"] == 60 + 20 * seed and made["minutes"] > 0
        assert made["command"].startswith(f"dreamer train --env gym/CartPole-v1 --seed {seed} --size 1m --frames")
        assert made["command"].endswith(f"--run {tmp_path / 'runs' / entry.name} --device auto")
        assert made["evaluation"]["mean"] > 0 and len(made["evaluation"]["scores"]) == batch.EPISODES
        assert f"evaluate {tmp_path / 'runs' / entry.name} --episodes" in made["evaluation"]["command"]
        assert made["evaluation"]["frames"] == 60 + 20 * seed
        assert made["at_once"] == 2 and made["precision"] == "float32" and made["compiled"] is False
        assert len(made["commits"]) == 1
        names, *rows = (place / "metrics.csv").read_text().splitlines()
        assert names.startswith("frames,") and "behavior/entropy" in names and 0 < len(rows) <= record.POINTS
        *_, last = (place / "times.csv").read_text().splitlines()
        assert last.startswith(f"{60 + 20 * seed},0.00")
    index = (tmp_path / "results" / "index.md").read_text()
    # Both seeds, each run, and twice what each had learned.
    assert index.count("| `gym/CartPole-v1` | size 1m, ratio 1, ") == 7
    # Everything is finished, so nothing is done.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    assert work(tmp_path, tmp_path / "list.csv").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    results = tmp_path / "results"
    for picture in (results / "curves.png", *(results / entry.name / "curve.png" for entry in entries)):
        assert picture.stat().st_size > 1000
    # Nor on another machine, which has the results alone.
    shutil.rmtree(tmp_path / "runs")
    assert work(tmp_path, tmp_path / "list.csv").exit_code == 0
    assert not list((tmp_path / "runs").iterdir())


def test_runs_side_by_side_are_told_of_each_other(tmp_path, monkeypatch):
    told = []

    def refused(words, env, **given):
        told.append((env["OMP_NUM_THREADS"], env["DREAMER_SHARED_BY"]))
        raise OSError(12, "Cannot allocate memory")

    entries = read(write(tmp_path, *(f"gym/CartPole-v1,{seed},1m,1,40,{SETTINGS}" for seed in range(3))))
    (tmp_path / "runs").mkdir()
    monkeypatch.setattr(batch.subprocess, "Popen", refused)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    runner = Runner(entries, tmp_path / "runs", tmp_path / "results", 3, None, "cpu", print)
    with pytest.raises(OSError):
        runner._process(entries[0], ["train"], subprocess.DEVNULL)
    assert told == [("5", "3")]


def test_a_longer_curve_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "_evaluate", lambda self, entry: None)
    path = write(tmp_path, f"gym/CartPole-v1,0,1m,1,40,{SETTINGS}")
    assert work(tmp_path, path).exit_code == 0
    (entry,) = read(path)
    place = tmp_path / "results" / entry.name
    made = json.loads((place / "run.json").read_text())
    (place / "run.json").write_text(json.dumps(made | {"frames": 1000, "finished": False}))
    (place / "scores.csv").write_text("frames,score\n900,7\n")
    shutil.rmtree(tmp_path / "runs")
    result = work(tmp_path, path)
    assert result.exit_code == 0 and "holds a longer curve" in result.stderr
    assert result.stderr.count(f"holds 1,000 frames of a run that {tmp_path / 'runs'} has lost; the one that is") == 1
    assert (place / "scores.csv").read_text() == "frames,score\n900,7\n"


def test_the_index_grows_as_runs_end(tmp_path, monkeypatch):
    lengths, write_index = [], batch.write_index

    def watched(results):
        write_index(results)
        lengths.append(len(list(results.glob("*/run.json"))))

    monkeypatch.setattr(batch, "write_index", watched)
    monkeypatch.setattr(Runner, "_evaluate", lambda self, entry: None)
    lines = [f"gym/CartPole-v1,0,1m,{ratio},40,{SETTINGS}" for ratio in (1, 2)]
    assert work(tmp_path, write(tmp_path, *lines)).exit_code == 0
    assert lengths == [1, 1, 2, 2]  # before an evaluation, and after it


def make_batch(folder, *entries, minutes=None, say=None):
    for name in ("runs", "results"):
        (folder / name).mkdir(exist_ok=True)
    return Runner(entries, folder / "runs", folder / "results", 1, minutes, "cpu", say or (lambda text: None))


def begun(work, entry):
    """Work until the run has a checkpoint, then be told to stop."""

    def stop_then():
        folder = work._runs / entry.name
        before = record.frames(folder)
        while record.frames(folder) == before:
            time.sleep(0.05)
        work._stop.set()

    thread = threading.Thread(target=stop_then)
    thread.start()
    failed = work.work()
    thread.join()
    return failed


def test_what_is_stopped_goes_on_the_next_time(tmp_path):
    path = write(tmp_path, f"gym/CartPole-v1,0,1m,1,1000000,run.checkpoint_seconds=1 {SETTINGS}")
    (entry,) = read(path)
    frames = []
    for _ in range(2):
        assert begun(make_batch(tmp_path, entry), entry) == []
        frames.append(record.frames(tmp_path / "runs" / entry.name))
    assert 0 < frames[0] < frames[1] < 1000000
    made = scores.run_record(tmp_path / "results" / entry.name)
    assert made["frames"] == frames[1] and not made["finished"] and 0 < made["minutes"] < 3
    assert made["evaluation"] is None and len(made["commits"]) == 1


def test_a_run_that_is_begun_anew_knows_all_its_sittings(tmp_path, monkeypatch):
    """Also while what another run has left in its place is longer, and it is not kept itself."""
    path = write(tmp_path, f"gym/CartPole-v1,0,1m,1,1000000,run.checkpoint_seconds=1 {SETTINGS}")
    (entry,) = read(path)
    kept(tmp_path, entry, 900_000, 2.0)
    for name in ("first", "second"):
        monkeypatch.setattr(record, "commit", lambda name=name: name)
        assert begun(make_batch(tmp_path, entry), entry) == []
    place = tmp_path / "results" / entry.name
    assert scores.run_record(place)["frames"] == 900_000
    shutil.rmtree(place)
    monkeypatch.setattr(record, "commit", lambda: "third")
    assert begun(make_batch(tmp_path, entry), entry) == []
    assert scores.run_record(place)["commits"] == ["first", "second", "third"]


def test_what_is_kept_ends_with_the_checkpoint(tmp_path):
    """A run that is killed makes again what came after it."""
    path = write(tmp_path, f"gym/CartPole-v1,0,1m,1,60,{SETTINGS}")
    (entry,) = read(path)
    batch_ = make_batch(tmp_path, entry)
    assert batch_.work() == []
    folder, place = tmp_path / "runs" / entry.name, tmp_path / "kept"
    with (folder / "metrics.jsonl").open("a") as file:
        for line in ({"episode/score": 9.0}, {"loss/total": 1.0, "speed/agent_steps_per_second": 1.0}):
            file.write(json.dumps({"frames": 99} | line) + "\n")
    assert scores.read(folder).last == 99
    assert record.keep(folder, place, {})
    assert scores.read(place).end == 60 and scores.read(place).last <= 60
    assert max(row["frames"] for row in scores.metrics(place)) <= 60
    assert scores.hours(place)[-1][0] == 60 and scores.run_record(place)["minutes"] < 1
    (folder / "checkpoint.json").unlink()
    with pytest.raises(CheckpointError, match="has no checkpoint yet"):
        record.keep(folder, place, {})


def test_to_be_stopped_while_it_starts_is_no_failure(tmp_path):
    """Python has not even been told yet what to do about Ctrl-C."""
    path = write(tmp_path, f"gym/CartPole-v1,0,1m,1,1000,{SETTINGS}")
    result = work(tmp_path, path, "--minutes", "0.005")
    assert result.exit_code == 0 and "Time is up: stopping, with a checkpoint each" in result.stderr
    assert "error" not in result.stderr
    result = work(tmp_path, path, "--minutes", "nan")
    assert result.exit_code == 2 and "--minutes nan is no time; give a number above 0" in result.stderr


def test_the_curve_is_kept_while_a_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "KEEP_SECONDS", 0.5)
    path = write(tmp_path, f"gym/CartPole-v1,0,1m,1,1000000,run.checkpoint_seconds=1 run.log_seconds=1 {SETTINGS}")
    (entry,) = read(path)
    batch_ = make_batch(tmp_path, entry)
    seen = []

    def stop_when_kept():
        while not (batch_._results / entry.name / "run.json").exists():
            time.sleep(0.05)
        seen.append(batch_.standing())
        batch_._stop.set()

    thread = threading.Thread(target=stop_when_kept)
    thread.start()
    assert batch_.work() == []
    thread.join()
    assert seen[0].startswith(f"0 of 1 finished | {entry.name} ")
    assert batch_.standing() == "0 of 1 finished | nothing runs"


def test_an_evaluation_that_fails_is_said_and_made_up_for(tmp_path, monkeypatch):
    path = write(tmp_path, f"gym/CartPole-v1,0,1m,1,60,{SETTINGS}")
    (entry,) = read(path)
    real, said = Runner._evaluate, []
    monkeypatch.setattr(
        Runner,
        "_evaluate",
        lambda self, entry: self._process(entry, ["evaluate", "nowhere"], subprocess.DEVNULL) or None,
    )
    assert make_batch(tmp_path, entry, say=said.append).work() == [entry.name]
    assert any("ended by an error, see " in line for line in said)
    place = tmp_path / "results" / entry.name
    made = scores.run_record(place)
    assert made["finished"] and made["evaluation"] is None and scores.read(place).last > 0
    monkeypatch.setattr(Runner, "_evaluate", real)
    again = make_batch(tmp_path, entry)
    assert again.standing().startswith("0 of 1") and again.work() == []
    assert scores.run_record(place)["evaluation"]["mean"] > 0 and again.standing().startswith("1 of 1")
    # Without its agent it cannot be: then it is as finished as it can be.
    (place / "run.json").write_text(json.dumps(made))
    shutil.rmtree(tmp_path / "runs" / entry.name)
    assert make_batch(tmp_path, entry).standing().startswith("1 of 1")


def test_an_evaluation_is_that_of_the_agent_at_the_end(tmp_path, monkeypatch):
    """Not one of a shorter run that goes on."""
    short = read(write(tmp_path, f"gym/CartPole-v1,0,1m,1,40,{SETTINGS}"))
    monkeypatch.setattr(Runner, "_evaluate", lambda self, entry: {"mean": 5.0, "interval_95": [4, 6], "frames": 40})
    assert make_batch(tmp_path, *short).work() == []
    (longer,) = read(write(tmp_path, f"gym/CartPole-v1,0,1m,1,80,{SETTINGS}"))
    monkeypatch.setattr(Runner, "_evaluate", lambda self, entry: None)  # it is stopped
    assert make_batch(tmp_path, longer).work() == []
    made = scores.run_record(tmp_path / "results" / longer.name)
    assert made["finished"] and made["frames"] == 80 and made["evaluation"]["frames"] == 40
    again = make_batch(tmp_path, longer)
    assert again.standing().startswith("0 of 1")
    monkeypatch.setattr(Runner, "_evaluate", lambda self, entry: {"mean": 7.0, "interval_95": [6, 8], "frames": 80})
    assert again.work() == [] and again.standing().startswith("1 of 1")
    assert scores.run_record(tmp_path / "results" / longer.name)["evaluation"]["mean"] == 7.0


def test_results_that_cannot_be_read_stop_nothing(tmp_path):
    (entry,) = read(write(tmp_path, f"gym/CartPole-v1,0,1m,1,40,{SETTINGS}"))
    broken = tmp_path / "results" / "broken"
    broken.mkdir(parents=True)
    (broken / "scores.csv").write_text("<<<<<<< mine\n")
    said = []
    assert make_batch(tmp_path, entry, say=said.append).work() == []
    assert sum("No new index" in line and str(broken) in line for line in said) == 2
    made = scores.run_record(tmp_path / "results" / entry.name)
    assert made["finished"] and made["evaluation"]["mean"] > 0


@pytest.mark.parametrize(
    ("name", "text"), [("times.csv", "<<<<<<< mine\nframes,hours\n"), ("config.json", '{"written": "long ago"}')]
)
def test_results_that_cannot_be_read_plan_nothing(tmp_path, name, text):
    entry, other = Entry("dmc/walker_walk", 0, size="1m"), Entry("dmc/walker_walk", 1, size="1m")
    kept(tmp_path, other, 100_000, 2.0)
    assert make_batch(tmp_path, entry).minutes_needed(entry) == 600
    (tmp_path / "results" / other.name / name).write_text(text)
    assert make_batch(tmp_path, entry).minutes_needed(entry) is None
    with pytest.raises(UserMistake, match=f"{other.name}/{name} cannot be "):
        write_index(tmp_path / "results")


def test_what_cannot_be_kept_is_said(tmp_path, monkeypatch):
    def full(folder, place, made):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(record, "keep", full)
    (entry,) = read(write(tmp_path, f"gym/CartPole-v1,0,1m,1,40,{SETTINGS}"))
    said = []
    assert make_batch(tmp_path, entry, say=said.append).work() == [entry.name]
    assert said[0].startswith(f"{entry.name} cannot be kept in {tmp_path / 'results'} (No space left on device)")
    assert said[-1] == "0 of 1 finished"
    monkeypatch.undo()
    assert make_batch(tmp_path, entry, say=said.append).work() == [] and said[-1] == "1 of 1 finished"


def test_what_an_environment_prints_is_no_score(tmp_path, monkeypatch):
    entry, said = Entry("gym/CartPole-v1", 0, size="1m"), []
    work = make_batch(tmp_path, entry, say=said.append)
    for printed, expected in ((b'hello\n{"mean": 3.0}\nbye\n', 3.0), (b"hello\n", None), (b'{"mean"', None)):
        monkeypatch.setattr(work, "_process", lambda entry, words, out, text=printed: out.write(text))
        assert (work._evaluate(entry) or {}).get("mean") == expected
    assert len(said) == 2 and said[0].startswith(f"{entry.name} is not evaluated: ")


def kept(folder, entry, frames, hours):
    """What another sitting has left of a run."""
    place = folder / "results" / entry.name
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(to_json(entry.config)))
    (place / "scores.csv").write_text(f"frames,score\n{frames},7\n")
    (place / "times.csv").write_text(f"frames,hours\n{frames},{hours}\n")
    made = {"frames": frames, "finished": True, "machine": record.machine("cpu"), "at_once": 1}
    (place / "run.json").write_text(json.dumps(made))


def test_a_run_is_begun_only_if_it_can_end_in_time(tmp_path):
    first, second, third, other = (
        Entry(task, seed, size="12m", ratio=128.0, frames=frames)
        for task, seed, frames in [
            ("dmc/walker_walk", 0, 500_000), ("dmc/walker_walk", 1, 500_000), ("dmc/cheetah_run", 0, 1_000_000),
            ("atari100k/pong", 0, 400_000),
        ]
    )  # fmt: skip
    kept(tmp_path, first, 500_000, 0.25)
    said = []
    work = make_batch(tmp_path, first, second, third, other, minutes=25, say=said.append)
    # As long a frame as another seed of its task takes, or another task of its suite; of others nothing is known.
    assert [work.minutes_needed(entry) for entry in (second, third, other)] == [15, 30, None]
    assert [work._needs_another_time(entry) for entry in (second, third, other)] == [None, None, None]
    # What another machine takes, or this one with more runs at once, or with other settings, tells nothing.
    record_ = tmp_path / "results" / first.name / "run.json"
    made = json.loads(record_.read_text())
    for change in ({"machine": "NVIDIA H200"}, {"at_once": 4}):
        record_.write_text(json.dumps(made | change))
        assert work.minutes_needed(second) is None
    record_.write_text(json.dumps(made))
    assert work.minutes_needed(replace(second, settings=("replay.batch=32",))) is None
    work._until = time.monotonic() + 60 * 14
    # The second fits into another sitting, the third into none, so that it may as well begin.
    assert [work._needs_another_time(entry) for entry in (second, third, other)] == [15, None, None]
    work._run(second)
    assert said == [f"{second.name} takes some 15 minutes, and is left for another time"]
    assert not list((tmp_path / "runs").iterdir())


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="needs terminals that close")
def test_a_terminal_that_closes_stops_the_runs(tmp_path):
    path = write(tmp_path, f"gym/CartPole-v1,0,1m,1,1000000,run.checkpoint_seconds=1 {SETTINGS}")
    (entry,) = read(path)
    places = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results"), "--device", "cpu"]
    batch_ = subprocess.Popen([sys.executable, "-m", "dreamer", "batch", str(path), *places], start_new_session=True)
    while record.frames(tmp_path / "runs" / entry.name) == 0:
        time.sleep(0.1)
    batch_.send_signal(signal.SIGHUP)
    time.sleep(0.3)
    batch_.send_signal(signal.SIGINT)  # which cuts nothing short
    assert batch_.wait(120) == 0
    with RunFolder(tmp_path / "runs" / entry.name).lock():  # nobody trains there any more
        assert scores.run_record(tmp_path / "results" / entry.name)["frames"] > 0


def test_results_that_are_written_anew_do_not_make_the_code_another(tmp_path, monkeypatch):
    for name in ("dreamer/results/record.py", record.OWN_RUNS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "mine"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "dreamer/results/record.py"))
    (tmp_path / record.OWN_RUNS).write_text("task,method\n")
    assert not record.commit().endswith("-dirty")
    (tmp_path / "dreamer/results/record.py").write_text("x = 1\n")
    assert record.commit().endswith("-dirty")


def test_a_run_of_an_earlier_version_keeps_its_sittings(tmp_path):
    """Which were written beside the other results alone."""
    path = write(tmp_path, f"gym/CartPole-v1,0,1m,1,1000000,run.checkpoint_seconds=1 {SETTINGS}")
    (entry,) = read(path)
    assert begun(make_batch(tmp_path, entry), entry) == []
    place, folder = tmp_path / "results" / entry.name, tmp_path / "runs" / entry.name
    (folder / record.MADE).unlink()
    made = scores.run_record(place)
    (place / "run.json").write_text(json.dumps(made | {"commits": ["earlier"]}))
    assert begun(make_batch(tmp_path, entry), entry) == []
    assert scores.run_record(place)["commits"] == ["earlier", record.commit()]


def test_code_within_a_repository_of_somebody_else_has_no_commit(tmp_path, monkeypatch):
    (tmp_path / "lib" / "dreamer" / "results").mkdir(parents=True)
    (tmp_path / "lib" / "dreamer" / "results" / "record.py").touch()
    (tmp_path / "own.py").touch()
    who = ["-c", "user.name=me", "-c", "user.email=me@here"]
    for words in (["init", "-q"], ["add", "own.py"], [*who, "commit", "-qm", "mine"]):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "lib" / "dreamer" / "results" / "record.py"))
    assert record.commit() == "unknown"


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    path = write(tmp_path, f"gym/CartPole-v1,1,1m,1,30,{SETTINGS}", f"gym/CartPole-v1,0,1m,1,30,{SETTINGS}")
    broken, good = read(path)
    (tmp_path / "runs" / broken.name).mkdir(parents=True)
    (tmp_path / "runs" / broken.name / "thesis.tex").touch()
    result = work(tmp_path, path)
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    text = tmp_path / "runs" / f"{broken.name}.txt"
    why = text.read_text().splitlines()[-1]
    assert why.startswith("dreamer: ") and broken.name in why
    assert f"{broken.name}: begins" not in result.stderr and result.stderr.endswith("1 of 2 finished\n")
    assert f"{broken.name} ended by an error, see {text}: {why}" in result.stderr
    assert (tmp_path / "results" / good.name / "scores.csv").exists()


def test_the_line_of_a_run():
    entry = Entry("dmc/walker_walk", 3, size="1m", ratio=128.0, frames=1000, settings=("replay.batch=8",))
    assert entry.name == "dmc-walker_walk-1m-ratio128-replay.batch-8-seed3"
    words = entry.command(Path("there"), "cpu")
    assert words[:3] == ["train", "--env", "dmc/walker_walk"] and words[-4:] == ["--run", "there", "--device", "cpu"]
    assert "ratio=128" in words and "replay.batch=8" in words and words[words.index("--frames") + 1] == "1000"
    # Without these columns they are the protocol's.
    assert Entry("atari100k/pong", 0).name == "atari100k-pong-200m-ratio128-seed0"
    rates = Entry("my:World", 0, settings=("optimizer.learning_rate=1.6e-4",))
    assert rates.name == "my-World-12m-ratio512-optimizer.learning_rate-1.6e-4-seed0"
    winds = [Entry("my:World", 0, settings=(f"environment.wind={wind}",)).name for wind in (1, -1)]
    assert winds[0] != winds[1]


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "lists no runs"),
        (["gym/CartPole-v1,,1m,1,30,"], "line 2: its seed is missing"),
        (["", "# this", "gym/CartPole-v1,x,1m,1,30,"], "line 4: seed 'x' is no whole number"),
        (["gym/CartPole-v1,0,1m,fast,30,"], "line 2: ratio 'fast' is no number"),
        (["gym/CartPole-v1,0,2m,1,30,"], "line 2: size=2m is not one of 1m"),
        (["gym/CartPole-v1,0,1m,1,30,replay.bach=1"], "replay.batch"),
        (["gym/CartPole-v1,0,1m,1,30,seed=4"], "line 2: seed=4 is among the settings; give it in the column"),
        (["gym/CartPole-v1,0,1m,1,30,run.device=cpu"], "line 2: run.device is among the settings; give --device"),
        (
            ["my:World,0,1m,1,30,environment.map=a/b", "my:World,0,1m,1,30,environment.map=a%b"],
            "line 3: its folder my-World-1m-ratio1-environment.map-a-b-seed0 is that of another line",
        ),
        (["gym/CartPole-v1,0,1m,1,30,,# mine"], "line 2: '# mine' belongs to no column"),
        (
            ["gym/CartPole-v1,0,1m,1,30,"] * 2,
            "line 3: seed 0 of gym/CartPole-v1 with size 1m, ratio 1 is there already",
        ),
        (["atari/pong,0,1m,1,30,", "atari/pong,0,1m,1,30,run.precision=float32"], "line 3: seed 0 .* is there already"),
        (["atari/pong,0,1m,1,30,", "atari/pong,0,1m,1,30,environment.size=96"], "line 3: seed 0 .* is there already"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, lines, named):
    path = write(tmp_path, *lines)
    with pytest.raises(UserMistake, match=named):
        read(path)
    result = work(tmp_path, path)
    assert result.exit_code == 2 and "Traceback" not in result.stderr and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("head", "named"),
    [
        ("game,seed", "has game; they are task, seed, size"),
        ("task;seed", "has task;seed"),
        ("task,size", "lacks seed"),
        ("task,seed,seed", "has one twice"),
        ("dmc/walker_walk,0", "has dmc/walker_walk, 0"),
    ],
)
def test_lists_whose_first_line_is_none(tmp_path, head, named):
    path = tmp_path / "list.csv"
    path.write_text(f"{head}\ndmc/walker_walk,0\n")
    with pytest.raises(UserMistake, match=named):
        read(path)


def test_lists_as_spreadsheets_write_them(tmp_path):
    path = tmp_path / "list.csv"
    path.write_bytes("\ufefftask, seed ,frames\r\n\r\ndmc/walker_walk, 3, \r\n".encode())
    assert read(path) == [Entry("dmc/walker_walk", 3)]


@pytest.mark.parametrize("name", ["cpu.csv", "gpu.csv"])
def test_the_lists_that_come_with_the_results(name):
    results = Path(__file__).parents[2] / "runs" / "results"
    entries = read(results / name)
    for task in {entry.task for entry in entries}:
        envs.check_name(task)
    # What was kept is of the first, so that whoever has the results alone can go on.
    if name == "cpu.csv":
        assert {path.parent.name for path in results.glob("curves/*/run.json")} <= {entry.name for entry in entries}


def test_a_list_that_is_not_there(tmp_path):
    result = work(tmp_path, tmp_path / "list.csv")
    assert result.exit_code == 2 and "cannot be read" in result.stderr


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("dmc/walker_wlk,0,1m,1,30,", "There is no task 'dmc/walker_wlk'. Did you mean 'walker_walk'?"),
        ("gym/CartPool-v1,0,1m,1,30,", "Gymnasium has no environment 'CartPool-v1'"),
        ("nothing:There,0,1m,1,30,", "nothing"),
        ("atari/pong,0,1m,1,30,environment.stick=0", "atari tasks have no option 'stick'"),
        ("tests.cover:Ball,0,1m,1,30,environment.wind=3", "tests.cover"),
    ],
)
def test_what_cannot_be_run_is_known_at_once(tmp_path, line, named):
    result = work(tmp_path, write(tmp_path, "gym/CartPole-v1,0,1m,1,30,", line))
    assert result.exit_code == 2 and "line 3: " in result.stderr and named in result.stderr
    assert not (tmp_path / "runs").exists()


def test_folders_that_cannot_be_written_to_are_known_at_once(tmp_path, monkeypatch):
    (entry,) = read(write(tmp_path, f"gym/CartPole-v1,0,1m,1,40,{SETTINGS}"))

    def refused(dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(batch, "TemporaryFile", refused)
    with pytest.raises(UserMistake, match=r"runs cannot be written to \(Read-only file system\); give another"):
        make_batch(tmp_path, entry).work()
