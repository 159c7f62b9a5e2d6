"""The index of results, from curves whose figures are known."""

import json

import pytest

from dreamer.config import make_config, to_json
from dreamer.index import draw, reached, write_index
from dreamer.scores import read


def keep(folder, task, seed, ends, hours=None):
    """A run whose episodes ended at {frames: score}."""
    place = folder / f"{task.replace('/', '-')}-{seed}"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(to_json(make_config(task, size="12m", seed=seed))))
    lines = [f"{frames},{score}" for frames, score in ends.items()]
    (place / "scores.csv").write_text("\n".join(["frames,score", *lines]) + "\n")
    (place / "run.json").write_text(json.dumps({"machine": "1 H200", "minutes": 30, "commits": ["abc"]}))
    if hours:
        (place / "times.csv").write_text("frames,hours\n" + "".join(f"{f},{h}\n" for f, h in hours.items()))
    return place


def test_time_to_each_published_score(tmp_path):
    # Published for cartpole_swingup: 321.6 at 50,000 frames and 515.8 at 100,000.
    place = keep(tmp_path, "dmc/cartpole_swingup", 0, {20_000: 100, 40_000: 330, 80_000: 520}, {0: 0, 80_000: 2})
    curve = read(place)
    assert reached(curve, 321.6) == 40_000 and reached(curve, 515.8) == 80_000 and reached(curve, 521) is None
    write_index(tmp_path)
    index = (tmp_path / "index.md").read_text()
    assert "| 1 | 80,000 | 520 |  | 321.6 +- " in index and "5) | 330 | within | 1 H200 | 0.5 | abc |" in index
    # Half of the frames of two hours, then all of them.
    assert "| 321.6 at 50,000 | 40,000 | 60 |" in index and "at 100,000 | 80,000 | 120 |" in index
    assert "Over tasks" not in index


def test_tasks_together(tmp_path):
    for seed, score in ((0, 500.0), (1, 700.0)):
        keep(tmp_path, "dmc/walker_walk", seed, {100_000: score})
        keep(tmp_path, "dmc/cheetah_run", seed, {100_000: score / 2})
    write_index(tmp_path)
    index = (tmp_path / "index.md").read_text()
    assert "| dmc, scores as a share of 1000 | 2 | mean | 0.450 | 0.375 to 0.525 |" in index
    assert "Time to score" not in index  # without a record of the hours


def test_a_seed_that_has_just_begun_waits(tmp_path):
    keep(tmp_path, "dmc/walker_walk", 0, {100_000: 500.0})
    keep(tmp_path, "dmc/walker_walk", 1, {49_000: 100.0})
    write_index(tmp_path)
    index = (tmp_path / "index.md").read_text()
    assert "| 1 | 100,000 | 500 |" in index
    assert "Begun: `dmc/walker_walk`, size 12m, ratio 512, seed 1, 49,000 frames." in index
    keep(tmp_path, "dmc/walker_walk", 2, {51_000: 300.0})
    (tmp_path / "dmc-walker_walk-0" / "scores.csv").write_text("frames,score\n51000,500\n100000,500\n")
    write_index(tmp_path)
    assert "| 2 | 51,000 | 400 | 300 to 500 |" in (tmp_path / "index.md").read_text()


def test_an_empty_folder(tmp_path):
    write_index(tmp_path)
    assert len((tmp_path / "index.md").read_text().split()) > 2
    draw(tmp_path)
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("window", [(85_001, 600.0), (84_999, 500.0)])
def test_the_window_is_that_of_the_published_scores(tmp_path, window):
    """85 % of the frames and on."""
    frames, expected = window
    curve = read(keep(tmp_path, "dmc/walker_walk", 0, {frames: 700.0, 100_000: 500.0}))
    assert curve.at(100_000, 0.85) == expected
