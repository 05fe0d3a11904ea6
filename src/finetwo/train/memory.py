"""Whether a network can be trained in the memory there is, asked before it is tried; and an allocator that keeps none.

It knows sizes and no network. Its one invariant: it refuses only what is certain not to fit: weights, gradients and
the optimizer's two moments, whatever the batch.
"""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

from finetwo.core.errors import EnvironmentFault

_MEMINFO = Path("/proc/meminfo")
_MMAP_THRESHOLD, _MIB = -3, 1 << 20  # mallopt's name for it


def available_bytes() -> int | None:
    """Memory that a new process could take without swapping; None where the system does not tell (not Linux)."""
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        return None


def check_memory(needed: int, what: str) -> None:
    """Raise EnvironmentFault with both numbers when `needed` bytes, for `what`, are more than there are."""
    free = available_bytes()
    if free is not None and needed > free:
        fix = "take a smaller model, or train an adapter (--lora.rank 8)"
        raise EnvironmentFault("memory", f"too little for {what}", f"needed {needed:,} bytes, free {free:,} bytes", fix)


def give_memory_back() -> bool:
    """Let glibc return each freed block of 1 MiB or more to the system at once; whether this system has that setting.

    Left to itself glibc keeps freed blocks of up to 32 MiB for later, in holes that the next tensors often do not fit:
    at GPT-2's shape that is a quarter of a process. The price is that pages are asked for anew, which costs time.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_MMAP_THRESHOLD, _MIB) == 1
