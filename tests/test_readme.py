"""What the README shows works."""

import re
import shlex
from pathlib import Path

import pytest
import tiny
from click.testing import CliRunner

from dreamer.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
CORRIDOR, TRAIN, USE, DREAM, PLAN = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
NAMES = "train|evaluate|settings|plot|compare|imagine|diagnose|play|batch|bench|envs|doctor"
COMMANDS = sorted(
    set(re.findall(rf"(?:^|`)(dreamer (?:{NAMES}) [^`#\n]*|dreamer (?:{NAMES})\b)", README, re.MULTILINE))
)


def test_your_own_environment_and_the_agent_from_python(tmp_path, monkeypatch):
    (tmp_path / "corridor.py").write_text(CORRIDOR)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    widths = [word for setting in tiny.WIDTHS for word in ("--set", setting)]
    arguments = ["train", "--env", "corridor:Corridor", "--frames", "30", "--run", "runs/FOLDER", *widths]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "sees vector, 1 number, by MLP; does action, one of 2" in result.stderr
    names: dict = {}
    settings = f"settings={dict(each.split('=') for each in tiny.WIDTHS)}"
    exec(TRAIN.replace("frames=5000, seed=1", f"'runs/PYTHON', frames=30, {settings}"), names)
    assert len(names["scores"].scores) == 10 and str(names["run"]) == "runs/PYTHON"
    names = {}
    exec(USE, names)
    assert names["over"] and names["observation"]["vector"].tolist() == [10]
    exec(DREAM, names)
    assert names["observation"].shape == (1,) and not names["truncated"]
    names = {}
    exec(PLAN.replace("while not over", "for _ in range(3)"), names)  # it may take long
    assert names["best"] in (0, 1) and names["reward"] == -1
    assert names["memory"].action.argmax() == names["best"] and names["returns"].shape == (256,)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_is_understood(command):
    name, *arguments = shlex.split(command)[1:]
    main.commands[name].make_context(name, [word for word in arguments if word != "..."])  # type: ignore[attr-defined]


def test_there_are_commands_of_every_kind():
    assert {command.split()[1] for command in COMMANDS} == set(main.commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"\]\(((?!http|#)[^)]+)\)", README))))
def test_a_picture_is_there(path):
    assert (ROOT / path).is_file() and (ROOT / path).stat().st_size < 1_500_000


def test_the_contents_lead_to_the_sections():
    sections = [
        re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in re.findall("^## (.+)$", README, re.M)
    ]
    assert re.findall(r"\]\(#([^)]+)\)", README) == [name for name in sections if name != "two-commands"]


@pytest.mark.parametrize("path", sorted(set(re.findall(r"`((?:dreamer|envs|runs/results)/[\w/.]*)`", README))))
def test_a_file_that_is_named_is_there(path):
    assert (ROOT / path).exists()
