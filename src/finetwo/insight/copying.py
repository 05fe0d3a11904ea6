"""Which token sequences of some short texts stand word for word in a long one, how long they are, and where.

It knows token ids and neither tokenizer nor files. Its one invariant: the answer is exact (hashes only propose, tokens
decide), and memory grows with the short texts and never with the long one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetwo.insight.interval import Bootstrap

Tokens = NDArray[np.generic]
Ints = NDArray[np.int64]
_BLOCK = 1 << 18
_PAIRS = 1 << 18
_APART = -1
"""Stands between the texts and equals no token."""


@dataclass(frozen=True)
class Span:
    """Tokens of text number `text`, from `begin` on, that stand in the long text from `origin` on."""

    text: int
    begin: int
    length: int
    origin: int


@dataclass(frozen=True)
class Matches:
    """For each text: how long the longest copied sequence is that begins at each of its tokens (0 below `least`)."""

    longest: list[Ints]
    spans: list[Span]
    """Every copied sequence that is part of no longer one, the longest first."""
    least: int

    def counts(self, n: int) -> list[tuple[int, int]]:
        """Return for each text how many of its n-grams (n >= `least`) are copied, and how many it has."""
        return [(int((found >= n).sum()), max(0, len(found) - n + 1)) for found in self.longest]

    def rate(self, n: int, seed: int) -> dict[str, Any]:
        """Return the share of copied n-grams over all texts, with its interval over texts; None of no n-gram."""
        counts, bootstrap = self.counts(n), Bootstrap(2, seed)
        for copied, whole in counts:
            bootstrap.add((copied, whole))
        copied, whole = (sum(c[i] for c in counts) for i in (0, 1))
        interval = bootstrap.interval(lambda sums: sums[:, 0] / sums[:, 1])
        return {"copied": copied, "n_grams": whole, "rate": copied / whole if whole else None, "interval": interval}


def matches(source: Tokens, texts: Sequence[Sequence[int] | Tokens], least: int) -> Matches:
    """Look for sequences of `least` tokens or more of `texts` in `source`, block by block."""
    starts = np.cumsum([0, *(len(t) + 1 for t in texts)])
    joined = np.full(int(starts[-1]), _APART, dtype=np.int64)
    for start, text in zip(starts, texts, strict=False):
        joined[start : start + len(text)] = text
    reach, origin = np.zeros(len(joined), dtype=np.int64), np.zeros(len(joined), dtype=np.int64)
    for p, q in _candidates(source, joined, least):
        p, q, length = _extended(source, joined, p, q, least)
        order = np.argsort(length, kind="stable")
        p, q, length = p[order], q[order], length[order]
        better = q + length > reach[q]
        reach[q[better]], origin[q[better]] = (q + length)[better], p[better]  # the longest is written last
    furthest = np.maximum.accumulate(reach) if len(reach) else reach
    longest = np.maximum(furthest - np.arange(len(joined)), 0)
    longest[longest < least] = 0
    before = np.concatenate(([0], furthest[:-1]))
    begins = np.flatnonzero((reach == furthest) & (reach > before))
    spans = [
        Span(n := int(np.searchsorted(starts, q, "right")) - 1, int(q - starts[n]), int(reach[q] - q), int(o))
        for q, o in zip(begins, origin[begins], strict=True)
    ]
    parts = [longest[start : start + len(text)] for start, text in zip(starts, texts, strict=False)]
    return Matches(parts, sorted(spans, key=lambda s: (-s.length, s.text, s.begin)), least)


def _hashes(tokens: Ints, n: int) -> NDArray[np.uint64]:
    """A hash of each n-gram, by its first token; equal n-grams have equal hashes."""
    factors = np.random.default_rng(0x5EED).integers(1, 1 << 63, n, dtype=np.uint64) * np.uint64(2) + np.uint64(1)
    count = len(tokens) - n + 1
    total = np.zeros(max(0, count), dtype=np.uint64)
    wide = tokens.astype(np.uint64)
    for i in range(n if count > 0 else 0):
        total += (wide[i : i + count] + np.uint64(0x9E3779B9)) * factors[i]
    return total


def _candidates(source: Tokens, joined: Ints, n: int) -> Iterator[tuple[Ints, Ints]]:
    """Pairs of places in `source` and `joined` whose n-grams have the same hash, some at a time."""
    gaps = np.concatenate(([0], np.cumsum(joined == _APART)))
    whole = np.flatnonzero(gaps[n:] == gaps[:-n]) if len(joined) >= n else np.zeros(0, dtype=np.int64)
    hashes = _hashes(joined, n)[whole]
    order = np.argsort(hashes, kind="stable")
    places = whole[order]
    keys, firsts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
    if not len(keys):
        return
    for start in range(0, len(source) - n + 1, _BLOCK):
        found = _hashes(np.asarray(source[start : start + _BLOCK + n - 1], dtype=np.int64), n)
        at = np.minimum(np.searchsorted(keys, found), len(keys) - 1)
        hits = np.flatnonzero(keys[at] == found)
        many, first = counts[at[hits]], firsts[at[hits]]
        ends = np.cumsum(many)
        total = int(ends[-1]) if len(ends) else 0
        for low in range(0, total, _PAIRS):
            numbers = np.arange(low, min(low + _PAIRS, total))
            hit = np.searchsorted(ends, numbers, "right")
            yield hits[hit] + start, places[first[hit] + numbers - (ends[hit] - many[hit])]


def _extended(source: Tokens, joined: Ints, p: Ints, q: Ints, n: int) -> tuple[Ints, Ints, Ints]:
    """Those of the pairs that are equal and not the middle of a longer copy, and how long each copy is."""
    keep = (p == 0) | (q == 0)
    inner = np.flatnonzero(~keep)
    keep[inner] = source[p[inner] - 1] != joined[q[inner] - 1]
    p, q = p[keep], q[keep]
    for i in range(n):
        same = source[p + i] == joined[q + i]
        p, q = p[same], q[same]
    length = np.full(len(p), n, dtype=np.int64)
    alive = np.arange(len(p))
    while len(alive):
        a, b = p[alive] + length[alive], q[alive] + length[alive]
        room = (a < len(source)) & (b < len(joined))
        alive, a, b = alive[room], a[room], b[room]
        alive = alive[source[a] == joined[b]]
        length[alive] += 1
    return p, q, length
