"""The use of the machine: figures that can be true, and not too many of them."""

from __future__ import annotations

import mmap
import resource
import time
from pathlib import Path

import pytest
import torch

from finetwo.train import machine
from finetwo.train.machine import MachineUse, resident_bytes


def test_memory_is_what_the_system_says() -> None:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert 10 << 20 < resident_bytes() <= 1.01 * peak


def test_memory_grows_by_what_is_taken() -> None:
    before = resident_bytes()
    with mmap.mmap(-1, 64 << 20) as taken:  # not from the allocator, which may have kept what others freed
        taken[:] = b"x" * (64 << 20)
        assert resident_bytes() - before > 56 << 20


def test_without_proc_the_peak_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_STATM", Path("/nowhere/statm"))
    assert resident_bytes() >= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1000


def test_figures_come_at_most_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"now": 100.0, "spent": 7.0}
    monkeypatch.setattr(time, "monotonic", lambda: clock["now"])
    monkeypatch.setattr(time, "process_time", lambda: clock["spent"])
    use = MachineUse(every=5)
    assert use.sample() == {}
    clock |= {"now": 104.9}
    assert use.sample() == {}
    clock |= {"now": 110.0, "spent": 12.0}
    found = use.sample()
    assert found["cpu_percent"] == 50
    assert found["memory_mib"] > 10
    assert ("gpu_memory_mib" in found) == torch.cuda.is_initialized()
    assert use.sample() == {}
    clock |= {"now": 115.0, "spent": 32.0}
    assert use.sample()["cpu_percent"] == 400, "four cores busy"


def test_the_memory_of_a_gpu_in_use_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda: 3 << 20)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 5 << 20)
    found = MachineUse(every=0).sample()
    assert (found["gpu_memory_mib"], found["gpu_memory_peak_mib"]) == (3, 5)
