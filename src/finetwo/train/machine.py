"""What a run takes of its machine: processor time, memory, and the memory of its GPU.

It knows this process and no run. Its one invariant: it reads counters of the system and changes nothing, so a run
that is measured computes the same.
"""

from __future__ import annotations

import resource
import sys
import time
from contextlib import suppress
from pathlib import Path

import torch

_MIB = 1 << 20
_STATM = Path("/proc/self/statm")
_STATUS = Path("/proc/self/status")


def resident_bytes() -> int:
    """Bytes of this process in memory; where the system does not say, the most there ever were."""
    try:
        return int(_STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def peak_bytes(device: torch.device) -> int:
    """The most memory that this process has had: of the GPU where it computes on one, else of the machine."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration, ValueError):
        lines = _STATUS.read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class MachineUse:
    """Figures of the machine, at most every few seconds."""

    def __init__(self, every: float = 5.0) -> None:
        """`every`: seconds between two figures; processor time is a mean over them."""
        self._every = every
        self._at, self._spent = time.monotonic(), time.process_time()

    def sample(self) -> dict[str, float]:
        """Return the figures if they are due, else nothing.

        cpu_percent (100 is one core busy), memory_mib, and with a GPU in use gpu_memory_mib and gpu_memory_peak_mib.
        """
        now, spent = time.monotonic(), time.process_time()
        if now - self._at < self._every:
            return {}
        figures = {
            "cpu_percent": 100 * (spent - self._spent) / (now - self._at),
            "memory_mib": resident_bytes() / _MIB,
        }
        self._at, self._spent = now, spent
        if torch.cuda.is_initialized():
            figures["gpu_memory_mib"] = torch.cuda.memory_allocated() / _MIB
            figures["gpu_memory_peak_mib"] = torch.cuda.max_memory_allocated() / _MIB
        return figures
