"""What the machine offers."""

import os
import subprocess
import sys

import pytest
import torch

from dreamer import machine


@pytest.mark.parametrize(
    ("share", "cores"),
    [("max 100000", 8), ("200000 100000", 2), ("150000 100000", 2), ("20000 100000", 1), ("1600000 100000", 8)],
)
def test_a_container_s_share_of_the_cores(tmp_path, monkeypatch, share, cores):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    (tmp_path / "cpu.max").write_text(share + "\n")
    monkeypatch.setattr(machine, "CGROUP_CPU", tmp_path / "cpu.max")
    assert machine.usable_cores() == cores


def test_threads_are_limited_and_never_raised(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "usable_cores", lambda: 3)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(5)
        machine.limit_threads()
        assert torch.get_num_threads() == 3
        torch.set_num_threads(1)
        machine.limit_threads()
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_the_gpu_of_a_mac_has_to_be_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert [machine.choose_device(name).type for name in ("auto", "mps")] == ["cpu", "mps"]


def test_the_precision_is_what_the_machine_is_fast_in(monkeypatch):
    cpu = torch.device("cpu")
    for found, dtype in (
        ({"avx512_bf16": True}, torch.bfloat16),
        ({"amx_bf16": True}, torch.bfloat16),
        ({}, torch.float32),
    ):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda found=found: found, raising=False)
        assert machine.choose_dtype("auto", cpu) == dtype
        assert machine.choose_dtype("float32", cpu) == torch.float32
        assert machine.choose_dtype("bfloat16", cpu) == torch.bfloat16


def test_torch_tells_what_the_machine_is_fast_in():
    """By names that a later version may change."""
    if hasattr(torch.cpu, "get_capabilities"):
        assert torch.cpu.get_capabilities()["architecture"]
    else:
        assert callable(torch.cpu._is_amx_tile_supported) and callable(torch.cpu._is_avx512_bf16_supported)


@pytest.mark.parametrize(("kind", "variable", "usual"), [("cpu", "CXX", "g++"), ("cuda", "CC", "gcc")])
def test_the_compiler_is_the_one_that_is_used(tmp_path, monkeypatch, kind, variable, usual):
    monkeypatch.setattr(machine.sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv(variable, raising=False)
    device = torch.device(kind)
    assert f"{usual} " in machine.why_not_compile(device)
    other = tmp_path / "mycc"
    other.write_text("")
    other.chmod(0o755)
    monkeypatch.setenv(variable, str(other))
    problem = machine.why_not_compile(device)
    assert problem is None or "headers" in problem
    monkeypatch.setenv(variable, "gone")
    assert f"{variable}=gone is not there" in machine.why_not_compile(device)


@pytest.mark.parametrize(("allowed", "expected"), [(1 << 30, [-3, -1]), (1 << 25, [-3, -3, -1]), (0, [-3, -3])])
def test_memory_is_kept_whole_or_not_at_all(monkeypatch, allowed, expected):
    asked = []

    class Library:
        def mallopt(self, name, value):
            asked.append(name)
            return int(name == -1 or value <= allowed)

    monkeypatch.setattr(machine.ctypes, "CDLL", lambda name: Library())
    monkeypatch.setattr(machine.sys, "platform", "linux")
    machine.keep_freed_memory()
    assert asked == expected


def test_what_is_compiled_is_kept_where_a_boot_leaves_it(tmp_path, monkeypatch):
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    (tmp_path / "a file").write_text("")
    (tmp_path / "with spaces").mkdir()
    for unfit in ("a file", "with spaces"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / unfit))
        machine.keep_compiled_code()
        assert "TORCHINDUCTOR_CACHE_DIR" not in os.environ  # torch has a place of its own
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for _ in range(2):
        machine.keep_compiled_code()
        assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(tmp_path / "cache" / "dreamer")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))  # what is set stays


def test_it_is_kept_there_by_a_training(tmp_path):
    """In a process of its own: torch looks for the folder when its compiler is imported, which an optimiser does."""
    code = """
from dreamer import run
from dreamer.cli import main
def where(*_):
    from torch._inductor.runtime.cache_dir_utils import cache_dir
    return [cache_dir()]
run.prepare = where
main()
"""
    given = ["train", "--env", "gym/CartPole-v1", "--size", "1m", "--frames", "3", "--run", str(tmp_path / "run")]
    environment = {key: value for key, value in os.environ.items() if key != "TORCHINDUCTOR_CACHE_DIR"}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, *given]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and f"{tmp_path}/dreamer. Everything works" in done.stderr, done.stderr


def test_runs_that_share_a_machine_share_its_memory(monkeypatch):
    monkeypatch.delenv(machine.SHARED_BY, raising=False)
    whole = machine.total_memory()
    assert whole > 1e9
    monkeypatch.setenv(machine.SHARED_BY, "4")
    assert machine.total_memory() == whole // 4 == machine.device_memory(torch.device("cpu"))
