"""Too little memory or disk is told with both numbers before anything is tried."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.train.support import quick, records, weights

from finetwo import EnvironmentFault, train
from finetwo.store import run as run_module
from finetwo.train import memory


def test_available_memory_is_read_or_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "meminfo"
    told.write_text("MemTotal:  100 kB\nMemFree:  1 kB\nMemAvailable:   77 kB\n", encoding="ascii")
    monkeypatch.setattr(memory, "_MEMINFO", told)
    assert memory.available_bytes() == 77 * 1024
    for content in ("MemTotal: 100 kB\n", "MemAvailable: many kB\n"):
        told.write_text(content, encoding="ascii")
        assert memory.available_bytes() is None
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nothing")
    assert memory.available_bytes() is None
    memory.check_memory(1 << 60, "anything")


def test_too_little_memory_is_refused_with_both_numbers(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input 27; an adapter on the same network still fits."""
    size = sum(t.numel() for t in weights(base).values())
    monkeypatch.setattr(memory, "available_bytes", lambda: 12 * size - 1)
    with pytest.raises(EnvironmentFault) as caught:
        quick(records(8), base, tmp_path / "run", max_steps=1)
    assert caught.value.exit_code == 3
    assert f"needed {12 * size:,} bytes, free {12 * size - 1:,} bytes" in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert quick(records(8), base, tmp_path / "lora", max_steps=1, lora={"rank": 2}).steps == 1


def test_a_fresh_network_beyond_the_memory_is_not_even_made(tmp_path: Path, base: Path) -> None:
    given: dict[str, Any] = {"task": "pretrain", "size": "900,60000,8", "tokenizer": str(base)}
    with pytest.raises(EnvironmentFault, match=r"too little for a network of [\d,]+ parameters"):
        train([{"text": "the lamp went out " * 20}], out=str(tmp_path / "run"), **given)


def test_too_little_disk_is_refused_before_the_first_step(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input 24: room for two checkpoints and the model folders."""
    size = sum(t.numel() for t in weights(base).values())
    monkeypatch.setattr(run_module, "free_bytes", lambda path: 2 * 12 * size)
    with pytest.raises(EnvironmentFault, match=r"needed [\d,]+ bytes, free [\d,]+ bytes") as caught:
        quick(records(8), base, tmp_path / "run", max_steps=1)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "run").exists()


HOLES = """
import sys
from finetwo.train import memory
del (big := [bytearray(30 << 20)])[0]  # glibc keeps blocks of up to this size from now on
told = memory.give_memory_back() if sys.argv[1] == "call" else None
blocks = []
for _ in range(30):
    blocks += [bytearray(4 << 20), bytearray(60_000)]
del blocks[0::2]
pages = int(open("/proc/self/statm").read().split()[1])
print(told, pages * 4096 >> 20)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's setting")
def test_freed_blocks_go_back_to_the_system() -> None:
    """Holes of 4 MiB between small blocks: kept without the call, which shows that the measure can tell."""

    def resident(word: str) -> tuple[str, int]:
        done = subprocess.run([sys.executable, "-c", HOLES, word], capture_output=True, text=True, check=True)
        told, size = done.stdout.split()
        return told, int(size)

    (_, kept), (told, returned) = resident("leave"), resident("call")
    assert told == "True"
    assert kept - returned > 80


def test_another_system_keeps_its_allocator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.sys, "platform", "darwin")
    assert memory.give_memory_back() is False
