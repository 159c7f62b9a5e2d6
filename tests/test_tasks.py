import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
from click.testing import CliRunner

import envs
from dreamer import tasks
from dreamer.cli import main
from dreamer.config import PROTOCOLS


class PackageMissing(ValueError):
    pass


@dataclass
class Suite:
    name: str
    tasks: tuple[str, ...] = ()
    description: str = "a suite"
    options: dict[str, Any] = field(default_factory=dict)
    takes_any_option: bool = False
    missing: str = ""

    def names(self):
        if self.missing:
            raise PackageMissing(self.missing)
        return list(self.tasks)


ATARI = Suite("atari", ("alien", "breakout", "ms_pacman", "pong"), options={"size": 96, "grey": True, "actions": "all"})
ATARI100K = Suite("atari100k", ATARI.tasks)
DMC = Suite("dmc", ("cartpole_swingup", "humanoid_CMU_run", "walker_run", "walker_walk"))
GYM = Suite("gym", ("ALE/Pong-v5", "CartPole-v1", "MountainCar-v0"), takes_any_option=True)
SUITES = {suite.name: suite for suite in (ATARI, ATARI100K, DMC, GYM)}


def find(pattern, suites=SUITES):
    return tasks.matching(tasks.read(suites, PackageMissing, pattern), pattern)


def complaint(pattern, suites=SUITES):
    with pytest.raises(tasks.NoSuchTask) as raised:
        find(pattern, suites)
    return str(raised.value)


def dreamer_envs(*arguments):
    return CliRunner().invoke(main, ["envs", *arguments])


@pytest.mark.parametrize(
    "pattern, names",
    {
        "walker": ["dmc/walker_run", "dmc/walker_walk"],
        "WALKER": ["dmc/walker_run", "dmc/walker_walk"],
        "atari/*": ["atari/alien", "atari/breakout", "atari/ms_pacman", "atari/pong"],
        "atari/pong": ["atari/pong"],
        "gym/cart*": ["gym/CartPole-v1"],
        "Cart*": ["dmc/cartpole_swingup", "gym/CartPole-v1"],
        "*/pong": ["atari/pong", "atari100k/pong"],
        "*cmu*": ["dmc/humanoid_CMU_run"],
        "ale/pong": ["gym/ALE/Pong-v5"],
        "walker_[rw]*": ["dmc/walker_run", "dmc/walker_walk"],
        "dmc/walker_???": ["dmc/walker_run"],
    }.items(),
)
def test_a_pattern_is_a_part_of_a_name_or_has_wildcards(pattern, names):
    assert find(pattern) == names


@pytest.mark.parametrize(
    "pattern, suggested",
    {
        "pnog": "the closest are atari/pong, atari100k/pong, gym/ALE/Pong-v5",
        "atari/pnog": "the closest is atari/pong",
        "atri/pong": "the closest is atari/pong",
        "Atari10k/brekout": "the closest is atari100k/breakout",
        "atri/*": "the closest is atari/*",
        "mujoco/walker_walk": "the closest are dmc/walker_walk, dmc/walker_run",
        "walkr": "the closest are dmc/walker_run, dmc/walker_walk",
        "Wlaker*": "the closest are dmc/walker_run, dmc/walker_walk",
        "ataripong": "the closest are atari/pong, atari100k/pong",
        "gym/ALE/Pnog-v5": "the closest is gym/ALE/Pong-v5",
        "xyzzy": "no name is close; dreamer envs shows the suites",
    }.items(),
)
def test_a_mistyped_name_is_answered_with_the_closest(pattern, suggested):
    answer = complaint(pattern)
    assert answer.startswith(f"no task matches '{pattern}'")
    assert suggested in answer


def test_a_pattern_with_a_suite_looks_nowhere_else():
    broken = Suite("atari", missing="looked at")
    assert [listed.suite.name for listed in tasks.read(SUITES | {"atari": broken}, PackageMissing, "GYM/x")] == ["gym"]


def test_overview_has_protocols_options_and_examples():
    text = tasks.overview(tasks.read(SUITES, PackageMissing))
    atari = text.partition("\n\n")[0]
    assert "200,000,000 frames, repeat 4, ratio 32, 16 environments, size 200m" in atari
    assert "size=96, grey=true, actions=all" in atari
    assert "4, for example atari/pong, atari/breakout, atari/ms_pacman" in atari
    assert "1 environment, size 200m" in text
    assert "1,000,000 frames, its own repeat" in text
    assert "Without a GPU the size is 1m" in text
    assert max(len(line) for line in text.splitlines()) <= 80


def test_a_suite_without_its_package_is_listed_with_the_command():
    suites = SUITES | {"atari": Suite("atari", missing="Atari games need the package ale_py: pip install ale-py.")}
    text = tasks.overview(tasks.read(suites, PackageMissing))
    assert "pip install ale-py" in text.partition("\n\n")[0]
    assert "dmc/walker_walk" in text


def test_examples_are_the_first_names_where_none_is_well_known():
    suite = Suite("mine", ("d", "c", "b", "a"))
    assert "4, for example mine/d, mine/c, mine/b" in tasks.overview(tasks.read({"mine": suite}, PackageMissing))


def test_command_lists_every_suite():
    result = dreamer_envs()
    assert result.exit_code == 0, result.output
    for name in envs.suites():
        assert f"\n\n{name} - " in "\n\n" + result.stdout
    for protocol in PROTOCOLS.values():
        assert f"{protocol['frames']:,} frames" in result.stdout
    assert max(len(line) for line in result.stdout.splitlines()) <= 80
    assert "\x1b" not in result.output


def test_command_prints_names_alone():
    result = dreamer_envs("gym/CartPole*")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["gym/CartPole-v0", "gym/CartPole-v1"]
    assert not result.stderr


def test_command_answers_a_mistyped_name_in_one_sentence():
    result = dreamer_envs("atari/pnog")
    assert result.exit_code == 2
    assert not result.stdout
    assert result.stderr == "dreamer: no task matches 'atari/pnog'; the closest is atari/pong\n"


def test_command_without_ale(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    overview = dreamer_envs()
    assert overview.exit_code == 0
    assert overview.stdout.count("pip install ale-py") == 2  # atari and atari100k
    found = dreamer_envs("atari/pong")
    assert found.exit_code == 2
    assert "Not searched: Atari games need the package ale_py: pip install ale-py." in found.stderr


def test_command_does_not_wait_for_torch():
    code = (
        "import sys; from click.testing import CliRunner; from dreamer.cli import main\n"
        "assert CliRunner().invoke(main, ['envs', 'atari/pong']).stdout == 'atari/pong\\n'\n"
        "assert not {'torch', 'dm_control'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
