"""A training without a compiler, or with one that fails: one line says so, and it goes on."""

import json
import os
import signal

import pytest
import tiny
import torch
import torch._inductor.config
from click.testing import CliRunner
from torch._inductor.cpu_vec_isa import pick_vec_isa

from dreamer import bench, compiling
from dreamer.agent import Agent
from dreamer.cli import main
from dreamer.machine import why_not_compile

compiles = pytest.mark.skipif(bool(why_not_compile(torch.device("cpu"))), reason="nothing to compile with")


def train(folder, frames=60):
    widths = [word for setting in tiny.WIDTHS for word in ("--set", setting)]
    options = ["--env", "gym/CartPole-v1", "--size", "1m", "--frames", "60", "--run", str(folder / "run"), *widths]
    result = CliRunner().invoke(main, ["train", *options, "--set", "run.compile=true"])
    assert result.exit_code == 0 and "Traceback" not in result.stderr, result.stderr
    assert f"{frames} of 60 frames" in result.stderr
    return [line for line in result.stderr.splitlines() if "ompiling:" in line or "Not capturing" in line]


def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "why_not_compile", lambda device: "g++ was not found")
    assert train(tmp_path) == ["Not compiling: g++ was not found. Everything works, more slowly."]


@pytest.mark.parametrize("broken", ["compile", "warm_up"])
def test_with_one_that_fails(tmp_path, monkeypatch, broken):
    def fail(self, *arguments):
        raise RuntimeError("CppCompileError: C++ compile error\nand much more")

    monkeypatch.setattr(compiling, "why_not_compile", lambda device: None)
    monkeypatch.setattr(Agent, broken, fail)
    assert train(tmp_path) == ["Not compiling: CppCompileError: C++ compile error. Everything works, more slowly."]


@pytest.fixture
def broken_compiler(tmp_path, monkeypatch):
    """One that is there and builds nothing."""
    compiler = tmp_path / "c++"
    compiler.write_text(
        "#!/bin/sh\ncase $1 in *-version) exec g++ $1;; esac\necho 'a.cpp:1: error: no room' >&2\nexit 1\n"
    )
    compiler.chmod(0o755)
    pick_vec_isa()  # tries once in a process, by compiling, what the processor has: later tests stand on that
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "empty"))
    torch.compiler.reset()
    with torch._inductor.config.patch({"cpp.cxx": (None, str(compiler))}):
        yield


@compiles
def test_with_one_that_really_fails(tmp_path, broken_compiler):
    (line,) = train(tmp_path)
    assert line.startswith("Not compiling: ") and "a.cpp:1: error: no room" in line and len(line) < 300


@compiles
def test_the_benchmark_goes_on_as_well(broken_compiler, monkeypatch):
    monkeypatch.setattr(bench, "REPEATS", (1, 1))
    monkeypatch.setattr(bench, "STEP_SECONDS", 0.05)
    widths = [word for setting in tiny.WIDTHS for word in ("--set", setting)]
    result = CliRunner().invoke(
        main, ["bench", "--env", "gym/CartPole-v1", "--size", "1m", "--json", *widths, "--set", "run.compile=true"]
    )
    assert result.exit_code == 0 and json.loads(result.stdout)["compiled"] is False
    assert "Not compiling: " in result.stderr and "Traceback" not in result.stderr


def test_stopping_while_it_compiles_is_no_failure_to_compile(tmp_path, monkeypatch):
    def stop(self, *arguments):
        os.kill(os.getpid(), signal.SIGINT)  # a terminal sends it to the compilers too
        raise RuntimeError("CppCompileError: C++ compile error")

    monkeypatch.setattr(compiling, "why_not_compile", lambda device: None)
    monkeypatch.setattr(Agent, "compile", stop)
    assert train(tmp_path, frames=0) == []


def test_a_library_that_was_left_half_written_is_removed(tmp_path, monkeypatch):
    from torch._inductor.runtime import cache_dir_utils

    library = tmp_path / "ab" / "kernel.so"
    library.parent.mkdir()
    library.write_text("")
    monkeypatch.setattr(cache_dir_utils, "cache_dir", lambda: str(tmp_path))
    monkeypatch.setattr(compiling, "why_not_compile", lambda device: None)
    monkeypatch.setattr(Agent, "compile", lambda self: None)
    real = Agent.warm_up

    def warm_up(self, *arguments):
        if library.exists():
            raise OSError(f"{library}: file too short")
        real(self, *arguments)

    monkeypatch.setattr(Agent, "warm_up", warm_up)
    assert train(tmp_path) == [] and not library.exists()
