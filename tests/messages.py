"""Every mistake and fault we could think of, and what is said to it, as a table.

python tests/messages.py > runs/results/faults/messages.md
"""

import os
import platform
import shutil
import sys
import tempfile
from pathlib import Path

import tiny
from click.testing import CliRunner
from test_cli import OWN

from dreamer.checkpoint import RunFolder
from dreamer.cli import main as dreamer

WIDTHS = [part for setting in tiny.WIDTHS for part in ("--set", setting)]
CARTPOLE = ["train", "--env", "gym/CartPole-v1", "--size", "1m", "--frames", "20", *WIDTHS]


def table(place: Path) -> None:
    run = place / "run"
    other = ["--run", str(place / "other")]

    def own(name: str, *more: str) -> list[str]:
        options = ["--size", "1m", "--frames", "300", "--set", "run.restarts=0", *WIDTHS]
        folder = ["--run", str(place / name)]
        return ["train", "--env", f"my_worlds:{name}", *options, *folder, *more]

    print("| what was tried | what is said | exit code |\n|---|---|---|")
    row("no task", ["train"])
    row("a task without its suite", ["train", "--env", "pong", *other])
    row("a mistyped suite", ["train", "--env", "atary/pong", *other])
    row("a mistyped game", ["train", "--env", "atari/pnog", *other])
    row("a mistyped Control Suite task", ["train", "--env", "dmc/walker_wlak", *other])
    row("a mistyped Gymnasium id", ["train", "--env", "gym/CartPol-v1", *other])
    row("a module that is not there", ["train", "--env", "no_such_module:factory", *other])
    row("a mistyped command", ["trian"])
    row("a mistyped option", ["train", "--fames", "3"])
    row("frames that are no number", ["train", "--frames", "many"])
    row("a setting that is not there", [*CARTPOLE, *other, "--set", "replay.bach=2"])
    row("a setting of the wrong type", [*CARTPOLE, *other, "--set", "replay.batch=two"])
    row("a setting out of range", [*CARTPOLE, *other, "--set", "behavior.trace=2"])
    row(
        "an option that the suite does not have",
        ["train", "--env", "atari/pong", *other, "--set", "environment.stick=1"],
    )
    row("a size that is not there", [*CARTPOLE, *other, "--size", "2m"])
    row("a replay smaller than a sequence", [*CARTPOLE, *other, "--set", "replay.capacity=3"])
    row(
        "batches that do not fit",
        ["train", "--env", "gym/CartPole-v1", *other, "--size", "1m", "--set", "replay.batch=20000"],
    )
    row("`--device cuda` without a GPU", [*CARTPOLE, *other, "--device", "cuda"])
    row("a folder that cannot be written", [*CARTPOLE, "--run", "/proc/runs"])
    (place / "file").write_text("")
    row("a file where a folder should be", [*CARTPOLE, "--run", str(place / "file")])
    (place / "thesis").mkdir()
    (place / "thesis" / "chapter.tex").write_text("")
    row("a folder with something else in it", [*CARTPOLE, "--run", str(place / "thesis")])
    row("a space that cannot be used", own("Text"))
    row("actions without bounds", own("NoBounds"))
    row("NaN at the first reset", own("NaN"))
    row("a reset of the old kind", own("OldReset"))
    row("a first step that raises", own("Raising"))
    row("a factory that raises", own("NoSuchFile"))
    row("something that is no environment", own("NotAnEnv"))
    row("a factory that is not callable", own("number"))
    row("a module with a syntax error", ["train", "--env", "my_typo:world", *other])
    row("a step that raises after a while", own("Later"))
    row("NaN after a while", own("LaterNaN"))
    row("an observation of another shape", own("LateShape"))
    row("an observation without one of its keys", own("LateKey"))
    row("a class beyond its space", own("LateClass"))
    row("a reward that is no number", own("LateReward"))
    row("a step that returns four values", own("LateTuple"))
    row(
        "a step that raises, with restarts",
        own("Later", "--set", "run.restarts=3", "--run", str(place / "again")),
        "anew",
    )
    for name, what in (("Hanging", "hangs"), ("Crashing", "crashes")):
        one = own(name, "--set", "run.restarts=1", "--set", "run.patience_seconds=5", "--frames", "80")
        row(f"a step that {what}", one, "anew")
    row(
        "a step that hangs, without restarts",
        own("Hanging", "--set", "run.patience_seconds=5", "--run", str(place / "h")),
    )
    row("a run", [*CARTPOLE, "--run", str(run)], "Saved")
    row("the same again", [*CARTPOLE, "--run", str(run)], "give more --frames")
    row("another task in its folder", ["train", "--env", "gym/Acrobot-v1", "--run", str(run)])
    row("another seed in its folder", ["train", "--seed", "5", "--run", str(run)])
    more = ["train", "--run", str(run), "--frames"]
    row("going on, where the environment cannot save its state", [*more, "40"], "The open episodes")
    with RunFolder(run).lock():
        row("a second process in its folder", [*more, "60"])
    state = run / "state-40.pt"
    state.write_bytes(state.read_bytes()[:-100])
    row("a checkpoint that is cut off", [*more, "60"], "damaged")
    state = run / "state-60.pt"
    state.write_bytes(state.read_bytes()[:1000] + b"!" + state.read_bytes()[1001:])
    row("a checkpoint with one wrong byte", ["evaluate", str(run), "--episodes", "1"], "damaged")
    (run / "state-20.pt").unlink()
    row("both checkpoints damaged", ["evaluate", str(run)])
    for name in ("checkpoint.json", "previous.json"):
        (run / name).unlink()
    row("no checkpoint", ["evaluate", str(run)])
    (run / "config.json").write_text("{}")
    row("a config that is not ours", ["evaluate", str(run)])
    row("a folder without a run", ["evaluate", str(place / "thesis")])
    row("zero episodes", ["evaluate", str(run), "--episodes", "0"])
    row("a film of an unknown kind", ["evaluate", str(run), "--video", "film.avi"])


def row(tried: str, arguments: list[str], about: str = "dreamer: ") -> None:
    """Run it, and print the line that is about it."""
    result = CliRunner().invoke(dreamer, arguments)
    assert "Traceback" not in result.stderr, result.stderr
    lines = [line for line in result.stderr.splitlines() if about in line]
    said = (lines or result.stderr.splitlines())[0].replace("|", "\\|")
    said = said.replace(os.getcwd(), "...").replace(platform.node(), "HOST")
    print(f"| {tried} | {said} | {result.exit_code} |", flush=True)


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(prefix="faults-"))
    (folder / "my_worlds.py").write_text(OWN)
    (folder / "my_typo.py").write_text("def world(:")
    sys.path.append(str(folder))
    os.chdir(folder)
    table(folder)
    shutil.rmtree(folder)
