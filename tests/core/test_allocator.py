"""Large blocks are kept, told by the page faults of a process that frees them and wants them again; or returned."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from finetwo.core import allocator

CHILD = """
import resource, sys
from finetwo.core.allocator import keep_large_blocks
done = sys.argv[1] == "keep" and keep_large_blocks()
bytearray(48 << 20)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    bytearray(48 << 20)
print(done, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


CLEAN = {k: v for k, v in os.environ.items() if k not in allocator._OWN}


def child(way: str, **environment: str) -> tuple[bool, int]:
    told = subprocess.run(
        [sys.executable, "-c", CHILD, way], env=CLEAN | environment, capture_output=True, text=True, check=True
    )
    done, faults = told.stdout.split()
    return done == "True", int(faults)


@pytest.mark.skipif(not allocator._is_glibc(), reason="another C library")
def test_large_blocks_are_kept() -> None:
    usual, kept = child("leave"), child("keep")
    assert not usual[0] and kept[0]
    assert kept[1] < usual[1] / 4, (kept, usual)


def test_what_the_user_has_set_is_left_alone() -> None:
    assert not child("keep", MALLOC_TOP_PAD_="131072")[0]


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(name: str) -> str:
        raise ValueError(name)

    for name in allocator._OWN:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "confstr", unknown)
    assert not allocator.keep_large_blocks() and not allocator.return_large_blocks()


HOLES = """
import sys
from finetwo.core.allocator import return_large_blocks
del (big := [bytearray(30 << 20)])[0]  # glibc keeps blocks of up to this size from now on
told = return_large_blocks() if sys.argv[1] == "call" else None
blocks = []
for _ in range(30):
    blocks += [bytearray(4 << 20), bytearray(60_000)]
del blocks[0::2]
pages = int(open("/proc/self/statm").read().split()[1])
print(told, pages * 4096 >> 20)
"""


@pytest.mark.skipif(not allocator._is_glibc(), reason="another C library")
def test_freed_blocks_go_back_to_the_system() -> None:
    """Holes of 4 MiB between small blocks: kept without the call, which shows that the measure can tell."""

    def resident(word: str) -> tuple[str, int]:
        done = subprocess.run(
            [sys.executable, "-c", HOLES, word], env=CLEAN, capture_output=True, text=True, check=True
        )
        told, size = done.stdout.split()
        return told, int(size)

    (_, kept), (told, returned) = resident("leave"), resident("call")
    assert told == "True"
    assert kept - returned > 80
