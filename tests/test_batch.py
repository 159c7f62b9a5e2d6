"""A list of runs that is worked through."""

import json
import shutil

import pytest
import tiny
from click.testing import CliRunner

from dreamer import batch, scores
from dreamer.batch import Entry, read
from dreamer.cli import main
from dreamer.errors import UserMistake

SETTINGS = " ".join(setting for setting in tiny.WIDTHS if not setting.startswith("ratio"))


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
        assert batch.is_finished(tmp_path / "runs" / entry.name, entry)
        curve = scores.read(place)
        assert curve.config.seed == seed and 0 < curve.last <= 60 + 20 * seed
        made = json.loads((place / "run.json").read_text())
        assert made["finished"] and made["frames"] == 60 + 20 * seed and made["minutes"] > 0
        assert made["command"].startswith(f"dreamer train --env gym/CartPole-v1 --seed {seed} --size 1m --frames")
        assert made["evaluation"]["mean"] > 0 and len(made["evaluation"]["scores"]) == batch.EPISODES
        assert len(made["commits"]) == 1
        names, *rows = (place / "metrics.csv").read_text().splitlines()
        assert names.startswith("frames,") and "behavior/entropy" in names and 0 < len(rows) <= batch.POINTS
        *_, last = (place / "times.csv").read_text().splitlines()
        assert last.startswith(f"{60 + 20 * seed},0.00")
    index = (tmp_path / "results" / "index.md").read_text()
    assert index.count("`gym/CartPole-v1`") == 1 and "| 2 |" in index  # two seeds of one method
    # Everything is finished, so nothing is done.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    assert work(tmp_path, tmp_path / "list.csv").exit_code == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*")}
    assert (tmp_path / "results" / "curves.png").stat().st_size > 1000
    # Nor on another machine, which has the results alone.
    shutil.rmtree(tmp_path / "runs")
    assert work(tmp_path, tmp_path / "list.csv").exit_code == 0
    assert not list((tmp_path / "runs").iterdir())


def test_a_longer_curve_is_not_replaced(tmp_path):
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
    assert (place / "scores.csv").read_text() == "frames,score\n900,7\n"


def test_the_index_grows_as_runs_end(tmp_path, monkeypatch):
    lengths, write_index = [], batch.write_index

    def watched(results):
        write_index(results)
        lengths.append((results / "index.md").read_text().count("`gym/"))

    monkeypatch.setattr(batch, "write_index", watched)
    lines = [f"gym/CartPole-v1,0,1m,{ratio},40,{SETTINGS}" for ratio in (1, 2)]
    assert work(tmp_path, write(tmp_path, *lines)).exit_code == 0
    assert lengths == [1, 2]


def test_what_takes_too_long_goes_on_the_next_time(tmp_path):
    path = write(tmp_path, f"gym/CartPole-v1,0,1m,1,1000000,{SETTINGS}")
    (entry,) = read(path)
    frames = []
    for _ in range(2):
        result = work(tmp_path, path, "--minutes", "0.15")
        assert result.exit_code == 0, result.stderr
        assert "Time is up: stopping, with a checkpoint each" in result.stderr
        frames.append(batch._frames(tmp_path / "runs" / entry.name))
    assert 0 < frames[0] < frames[1] < 1000000
    made = json.loads((tmp_path / "results" / entry.name / "run.json").read_text())
    assert made["frames"] == frames[1] and not made["finished"] and 0.2 < made["minutes"] < 3


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    path = write(tmp_path, f"nowhere:Nothing,0,1m,1,30,{SETTINGS}", f"gym/CartPole-v1,0,1m,1,30,{SETTINGS}")
    result = work(tmp_path, path)
    assert result.exit_code == 1 and "Traceback" not in result.stderr
    broken, good = read(path)
    assert f"{broken.name} ended by an error: see " in result.stderr
    assert "dreamer: " in (tmp_path / "runs" / f"{broken.name}.txt").read_text()
    assert (tmp_path / "results" / good.name / "scores.csv").exists()


def test_the_line_of_a_run():
    entry = Entry("dmc/walker_walk", 3, size="1m", ratio=128.0, frames=1000, settings=("replay.batch=8",))
    assert entry.name == "dmc-walker_walk-1m-ratio128-replay.batch-8-seed3"
    words = entry.command(batch.Path("there"))
    assert words[:3] == ["train", "--env", "dmc/walker_walk"] and words[-2:] == ["--run", "there"]
    assert "ratio=128" in words and "replay.batch=8" in words and words[words.index("--frames") + 1] == "1000"
    # Without these columns they are the protocol's.
    assert Entry("atari100k/pong", 0).name == "atari100k-pong-200m-ratio128-seed0"


@pytest.mark.parametrize(
    ("lines", "named"),
    [
        ([], "lists no runs"),
        (["gym/CartPole-v1,,1m,1,30,"], "run 1: it needs a task and a seed"),
        (["gym/CartPole-v1,x,1m,1,30,"], "run 1: invalid literal"),
        (["gym/CartPole-v1,0,2m,1,30,"], "run 1: size=2m is not one of 1m"),
        (["gym/CartPole-v1,0,1m,1,30,replay.bach=1"], "replay.batch"),
        (["gym/CartPole-v1,0,1m,1,30,"] * 2, "has gym-CartPole-v1-1m-ratio1-seed0 twice; leave one out"),
    ],
)
def test_lists_that_cannot_be_used(tmp_path, lines, named):
    path = write(tmp_path, *lines)
    with pytest.raises(UserMistake, match=named):
        read(path)
    result = work(tmp_path, path)
    assert result.exit_code == 2 and "Traceback" not in result.stderr and not (tmp_path / "runs").exists()


def test_a_list_that_is_not_there(tmp_path):
    result = work(tmp_path, tmp_path / "list.csv")
    assert result.exit_code == 2 and "cannot be read" in result.stderr
    (tmp_path / "list.csv").write_text("game,seed\npong,1\n")
    result = work(tmp_path, tmp_path / "list.csv")
    assert result.exit_code == 2 and "has game" in result.stderr
