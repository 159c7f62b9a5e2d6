"""The index of results, from curves whose figures are known."""

import json
from pathlib import Path

import pytest

from dreamer.config import make_config, to_json
from dreamer.results.index import draw, write_index
from dreamer.results.scores import read

CURVES = Path(__file__).parents[2] / "runs" / "results" / "curves"


def keep(folder, task, seed, ends, hours=None, size="12m"):
    """A run whose episodes ended at {frames: score}."""
    place = folder / f"{task.replace('/', '-')}-{size}-{seed}"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(to_json(make_config(task, size=size, seed=seed))))
    lines = [f"{frames},{score}" for frames, score in ends.items()]
    (place / "scores.csv").write_text("\n".join(["frames,score", *lines]) + "\n")
    (place / "run.json").write_text(json.dumps({"machine": "1 H200", "minutes": 30, "commits": ["abc"]}))
    if hours:
        (place / "times.csv").write_text("frames,hours\n" + "".join(f"{f},{h}\n" for f, h in hours.items()))
    return place


def index(folder):
    write_index(folder)
    return (folder / "index.md").read_text()


def test_time_to_each_published_score(tmp_path):
    # Published for cartpole_swingup: 321.6 at 50,000 frames, 515.8 at 100,000 and 624.0 at 150,000.
    ends = {20_000: 100, 40_000: 330, 80_000: 520, 150_000: 530}
    place = keep(tmp_path, "dmc/cartpole_swingup", 0, ends, {0: 0, 80_000: 2, 150_000: 3})
    curve = read(place)
    assert [curve.reached(score, 0.85) for score in (321.6, 515.8, 531)] == [40_000, 80_000, None]
    lines = index(tmp_path).splitlines()
    # Half of the frames of two hours, then all of them.
    assert "| `dmc/cartpole_swingup` | size 12m, ratio 512, seed 0 | 321.6 at 50,000 | 40,000 | 60 | 1 H200 |" in lines
    assert any("at 100,000 | 80,000 | 120 |" in line for line in lines)
    assert any("at 150,000 | not by 150,000 | not in 180 |" in line for line in lines)
    assert not any("at 200,000" in line for line in lines)
    assert "Over tasks" not in index(tmp_path)


def test_ours_beside_the_published_score(tmp_path):
    keep(tmp_path, "dmc/cartpole_swingup", 0, {60_000: 250.0, 99_000: 700.0})
    keep(tmp_path, "dmc/cartpole_swingup", 0, {60_000: 250.0}, size="1m")
    keep(tmp_path, "gym/CartPole-v1", 0, {7_000: 21.0})
    large, small, own, *_ = [line for line in index(tmp_path).splitlines() if line.startswith("| `")]
    # At 50,000 frames neither had ended an episode.
    assert large == "| `dmc/cartpole_swingup` | size 12m, ratio 512 | 99,000 | 1 | 700 |  |  |  |  |  |  |"
    assert small == "| `dmc/cartpole_swingup` | size 1m, ratio 512 | 60,000 | 1 | 250 |  |  |  |  |  |  |"
    assert own == "| `gym/CartPole-v1` | size 12m, ratio 512 | 7,000 | 1 | 21 |  |  |  |  |  |  |"
    for place in tmp_path.glob("dmc*"):
        (place / "scores.csv").write_text("frames,score\n40000,200\n60000,250\n")
    large, small, *_ = [line for line in index(tmp_path).splitlines() if line.startswith("| `")]
    # Published: 321.56 +- 79.79, 265.3 to 456.9.
    there = "| 50,000 | 1 | 200 |  | 321.6 +- 79.8 | 265.3 to 456.9 | 5 | -122 (1.5 sd, 38%) |"
    assert large == f"| `dmc/cartpole_swingup` | size 12m, ratio 512 {there} within |"
    not_judged = "not judged, another protocol"
    assert small == f"| `dmc/cartpole_swingup` | size 1m, ratio 512 {there} {not_judged}: size 12m, here 1m |"


def test_a_short_run_takes_nothing_from_a_long_one(tmp_path):
    """Neither another size nor another seed."""
    keep(tmp_path, "dmc/walker_walk", 0, {100_000: 500.0, 500_000: 900.0})
    keep(tmp_path, "dmc/walker_walk", 1, {100_000: 300.0, 149_000: 310.0})
    keep(tmp_path, "dmc/walker_walk", 0, {50_000: 100.0}, size="1m")
    rows = [line.split(" | ")[1:6] for line in index(tmp_path).splitlines() if line.startswith("| `")]
    assert rows[:3] == [
        ["size 12m, ratio 512", "100,000", "2", "400", "300 to 500"],
        ["size 12m, ratio 512", "500,000", "1", "900", ""],
        ["size 1m, ratio 512", "50,000", "1", "100", ""],
    ]


def test_a_run_whose_first_episode_ended_late_waits_for_the_other(tmp_path):
    keep(tmp_path, "dmc/walker_walk", 0, {6_000: 20.0})
    short = keep(tmp_path, "dmc/walker_walk", 1, {3_000: 30.0})
    (short / "run.json").write_text('{"frames": 4000}')
    row, *_ = [line.split(" | ")[2:5] for line in index(tmp_path).splitlines() if line.startswith("| `")]
    assert row == ["4,000", "1", "30"]


def test_tasks_together_at_the_same_frames(tmp_path):
    for seed, score in ((0, 500.0), (1, 700.0)):
        keep(tmp_path, "dmc/walker_walk", seed, {100_000: score})
        keep(tmp_path, "dmc/cheetah_run", seed, {100_000: score / 2, 200_000: 999.0})
    keep(tmp_path, "dmc/reacher_easy", 0, {90_000: 999.0})
    rows = [line for line in index(tmp_path).splitlines() if " as a share of 1000 | " in line]
    # Published at 100,000 frames: 478.1 and 297.2.
    assert [row.split(" | ")[2:] for row in rows[1:]] == [
        ["100,000", "2", "4", name, "0.450", "0.375 to 0.525", "0.388 |"] for name in ("mean", "median")
    ]
    assert " | 0.425 | " in rows[0] and " | interquartile mean | " in rows[0]  # of 250, 350, 500 and 700
    assert "Time to score" not in index(tmp_path)  # without a record of the hours


def test_a_task_of_many_seeds_weighs_as_much_among_the_published(tmp_path):
    for task, seeds in (("walker_walk", 6), ("cheetah_run", 1), ("cartpole_swingup", 1)):
        for seed in range(seeds):
            keep(tmp_path, f"dmc/{task}", seed, {100_000: 400.0})
    # Of 297.2, six times 478.1, and 515.8 the middle four.
    row = next(line for line in index(tmp_path).splitlines() if " | interquartile mean | " in line)
    assert row.endswith("| 100,000 | 3 | 8 | interquartile mean | 0.400 | one seed | 0.478 |")


def test_the_camera_has_a_budget_in_the_middle(tmp_path):
    for task in ("walker_walk", "cartpole_swingup"):
        keep(tmp_path, f"dmc_vision/{task}", 0, {100_000: 400.0, 500_000: 800.0})
    found = [line for line in index(tmp_path).splitlines() if " | mean | " in line]
    assert [line.split(" | ")[2] for line in found] == ["100,000", "500,000"]


def test_an_evaluation_of_an_earlier_agent_says_so(tmp_path):
    place = keep(tmp_path, "dmc/walker_walk", 0, {100_000: 500.0})
    for frames, said in ((100_000, "| 300 (250 to 350) |"), (90_000, "| 300 (250 to 350) after 90,000 frames |")):
        evaluation = {"frames": frames, "mean": 300.0, "interval_95": [250.0, 350.0]}
        (place / "run.json").write_text(json.dumps({"frames": 100_000, "evaluation": evaluation}))
        assert said in index(tmp_path)


def test_what_was_learned_halfway_and_at_the_end(tmp_path):
    place = keep(tmp_path, "dmc/walker_walk", 0, {100_000: 500.0})
    assert "had learned" not in index(tmp_path)
    rows = ["44000,9,,70,1,1", "46000,3,,70,2,8", "50000,4,,70,3,9", "98000,2,1.25,70,,5"]
    names = "frames,world_model/kl,loss/reward,loss/actor,loss/decoder/a,loss/decoder/b"
    (place / "metrics.csv").write_text("\n".join([names, *rows]) + "\n")
    _, found = index(tmp_path).split("## What the models and actors had learned\n\n")
    rows = [line.split(" | ")[3:] for line in found.split("\n\n")[0].splitlines()[2:]]
    assert rows == [  # of the last tenth of the frames
        ["50,000", "11", "", "3.5", "", "", "", "", " |"],
        ["100,000", "5", "1.25", "2", "", "", "", "", " |"],
    ]


def test_a_folder_without_its_record(tmp_path):
    """As one that was put there by hand."""
    place = keep(tmp_path, "dmc/walker_walk", 0, {100_000: 500.0})
    for text in (None, "{"):
        (place / "run.json").unlink() if text is None else (place / "run.json").write_text(text)
        assert "| 100,000 of 500,000 | 500 |" in index(tmp_path)


def test_the_table_is_put_into_the_readme(tmp_path):
    results = tmp_path / "curves"
    keep(results, "dmc/walker_walk", 0, {100_000: 500.0})
    readme = tmp_path / "README.md"
    readme.write_text("Mine.\n<!-- scores -->\nold\n<!-- end of scores -->\nAlso mine.\n")
    table = index(results).split("\n## ")[0].removeprefix("## Scores\n\n")
    assert "| 100,000 | 1 | 500 |" in table
    assert readme.read_text() == f"Mine.\n<!-- scores -->\n\n{table}\n<!-- end of scores -->\nAlso mine.\n"
    readme.write_text("Without marks.")
    write_index(results)
    assert readme.read_text() == "Without marks."


def test_the_index_that_is_kept_is_that_of_the_runs_that_are_kept(tmp_path):
    for path in CURVES.glob("*/*"):
        place = tmp_path / "curves" / path.parent.name
        place.mkdir(parents=True, exist_ok=True)
        (place / path.name).write_bytes(path.read_bytes())
    (tmp_path / "README.md").write_text((CURVES.parent / "README.md").read_text())
    assert index(tmp_path / "curves") == (CURVES / "index.md").read_text()
    assert (tmp_path / "README.md").read_text() == (CURVES.parent / "README.md").read_text()


def test_each_run_that_was_kept_has_its_picture():
    folders = {path.parent for path in CURVES.glob("*/run.json")}
    assert folders and folders == {path.parent for path in CURVES.glob("*/curve.png")}
    text = (CURVES / "index.md").read_text()
    assert all(f"[folder]({folder.name})" in text for folder in folders)


def test_pictures_of_the_runs_that_changed(tmp_path):
    places = [keep(tmp_path, "dmc/walker_walk", seed, {100_000: 500.0}) for seed in (0, 1)]
    young = keep(tmp_path, "dmc/walker_walk", 2, {})
    draw(tmp_path, [places[1], young])
    assert [path.parent for path in tmp_path.glob("*/curve.png")] == [places[1]]


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
