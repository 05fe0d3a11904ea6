"""The C library's allocator, set so that large blocks that are freed and wanted again are not returned in between.

glibc gives every large block back to the system when it is freed, and the system hands out zeroed pages one fault at
a time: a training step asks for the same blocks again and again. It knows nothing of tensors. Its one invariant: what
the user has set is left alone, and so is every other C library.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

_TRIM, _TOP_PAD, _MMAP = -1, -2, -3  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD of malloc.h
_SETTINGS = ((_MMAP, 1 << 30), (_TRIM, 2**31 - 1), (_TOP_PAD, 64 << 20))
_OWN = ("GLIBC_TUNABLES", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "LD_PRELOAD")


def keep_large_blocks() -> bool:
    """Let this process keep what it frees, for the next time; return whether that was done. Call it early."""
    if any(os.environ.get(name) for name in _OWN) or not _is_glibc():
        return False
    mallopt: Callable[[int, int], int] = ctypes.CDLL(None).mallopt
    return all(mallopt(name, value) == 1 for name, value in _SETTINGS)


def _is_glibc() -> bool:
    try:
        return bool(os.confstr("CS_GNU_LIBC_VERSION"))
    except (ValueError, OSError, AttributeError):
        return False
