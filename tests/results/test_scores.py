"""Scores read back, beside the published ones, in tables and pictures."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from dreamer import config as configs
from dreamer.checkpoint import CheckpointError
from dreamer.cli import main
from dreamer.errors import UserMistake
from dreamer.results.compare import Result, aggregates, interquartile_mean, normalize, results
from dreamer.results.plot import Line, _seeds, draw, lines
from dreamer.results.published import (
    CURVES,
    _rows,
    number,
    other_protocol,
    own,
    own_expectation,
    short,
    standing,
    verdict,
    window,
)
from dreamer.results.published import curve as published
from dreamer.results.scores import Curve, hours, minutes, minutes_per_frame, read, write_csv, write_metrics
from tests import own_runs


def make_run(folder: Path, pairs, task="dmc/cartpole_swingup", **given) -> Path:
    """A folder with the scores of a run, as training leaves it."""
    folder.mkdir(parents=True)
    config = configs.make_config(task, **given)
    (folder / "config.json").write_text(json.dumps(configs.to_json(config)))
    text = [json.dumps({"frames": frames, "episode/score": score}) for frames, score in pairs]
    (folder / "metrics.jsonl").write_text("\n".join([*text, json.dumps({"frames": 7, "loss/total": 1.0}), '{"fra']))
    return folder


def make_curve(pairs, task="dmc/cartpole_swingup", **given) -> Curve:
    frames, scores = np.array(pairs, float).reshape(-1, 2).T
    return Curve(Path("run"), configs.make_config(task, **given), frames.astype(int), scores)


def ramp(end, top):
    return [(frames, top * frames / end) for frames in range(1000, end + 1, 1000)]


# Reading ---------------------------------------------------------------------------------------------------


def test_a_run_is_read_back_and_kept_in_short(tmp_path):
    curve = read(make_run(tmp_path / "run", [(1000, 5.0), (2000, 7.25)], seed=3))
    assert curve.frames.tolist() == [1000, 2000] and curve.scores.tolist() == [5, 7.25]
    assert curve.config.seed == 3 and curve.last == 2000
    (tmp_path / "run" / "metrics.jsonl").unlink()
    write_csv(curve, tmp_path / "run" / "scores.csv")
    assert (tmp_path / "run" / "scores.csv").read_text() == "frames,score\n1000,5\n2000,7.25\n"
    again = read(tmp_path / "run")
    assert again.frames.tolist() == [1000, 2000] and again.scores.tolist() == [5, 7.25]


def test_what_is_no_run_is_said(tmp_path):
    with pytest.raises(CheckpointError, match="holds no run .* the folder that train wrote$"):
        read(tmp_path)
    folder = make_run(tmp_path / "run", [])
    with pytest.raises(CheckpointError, match="give the folder that train wrote, such as .*/run$"):
        read(tmp_path)
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(CheckpointError, match="has no scores"):
        read(folder)
    (folder / "scores.csv").write_text("a,b\n1,2\n")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read(folder)
    for text in (
        "frames\n1000\n",
        "frames,score\n1000\n",
        "frames,score\n2000,1\n1000,1\n",
        "frames,score\nnan,1\n",
        "frames,score\n1,nan\n",
    ):
        (folder / "scores.csv").write_text(text)
        with pytest.raises(CheckpointError, match="cannot be read"):
            read(folder)


def test_a_line_of_something_else_is_left_out(tmp_path):
    folder = make_run(tmp_path / "run", [(1000, 5.0)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('\nnull\n[1, 2]\n{"frames": 1500\n' + json.dumps({"frames": 2000, "episode/score": 7}))
    assert read(folder).scores.tolist() == [5, 7]


def test_a_run_has_seen_more_than_its_last_episode(tmp_path):
    folder = make_run(tmp_path / "run", [(1000, 5.0), (2000, 7.25)])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"frames": 2600, "loss/total": 1.5, "speed/updates": 3}))
    curve = read(folder)
    assert (curve.last, curve.end) == (2000, 2600)
    write_metrics(folder, tmp_path / "metrics.csv", points=500, seen=1_000_000)
    assert (tmp_path / "metrics.csv").read_text() == "frames,loss/total\n7,1\n2600,1.5\n"
    (folder / "metrics.jsonl").unlink()
    write_csv(curve, folder / "scores.csv")
    assert read(folder).end == 2000
    (folder / "run.json").write_text('{"frames": 2600}')
    assert read(folder).end == 2600


def test_a_score_is_the_mean_of_the_last_episodes():
    curve = make_curve([(84, 1.0), (85, 2.0), (86, 3.0), (100, 5.0), (101, 100.0)])
    assert curve.at(100, 0.85) == 4  # those after 85 and up to 100
    assert curve.at(80, 0.85) is None  # before the first
    # Where none ended, those that ended last: here two at once.
    assert make_curve([(10, 9.0), (20, 1.0), (20, 3.0)]).at(100, 0.85) == 2


def test_a_score_is_first_reached_where_old_episodes_are_left_out_too():
    curve = replace(make_curve([(80, 1.0), (90, 9.0)]), seen=100)
    assert curve.at(94, 0.85) == 5 and curve.at(95, 0.85) == 9  # 85 % of 95 are beyond 80
    assert [curve.reached(score, 0.85) for score in (1, 5, 9, 10)] == [80, 90, 95, None]
    assert replace(curve, seen=94).reached(9, 0.85) is None
    assert make_curve([(80, -2.0), (90, 2.0)]).reached(0, 0.85) == 90  # 0 in the mean


def test_hours_are_those_of_the_frames_that_a_step_takes(tmp_path):
    """Of an environment that repeats by itself, which the config does not tell."""
    folder = make_run(tmp_path / "run", [(1000, 5.0)], task="gym/ALE/Pong-v5")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n" + json.dumps({"frames": 14_400, "speed/agent_steps_per_second": 1.0}))
    assert hours(folder) == [(14_400, 4.0)]  # there is no checkpoint yet
    (folder / "checkpoint.json").write_text(json.dumps({"counters": {"repeat": 4, "rows": 3600}}))
    assert hours(folder) == [(14_400, 1.0)] and minutes(folder) == 60
    assert minutes_per_frame(folder) == pytest.approx(60 / 14_400)


# Published -------------------------------------------------------------------------------------------------


def test_verdicts():
    band = published("dmc/cartpole_swingup")[1]  # 516 +- 16: 15% is the wider, 77
    assert round(band.mean) == 516
    assert verdict(band.mean - 77, band, 2) == "within" == verdict(band.mean + 77, band, 1)
    assert verdict(band.mean - 78, band, 2) == "behind" and verdict(band.mean + 78, band, 2) == "ahead"
    assert verdict(band.mean - 78, band, 1) == "likely behind"
    wide = next(band for band in published("dmc/walker_walk") if band.frames == 100_000)
    assert (round(wide.mean), round(wide.std)) == (478, 164)
    assert verdict(wide.mean - 2.29 * wide.std, wide, 5) == "within"
    assert verdict(wide.mean - 2.31 * wide.std, wide, 5) == "behind"


def test_only_the_same_protocol_is_judged():
    band = published("dmc/cartpole_swingup")[1]
    same = configs.make_config("dmc/cartpole_swingup")
    assert other_protocol(same) == []
    expected = "at 100 thousand frames: 512; published 515.8 +- 15.8 (5 seeds): within"
    assert standing(same, band, 512.0) == expected
    other = configs.make_config("dmc/cartpole_swingup", size="1m", settings=["ratio=128", "repeat=4"])
    assert other_protocol(other) == ["repeat 2, here 4", "ratio 512, here 128", "size 12m, here 1m"]
    differing = "repeat 2, here 4; ratio 512, here 128; size 12m, here 1m"
    assert standing(other, band, 512.0).endswith(f"(5 seeds): not judged, another protocol: {differing}")
    changed = configs.make_config("dmc/cartpole_swingup", settings=["optimizer.learning_rate=0.001", "model.units=8"])
    assert other_protocol(changed) == ["model.units 256, here 8", "optimizer.learning_rate 4e-05, here 0.001"]
    harmless = configs.make_config("dmc/cartpole_swingup", seed=3, frames=9, settings=["run.precision=float32"])
    assert other_protocol(harmless) == []
    sticky = configs.make_config("atari/pong", settings=["environment.sticky=0.0"])
    assert other_protocol(sticky) == ["environment.sticky 0.25, here 0"]
    usual = configs.make_config("atari/pong", settings=["environment.sticky=0.25", "environment.size=96"])
    assert other_protocol(usual) == [] and configs.method(usual) == "size 200m, ratio 32"
    own = configs.make_config("gym/CartPole-v1", settings=["environment.sutton=true"])
    assert other_protocol(own) == ["here environment.sutton=True"]


def test_settings_that_nobody_published_have_runs_of_this_package_beside_them():
    """The figures are those of runs/results/curves at the published frames, two seeds up to 100,000."""
    small = configs.make_config("dmc/cartpole_swingup", size="1m", seed=7)
    band = published("dmc/cartpole_swingup")[1]
    said = standing(small, band, 512.0)
    expected = ". Runs of this package with these settings: 389.7 (2 seeds, 377.1 to 402.2)"
    assert said.endswith(f"(5 seeds): not judged, another protocol: size 12m, here 1m{expected}")
    assert own_expectation(small) == (
        "Runs of this package with these settings (1 to 2 seeds): 235.1 at 50 thousand frames, "
        "535.4 at 150 thousand frames, 791.8 at 200 thousand frames"
    )
    slow = configs.make_config("dmc/cartpole_swingup", size="1m", settings=["ratio=128"])
    assert own(slow) == [] and own_expectation(slow) is None
    assert standing(slow, band, 512.0).endswith("ratio 512, here 128; size 12m, here 1m")
    beyond = published("dmc/cartpole_swingup")[-1]
    assert standing(small, beyond, 512.0).endswith("size 12m, here 1m")


def test_the_runs_that_come_with_the_package_are_those_that_are_kept():
    """Each row; what has been kept since may be missing until `make evidence` ends."""
    come = (Path(configs.__file__).parent / "data" / "own_runs.csv").read_text().splitlines()
    kept = own_runs.table(own_runs.CURVES).splitlines()
    assert len(come) > 10 and set(come) <= set(kept), (
        "PYTHONPATH=. python tests/own_runs.py > dreamer/data/own_runs.csv"
    )


def test_every_published_curve_can_be_read():
    """Also those of a single seed, which have no deviation."""
    for suite, file in CURVES.items():
        for key, method in {(row["task"], row["method"]) for row in _rows(file)}:
            name = key.split("_", 1)[1]
            bands = published(f"{suite}/{name}", method)
            assert bands and all(band.std >= 0 and band.low <= band.mean <= band.high for band in bands), (suite, key)


def test_numbers_keep_all_before_the_point():
    assert [number(value) for value in (75_182.3, -999.97, 1000, 804.66, -20.55, 0)] == [
        "75,182", "-1000", "1,000", "804.7", "-20.55", "0"
    ]  # fmt: skip
    climber = configs.make_config("atari100k/crazy_climber")
    band = published("atari100k/crazy_climber")[-1]
    assert "400 thousand frames: 97,190; published 7" in standing(climber, band, 97_190.4)
    assert "e+" not in standing(climber, band, 97_190.4)


def test_frames_in_short():
    words = [short(frames) for frames in (999, 1000, 99_600, 100_400, 999_999, 1_250_000, 51_200_000, 200_000_000)]
    assert words == [
        "999", "1 thousand", "100 thousand", "100 thousand", "1 million", "1.2 million", "51 million", "200 million"
    ]  # fmt: skip


def test_windows_are_those_of_the_tables():
    assert [window(task) for task in ("dmc/a", "atari100k/a", "dmc_vision/a", "atari/a")] == [0.85, 0.85, 0.9, 0.9]


# Comparing -------------------------------------------------------------------------------------------------


def test_seeds_share_a_row_and_methods_do_not():
    runs = [
        make_curve(ramp(100_000, 500), seed=0),
        make_curve(ramp(100_000, 540), seed=1),
        make_curve(ramp(120_000, 100), size="1m"),
    ]
    large, small = results(runs)
    # Episodes after 85,000 frames: 86,000 to 100,000, 93,000 in the mean.
    assert large.scores == pytest.approx((0.93 * 500, 0.93 * 540)) and large.frames == 100_000
    assert (large.method, large.verdict, large.published.frames) == ("size 12m, ratio 512", "within", 100_000)
    assert (small.method, small.verdict, small.published.frames) == ("size 1m, ratio 512", "", 100_000)
    assert small.protocol == ("size 12m, here 1m",)
    assert small.frames == 100_000  # where the shortest run on the task ends
    assert results(runs[:1], frames=50_000)[0].mean == pytest.approx(500 * 46.5 / 100)
    with pytest.raises(UserMistake, match="is seed 0 of dmc/cartpole_swingup with size 12m, ratio 512, as run is"):
        results([runs[0], runs[0]])
    with pytest.raises(UserMistake, match="has no score at 200,000 frames; it ends at 100,000"):
        results(runs[:1], frames=200_000)
    with pytest.raises(UserMistake, match="has no score at 100,001 frames; it ends at 100,000"):
        results(runs[:1], frames=100_001)


def test_a_whole_run_is_judged_at_its_last_published_point():
    """Its last episode ends a little before its frames do."""
    pairs = [(frames, 900.0) for frames in range(8016, 500_001, 8016)]
    assert pairs[-1][0] == 496_992
    run = replace(make_curve(pairs), seen=500_000)
    (found,) = results([run])
    assert (found.frames, found.published.frames, found.there, found.verdict) == (500_000, 500_000, (900.0,), "within")
    # One that ends between two points is judged at the first of them, by its score there.
    (found,) = results([make_curve([(50_000, 1.0), (90_000, 510.0), (100_000, 520.0), (130_000, 900.0)])])
    assert (found.frames, found.scores) == (130_000, (900.0,))
    assert (found.published.frames, found.there, found.verdict) == (100_000, (515.0,), "within")


def test_normalised_scores():
    assert normalize("dmc/walker_walk", 250) == 0.25
    assert normalize("atari/pong", 14.6) == pytest.approx(1)
    assert normalize("gym/CartPole-v1", 500) is None


def test_the_interquartile_mean_leaves_out_a_quarter_on_either_side():
    assert interquartile_mean(np.array([100.0, 1, 2, 3, 4, 5, 6, -50])) == 3.5  # of 2, 3, 4, 5
    assert interquartile_mean(np.array([1.0, 2, 9])) == 4  # too few to leave any out


def test_aggregates_have_intervals_where_there_are_seeds():
    found = results(
        [
            make_curve(ramp(1_000_000, 1000 * score), task=task, seed=seed)
            for task in ("dmc/walker_walk", "dmc/cheetah_run")
            for seed, score in enumerate((0.2, 0.4, 0.6))
        ]
    )
    for aggregate in aggregates(found):
        low, high = aggregate.interval
        assert 0.15 < low < aggregate.value < high < 0.6
        assert aggregate.value == pytest.approx(0.4 * 0.9255, rel=0.01)
    # As rliable has them: the mean and the median are those of the tasks' means, whatever their number of seeds.
    uneven = [
        Result(f"dmc/{i}", "", 1, s, None, (), "", (), None) for i, s in enumerate([(100.0, 300.0), (500.0,), (900.0,)])
    ]
    assert [round(a.value, 3) for a in aggregates(uneven)] == [0.4, 0.533, 0.5]
    assert all(a.interval is None for a in aggregates(results([make_curve(ramp(10_000, 5))])))
    assert aggregates(results([make_curve(ramp(10_000, 5), task="gym/CartPole-v1")])) == []


def test_aggregates_are_those_of_rliable():
    # Five seeds of four tasks. rliable 1.2.0, aggregate_iqm, _mean and _median, and get_interval_estimates with 50,000
    # resamplings; with another generator and 2,000 the intervals' ends come out within 0.01.
    tasks = [
        (100.0, 300.0, 350.0, 50.0, 200.0),
        (200.0, 250.0, 150.0, 450.0, 300.0),
        (500.0, 400.0, 700.0, 600.0, 900.0),
        (900.0, 1100.0, 700.0, 1300.0, 800.0),
    ]
    found = aggregates([Result(f"dmc/{i}", "", 1, scores, None, (), "", (), None) for i, scores in enumerate(tasks)])
    assert [each.value for each in found] == pytest.approx([0.455, 0.5125, 0.445])
    low, high = zip(*(each.interval for each in found))
    assert low == pytest.approx((0.385, 0.445, 0.365), abs=0.01)
    assert high == pytest.approx((0.535, 0.5825, 0.535), abs=0.01)


def test_compare_from_the_command_line(tmp_path):
    folders = [
        str(make_run(tmp_path / f"{task}-{seed}", ramp(100_000, 500 + seed), task=f"dmc/{task}", seed=seed))
        for task in ("cartpole_swingup", "walker_walk")
        for seed in (0, 1)
    ]
    result = CliRunner().invoke(main, ["compare", *folders])
    assert result.exit_code == 0, result.output
    assert "interquartile mean" in result.stdout and "within" in result.stdout
    report = json.loads(CliRunner().invoke(main, ["compare", *folders, "--json"]).stdout)
    assert [entry["task"] for entry in report["results"]] == ["dmc/cartpole_swingup", "dmc/walker_walk"]
    assert [entry["name"] for entry in report["aggregates"]] == ["interquartile mean", "mean", "median"]
    assert {(entry["scale"], entry["tasks"]) for entry in report["aggregates"]} == {
        ("dmc, scores as a share of 1000", 2)
    }
    assert "as a share of 1000, over 2 tasks at 100,000 frames:" in result.stdout
    for single in ([*folders[:1], *folders[2:]], folders[::2]):
        lines_ = CliRunner().invoke(main, ["compare", *single]).stdout
        assert "interquartile mean" in lines_ and "(no interval, since a task has one seed)" in lines_
    assert "Runs of this package" not in result.stdout  # where the published ones judge
    small = str(make_run(tmp_path / "small", ramp(120_000, 500), size="1m"))
    result = CliRunner().invoke(main, ["compare", f"mine={small}"])
    (_, rest) = result.stdout.split("\nRuns of this package with these settings:\n")
    assert rest.startswith("  dmc/cartpole_swingup, mine: 389.7 (2 seeds, 377.1 to 402.2) at 100 thousand frames\n")
    shorter = str(make_run(tmp_path / "shorter", ramp(60_000, 500), task="dmc/cheetah_run"))
    assert not result.stderr
    young = str(make_run(tmp_path / "young", ramp(60_000, 500), seed=2))
    result = CliRunner().invoke(main, ["compare", *folders, young])
    assert result.stderr == (
        f"dmc/cartpole_swingup is compared at 60,000 frames, where {young} ends; leave it out to compare later scores, "
        "up to 100,000\n"
    )
    assert not CliRunner().invoke(main, ["compare", *folders, young, "--frames", "60000"]).stderr
    result = CliRunner().invoke(main, ["compare", *folders, shorter])
    assert "over 3 tasks at 60,000 to 100,000 frames; --frames N sets them all to one:" in result.stdout
    report = json.loads(CliRunner().invoke(main, ["compare", *folders, shorter, "--json"]).stdout)
    assert [entry["frames"] for entry in report["aggregates"]] == [[60_000, 100_000]] * 3


def test_runs_are_not_set_beside_themselves():
    kept = [own_runs.CURVES / f"dmc-cartpole_swingup-1m-ratio512-seed{seed}" for seed in (0, 1)]
    (both,), (one,) = (results([read(folder) for folder in folders], 100_000) for folders in (kept, kept[:1]))
    assert both.own is None and one.own.seeds == 2


def test_a_picture_says_how_many_seeds():
    def line(*seeds):
        return Line("", seeds, *[np.zeros(0)] * 4, ())

    assert [_seeds(each) for each in ([line(3)], [line(0, 1)], [line(0), line(0)])] == [
        "seed 3", "2 seeds", "seed 0"
    ]  # fmt: skip
    assert _seeds([line(0), line(1)]) == "1 seed each"
    assert _seeds([line(0), line(0, 1, 2)]) == "1 to 3 seeds each"


# Drawing ---------------------------------------------------------------------------------------------------


def test_a_line_over_seeds_goes_as_far_as_all_of_them():
    (line,) = lines([make_curve(ramp(40_000, 400), seed=0), make_curve(ramp(80_000, 1600), seed=1)])
    assert (line.method, line.seeds) == ("size 12m, ratio 512", (0, 1))
    assert line.frames.tolist() == list(range(1000, 40_001, 1000))
    # At 40,000 frames the score of those after 34,000: what a table would show.
    assert (line.low[-1], line.high[-1], line.mean[-1]) == pytest.approx((375, 750, 562.5))
    # The longer one goes on from there, alone.
    ((frames, scores),) = line.further
    assert frames.tolist() == list(range(40_000, 80_001, 1000))
    assert (scores[0], scores[-1]) == pytest.approx((750, 20 * 74.5))


def test_seeds_whose_episodes_end_at_other_frames_have_a_line():
    runs = [make_curve([(f + shift, 5.0 + shift) for f in range(0, 90_000, 8000)], seed=shift) for shift in (0, 4000)]
    (line,) = lines(runs)
    assert line.frames.tolist() == list(range(4000, 88_001, 4000)) and (line.mean == 2005).all()


def test_seeds_that_do_not_overlap_have_a_line_each():
    (line,) = lines([make_curve([(1000, 5.0)], seed=0), make_curve([(2000, 7.0), (3000, 9.0)], seed=1)])
    assert len(line.frames) == len(line.mean) == 0
    assert [(frames.tolist(), scores.tolist()) for frames, scores in line.further] == [
        ([1000], [5]), ([2000, 3000], [7, 9])
    ]  # fmt: skip


def test_methods_are_told_apart_by_what_differs():
    runs = [
        make_curve(ramp(10_000, 5), size="1m"),
        make_curve(ramp(10_000, 5), size="1m", settings=["behavior.entropy=0.003"]),
        make_curve(ramp(10_000, 5)),
    ]
    assert [(line.method, line.seeds) for line in lines(runs)] == [
        ("size 12m, ratio 512", (0,)),
        ("size 1m, ratio 512", (0,)),
        ("size 1m, ratio 512, behavior.entropy 0.003", (0,)),
    ]


def test_a_seed_twice_is_no_second_seed():
    with pytest.raises(UserMistake, match="is seed 0 of dmc/cartpole_swingup with size 12m, ratio 512, as run is"):
        lines([make_curve(ramp(10_000, 5)), make_curve(ramp(20_000, 5))])


def test_a_name_tells_runs_of_the_same_settings_apart(tmp_path):
    before, after = (str(make_run(tmp_path / name, ramp(50_000, top))) for name, top in (("a", 100), ("b=c", 200)))
    other = str(make_run(tmp_path / "d", ramp(50_000, 100), size="1m", seed=1))
    runs = [f"before={before}", f"after={after}"]
    told = json.loads(CliRunner().invoke(main, ["compare", *runs, "--json"]).stdout)["results"]
    assert [(each["method"], each["mean"]) for each in told] == [("after", 186), ("before", 93)]
    picture = CliRunner().invoke(main, ["plot", *runs, "--out", str(tmp_path / "p.svg")])
    assert picture.exit_code == 0 and (tmp_path / "p.svg").stat().st_size > 10_000
    (plain,) = json.loads(CliRunner().invoke(main, ["compare", after, "--json"]).stdout)["results"]
    assert plain["method"] == "size 12m, ratio 512"  # a folder may have the sign in its own name
    clash = CliRunner().invoke(main, ["compare", before, after])
    assert clash.exit_code == 2 and f"give one, or each a name: before={before} after={after}" in clash.stderr
    mixed = CliRunner().invoke(main, ["compare", runs[0], f"before={other}"])
    assert mixed.exit_code == 2 and "ratio 512; give them different names" in mixed.stderr
    nowhere = CliRunner().invoke(main, ["compare", "before=nowhere"])
    assert nowhere.exit_code == 2 and "nowhere" in nowhere.stderr


def test_a_line_goes_as_far_as_the_run_itself():
    # Its last episode ended at 96,000; at 100,000 frames the score is of those after 85,000: 88,000 and 96,000.
    run = replace(make_curve([(f, f / 1000) for f in range(8000, 96_001, 8000)]), seen=100_000)
    (line,) = lines([run])
    assert line.frames[-2:].tolist() == [96_000, 100_000] and line.mean[-1] == 92
    longer = replace(run, config=configs.make_config("dmc/cartpole_swingup", seed=1), seen=104_000)
    ((frames, _),) = lines([run, longer])[0].further
    assert frames.tolist() == [100_000, 104_000]


def test_what_was_measured_is_kept_as_means_that_stay(tmp_path):
    folder = make_run(tmp_path / "run", [(1000, 5.0)], frames=1000)
    out = tmp_path / "metrics.csv"
    for frames in range(50, 701, 50):
        with (folder / "metrics.jsonl").open("a") as file:
            file.write("\n" + json.dumps({"frames": frames, "loss/total": frames / 10}))
        if frames == 450:
            write_metrics(folder, out, points=5, seen=450)
            early = out.read_text()
    # Of 200 frames each: 1, 5, 10, 15, 20; 25 to 40; 45 so far.
    assert early == "frames,loss/total\n200,10.2\n400,32.5\n450,45\n"
    write_metrics(folder, out, points=5, seen=450)  # as a run that has not saved more will begin again
    assert out.read_text() == early
    write_metrics(folder, out, points=5, seen=700)
    assert out.read_text() == "frames,loss/total\n200,10.2\n400,32.5\n600,52.5\n700,67.5\n"


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_with_a_panel_for_each_task(tmp_path, ending):
    folders = [
        str(make_run(tmp_path / "a", ramp(100_000, 500), seed=0)),
        str(make_run(tmp_path / "b", ramp(100_000, 600), seed=1)),
        str(make_run(tmp_path / "c", ramp(10_000, 400), task="gym/CartPole-v1")),
    ]
    out = tmp_path / f"curves.{ending}"
    result = CliRunner().invoke(main, ["plot", *folders, "--out", str(out)])
    assert result.exit_code == 0 and str(out) in result.stdout, result.output
    if ending == "png":
        width, height = Image.open(out).size
        assert width == pytest.approx(2 * 4.2 * 160, abs=2) and height >= 3 * 160
    if ending == "svg":
        before = out.read_bytes()
        draw([read(Path(folder)) for folder in folders], out)
        assert out.read_bytes() == before


def test_what_is_written_below_a_picture_is_all_in_it(tmp_path):
    settings = ["replay.batch=8", "behavior.horizon=10", "optimizer.learning_rate=1e-3", "model.free_nats=0.5"]
    draw([read(make_run(tmp_path / "a", ramp(100_000, 500), settings=settings))], tmp_path / "a.png")
    picture = np.asarray(Image.open(tmp_path / "a.png").convert("L"))
    assert (picture < 100)[-200:].any() and (picture[:, [0, 1, -2, -1]] == 255).all()


def test_many_long_names_leave_the_panel_its_room(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    rooms, save = [], Figure.savefig

    def saved(figure, *args, **kwargs):
        save(figure, *args, **kwargs)
        panel = figure.axes[0]
        label = panel.yaxis.label.get_window_extent()
        assert label.y0 > 0 and label.y1 < figure.bbox.height
        rooms.append(panel.get_window_extent().height / figure.dpi)

    monkeypatch.setattr(Figure, "savefig", saved)
    runs = [
        make_curve(ramp(100_000, 500), settings=[f"behavior.horizon={10 + i}", f"optimizer.learning_rate={i + 1}e-3"])
        for i in range(5)
    ]
    draw(runs, tmp_path / "five.png")
    draw(runs[:1], tmp_path / "one.png")
    assert min(rooms) > 1.9


def test_a_picture_that_cannot_be_drawn(tmp_path):
    folder = make_run(tmp_path / "run", [])
    for arguments, named in (
        (["--out", str(tmp_path / "curves.jpg")], "does not end in .png, .svg, .pdf"),
        (["--out", str(tmp_path / "no" / "curves.png")], "there is no folder"),
        (["--out", str(tmp_path / "curves.png")], "has no episode yet"),
    ):
        result = CliRunner().invoke(main, ["plot", str(folder), *arguments])
        assert result.exit_code == 2 and named in result.stderr
