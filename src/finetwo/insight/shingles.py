"""Texts that nearly repeat each other: word 3-grams, their Jaccard similarity, and MinHash to find candidates.

The only module that imports `datasketch` (extra `plan`); it knows texts and their numbers, not where they come from.
Its one invariant: a pair counts only where the Jaccard similarity of its 3-grams, taken exactly, reaches `NEAR`.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetwo.core.errors import EnvironmentFault

UInt64 = NDArray[np.uint64]
NEAR = 0.8
"""Jaccard similarity from which two texts are near duplicates."""
BANDS, ROWS = 32, 4
"""A pair of similarity 0.8 shares no band in one of twenty million cases (1 - 0.8^4)^32."""
_RUN = 1000
"""How many earlier texts of one band a text is compared with at most."""
_PAIRS = 2_000_000
_WORDS = 1 << 18
_BATCH = 4096
_MIX = tuple(np.uint64(n) for n in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9))


def jaccard(a: UInt64, b: UInt64) -> float:
    """Return the similarity of two sorted sets of hashes: what they share over what they have together."""
    if not len(a) or not len(b):
        return 0.0
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / (len(a) + len(b) - both)


@dataclass
class Shingler:
    """Hashes of the word 3-grams of texts; a word is what stands between white space, in lower case."""

    _known: dict[str, int] = field(default_factory=dict)

    def _word(self, word: str) -> int:
        found = self._known.get(word)
        if found is None:
            if len(self._known) >= _WORDS:
                self._known.clear()
            digest = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            found = self._known[word] = int.from_bytes(digest, "little")
        return found

    def stream(self, pieces: Iterable[str]) -> Iterator[UInt64]:
        """Yield the 64-bit hashes of the 3-grams of a text that comes in pieces; a shorter text is one n-gram."""
        words: list[str] = []
        tail, begun = "", False
        for piece in pieces:
            text = tail + piece.lower()
            found = text.split()
            tail = found.pop() if found and not text[-1].isspace() else ""
            words += found
            if len(words) > _BATCH:
                yield self._hashes(words)
                words, begun = words[-2:], True
        words += [tail] if tail else []
        if len(words) >= 3 or (words and not begun):
            yield self._hashes(words)

    def _hashes(self, words: list[str]) -> UInt64:
        h = np.fromiter((self._word(w) for w in words), dtype=np.uint64, count=len(words))
        n = max(1, len(h) - 2)
        mixed = h[:n] * _MIX[0]
        for i in (1, 2):
            part = h[i : i + n] if len(h) >= 3 else h[i : i + 1] if len(h) > i else np.zeros(1, dtype=np.uint64)
            mixed = (mixed ^ (mixed >> np.uint64(29))) * _MIX[i] + part
        return (mixed ^ (mixed >> np.uint64(32))) * _MIX[0]

    def whole(self, pieces: Iterable[str]) -> UInt64:
        """Return all hashes of a text, sorted, each once."""
        parts = list(self.stream(pieces))
        return np.unique(np.concatenate(parts)) if parts else np.empty(0, dtype=np.uint64)


def _same(value: int) -> int:
    return value


@dataclass
class Near:
    """Gathers the bands of texts, 128 bytes each, and finds the pairs that share one."""

    shingler: Shingler = field(default_factory=Shingler)
    _bands: array[int] = field(default_factory=lambda: array("I"))
    _owners: array[int] = field(default_factory=lambda: array("I"))
    _blank: Any = None
    capped: bool = False
    """Whether texts resembled so many others that not all of these were compared."""

    def __post_init__(self) -> None:
        """Make the permutations once. EnvironmentFault where the package is not installed."""
        try:
            from datasketch import MinHash
        except ImportError:
            fix = "pip install 'finetwo[plan]'"
            raise EnvironmentFault("near duplicates", "need the package datasketch", None, fix) from None
        self._blank = MinHash(num_perm=BANDS * ROWS, seed=1, hashfunc=_same)

    def add(self, number: int, pieces: Iterable[str]) -> None:
        """Take the text `number`; numbers rise."""
        sketch, some = self._blank.copy(), False
        for hashes in self.shingler.stream(pieces):
            for start in range(0, len(hashes), _BATCH):
                sketch.update_batch((hashes[start : start + _BATCH] >> np.uint64(32)).tolist())
                some = True
        if some:
            values = np.asarray(sketch.hashvalues).astype(np.uint64).reshape(BANDS, ROWS)
            mixed = values[:, 0]
            for row in range(1, ROWS):
                mixed = (mixed ^ (mixed >> np.uint64(31))) * _MIX[row - 1] + values[:, row]
            self._bands.extend((mixed >> np.uint64(32)).tolist())
            self._owners.append(number)

    def pairs(self) -> NDArray[np.int64]:
        """Return the candidates (M, 2): a text and an earlier one that shares a band, in order, each pair once."""
        table = np.frombuffer(self._bands, dtype=np.uint32).reshape(-1, BANDS)
        found: set[int] = set()
        for band in range(BANDS):
            column = np.ascontiguousarray(table[:, band])
            order = np.argsort(column, kind="stable")
            edges = np.flatnonzero(np.diff(column[order])) + 1
            starts, ends = np.append(0, edges), np.append(edges, len(order))
            for run in np.flatnonzero(ends - starts > 1).tolist():
                self._collect(order[starts[run] : ends[run]].tolist(), found)
        packed = np.fromiter(found, dtype=np.int64, count=len(found))
        packed.sort()
        owners = np.frombuffer(self._owners, dtype=np.uint32).astype(np.int64)
        return np.stack([owners[packed >> 32], owners[packed & 0xFFFFFFFF]], axis=1)

    def _collect(self, members: list[int], found: set[int]) -> None:
        for k in range(1, len(members)):
            low = max(0, k - _RUN)
            if low or len(found) >= _PAIRS:
                self.capped = True
            if len(found) < _PAIRS:
                found.update((members[k] << 32) | j for j in members[low:k])


def resolve(
    pairs: NDArray[np.int64], side: Callable[[int], int], hashes: Callable[[int], UInt64], equal: Callable[[int], int]
) -> tuple[dict[int, int], dict[int, int]]:
    """Return, for each text that nearly repeats an earlier one, one such: within its split, and of an earlier split.

    `side(i)` is the split of text i, `hashes(i)` its 3-grams, and `equal(i)` a number that texts share which are the
    same altogether; such pairs are no near duplicates.
    """
    within: dict[int, int] = {}
    across: dict[int, int] = {}
    for i, j in pairs.tolist():
        if side(i) < side(j):
            i, j = j, i
        found = within if side(i) == side(j) else across
        if i in found or equal(i) == equal(j):
            continue
        a, b = hashes(i), hashes(j)
        if min(len(a), len(b)) >= NEAR * max(len(a), len(b)) and jaccard(a, b) >= NEAR:
            found[i] = j
    return within, across
