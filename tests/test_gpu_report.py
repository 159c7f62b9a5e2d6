"""The report of `make gpu`, where there may be no GPU: the profile is real, the rest what commands would say."""

import json

import gpu_report
import tiny
from click.testing import CliRunner

FOUND = {
    "update": {"median_s": 0.005},
    "updates_per_second": 200.0,
    "first_update_s": 70.0,
    "peak_share": 0.4,
    "acting": {"16": {"median_s": 0.001}},
    "training": {"of_allowed": 0.9},
}
OPTIONS = ["--device", "cpu", "--profile", "gym/CartPole-v1:1", "--size", "1m", "--seconds", "0.2", "--beside", "2"]
OPTIONS += [word for setting in tiny.WIDTHS for word in ("--set", setting)]


def report(folder, monkeypatch, shell):
    monkeypatch.setattr(gpu_report, "shell", shell)
    result = CliRunner().invoke(gpu_report.main, [*OPTIONS, "--bench", "gym/CartPole-v1:1m", "--out", str(folder)])
    return result.exit_code, (folder / "report.md").read_text()


def test_everything_is_in_one_report(tmp_path, monkeypatch):
    def shell(command, seconds):
        if "bench" in command:
            return True, json.dumps(FOUND), "", 1.0
        if "train" in command:
            folder = gpu_report.Path(command[-1])
            folder.mkdir()
            (folder / "metrics.jsonl").write_text(json.dumps({"speed/updates_per_second": 150.0}) + "\n")
            return True, "", "", 12.0
        return True, "8 passed\n", "", 1.0

    code, text = report(tmp_path / "gpu", monkeypatch, shell)
    assert code == 0 and "FAILED" not in text
    assert "| gym/CartPole-v1, 1m | 5.00 ms | 200.0 | 70.0 s | 40% | 1.00 ms | 90% |" in text
    assert "8 passed" in text and "12.0 s, compiling included; 150.0 updates/s at the median" in text
    assert "| 2 | 150.0 | 300.0 |" in text
    assert "the device busy for" in text and "aten::" in text
    assert json.loads((tmp_path / "gpu" / "gym-CartPole-v1-1m.json").read_text()) == FOUND


def test_a_bench_that_went_on_without_a_graph_has_failed(tmp_path, monkeypatch):
    said = "Not capturing the update as one CUDA graph: CUDA error; measuring without ...\n"
    answers = {"bench": (True, json.dumps(FOUND), said, 1.0)}
    code, text = report(
        tmp_path / "gpu", monkeypatch, lambda words, _: answers["bench"] if "bench" in words else (False, "", "", 1.0)
    )
    assert code == 1 and "FAILED bench gym/CartPole-v1:1m: Not capturing" in text


def test_what_fails_is_said_and_the_rest_goes_on(tmp_path, monkeypatch):
    def profile(*arguments):
        raise RuntimeError("no profiler")

    monkeypatch.setattr(gpu_report, "profile", profile)
    code, text = report(tmp_path / "gpu", monkeypatch, lambda *_: (False, "2 failed\n", "out of memory", 1.0))
    assert code == 1
    failures = (
        "bench gym/CartPole-v1:1m: out of memory",
        "tests/test_cuda.py",
        "profile gym/CartPole-v1:1: no profiler",
    )
    for line in (f"FAILED {each}" for each in failures):
        assert line in text
    train = "--env atari100k/pong --size 1m --frames 40000 --set ratio=128"
    assert f"FAILED training {train}: out of memory" in text and f"FAILED training {train} --seed 1: out" in text
    assert "2 failed" in text


def test_a_training_that_goes_on_without_its_graph_has_failed(tmp_path, monkeypatch):
    def shell(command, seconds):
        if "train" not in command:
            return True, json.dumps(FOUND), "", 1.0
        folder = gpu_report.Path(command[-1])
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(json.dumps({"speed/updates_per_second": 15.0}) + "\n")
        return True, "", "Training\nNot capturing the update as one CUDA graph: CUDA error\n", 12.0

    code, text = report(tmp_path / "gpu", monkeypatch, shell)
    assert code == 1 and "FAILED training: Not capturing the update as one CUDA graph: CUDA error" in text


def test_what_was_seen_is_kept_when_it_is_stopped_and_parts_can_be_made_alone(tmp_path, monkeypatch):
    commands = []

    def shell(command, seconds):
        commands.append(command)
        if "bench" in command:
            raise KeyboardInterrupt
        return True, "8 passed\n", "", 1.0

    monkeypatch.setattr(gpu_report, "shell", shell)
    options = ["--device", "cpu", "--part", "tests", "--part", "bench", "--out", str(tmp_path)]
    result = CliRunner().invoke(gpu_report.main, options)
    assert result.exit_code == 1 and "8 passed" in (tmp_path / "report.md").read_text()
    assert len(commands) == len(gpu_report.TESTS) + 1


def test_commands_find_what_this_process_finds(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    done, said, _, _ = gpu_report.shell([gpu_report.sys.executable, "-c", "import sys; print(sys.path)"], 60)
    assert done and "/elsewhere" in said and str(gpu_report.Path(gpu_report.__file__).parent.parent) in said


def test_without_a_gpu_it_says_so_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_report.torch.cuda, "is_available", lambda: False)
    result = CliRunner().invoke(gpu_report.main, ["--out", str(tmp_path / "gpu")])
    assert result.exit_code == 2 and "this machine has no cuda device that torch can use" in result.output
    assert not (tmp_path / "gpu").exists()


def test_what_runs_side_by_side_is_counted_once():
    assert gpu_report.covered([(5, 6), (0, 2), (1, 3), (1, 2)]) == 4
    assert gpu_report.covered([]) == 0
