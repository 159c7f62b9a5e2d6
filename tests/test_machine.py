"""What the machine offers."""

import os

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
