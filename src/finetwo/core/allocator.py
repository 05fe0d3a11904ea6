"""The C library's allocator, set for what is wanted: speed, so that what is freed is kept, or little memory.

glibc gives a very large block back to the system when it is freed, and the system hands out zeroed pages one fault at
a time, whereas a training step asks for the same blocks again and again; blocks of up to 32 MiB it keeps, in holes that
the next tensors often do not fit. This knows nothing of tensors. Its one invariant: what the user has set is left
alone, and so is every other C library.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence

_TRIM, _TOP_PAD, _MMAP = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of malloc.h
_KEEP = ((_MMAP, 1 << 30), (_TRIM, 2**31 - 1), (_TOP_PAD, 64 << 20))
_RETURN = ((_MMAP, 1 << 20), (_TRIM, 1 << 20), (_TOP_PAD, 128 << 10))
_OWN = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")


def keep_large_blocks() -> bool:
    """Let this process keep what it frees, for the next time; return whether that was done. Call it early."""
    return _set(_KEEP)


def return_large_blocks() -> bool:
    """Let this process return each freed block of 1 MiB or more at once; return whether that was done.

    At GPT-2's shape that is a quarter of a process. The price is that pages are asked for anew, which costs time.
    """
    return _set(_RETURN)


def _set(settings: Sequence[tuple[int, int]]) -> bool:
    if any(os.environ.get(name) for name in _OWN) or not _is_glibc():
        return False
    mallopt: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) == 1 for name, value in settings)


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError, AttributeError):
        return False
