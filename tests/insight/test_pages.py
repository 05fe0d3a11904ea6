"""A set is walked whole, and its pages leave the memory on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetwo.data.cache import Chunks, Corpus, CorpusInfo
from finetwo.data.loader import InMemory
from finetwo.data.sequences import Sequence
from finetwo.insight.pages import release, walk


def resident(path: Path) -> int:
    """Bytes of the maps of `path` that are in memory."""
    lines = Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines()
    at = [i for i, line in enumerate(lines) if line.endswith(str(path))]
    return sum(int(next(n for n in lines[i:] if n.startswith("Rss:")).split()[1]) * 1024 for i in at)


@pytest.mark.skipif(not Path("/proc/self/smaps").is_file(), reason="the system does not tell")
def test_a_corpus_is_walked_and_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = (np.arange(12_000_000) % 50_000).astype(np.uint16)
    path = tmp_path / "tokens.bin"
    tokens.tofile(path)
    info = CorpusInfo(1, "", "uint16", 1, len(tokens), 0, "", ["train"])
    chunks = Chunks(Corpus(tmp_path, info, np.memmap(path, dtype=np.uint16, mode="r")), 20_000)
    assert sum(int(chunks.get(i, 0).tokens.sum()) for i in range(len(chunks))) == int(tokens[:-1].sum())
    assert resident(path) < 12_000_000, "chunks give pages back as they are read"
    assert int(chunks.corpus.tokens.sum(dtype=np.int64)) == int(tokens.sum(dtype=np.int64))
    assert resident(path) > 22_000_000
    release(chunks)
    assert resident(path) < 3_000_000
    monkeypatch.setattr("finetwo.insight.pages._EVERY", 1_000_000)
    most = total = 0
    for i, chunk in enumerate(walk(chunks)):
        total += int(chunk.tokens.sum())
        most = max(most, resident(path)) if i % 100 == 0 else most
    assert total == int(tokens[:-1].sum())
    assert most < 12_000_000 and resident(path) < 3_000_000


def test_sequences_in_memory_are_walked_too() -> None:
    rows = [Sequence(np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int32)) for n in (3, 1, 2)]
    assert [len(s) for s in walk(InMemory(rows))] == [3, 1, 2]
