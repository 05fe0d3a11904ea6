"""The data doctor for plain texts: duplicates, overlap and damage among documents of any size, in flat memory.

It knows documents in pieces and no tokens. Its one invariant: it keeps hashes and counts only, never a text, so that
its memory grows by some 150 bytes a document whatever their length.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import count
from re import Pattern

import numpy as np
from numpy.typing import NDArray

from finetwo.data.documents import Part
from finetwo.data.source import SPLITS
from finetwo.insight.doctor import Diagnosis
from finetwo.insight.findings import Findings, Spot, spot
from finetwo.insight.marks import look, patterns
from finetwo.insight.shingles import Near, UInt64, resolve

Read = Callable[[], Iterable[Part]]
_EDGE = 700
"""Characters looked at again with the next piece: longer than any mark, and than what stands before it."""
_BUDGET = 24_000_000
"""Hashes of 3-grams that are held to compare documents exactly: 192 MB."""


class _Look:
    """Passes the pieces of a document on, and sees what is to be seen in them."""

    def __init__(self, part: Part, wanted: dict[str, Pattern[str]], found: Findings) -> None:
        self.part, self.left, self.found = part, dict(wanted), found
        self.digest = hashlib.sha256()
        self.sizes = 0

    def pieces(self) -> Iterator[str]:
        tail, line = "", 1
        for piece in self.part.pieces:
            self.digest.update(piece.encode("utf-8", "surrogatepass"))
            self.sizes += len(piece)
            text, seen = tail + piece, 1 if tail else 0  # a mark depends on the character before it
            for kind, pattern in list(self.left.items()):
                match = look(kind, pattern, text, seen)
                if match is not None:
                    del self.left[kind]
                    at = f"{self.part.where}, line {line + text.count(chr(10), 0, match.start())} of the text"
                    self.found.add(kind, spot(at, text, match.start(), match.end()))
            line += text.count("\n") - text.count("\n", max(0, len(text) - _EDGE))
            tail = text[-_EDGE:]
            yield piece


def examine_texts(read: Read, *, near: bool = True) -> tuple[Diagnosis, dict[str, Counter[int]]]:
    """Look at every document that `read` yields, and where needed once or twice more.

    Returns the diagnosis, and by split how many documents have a length below 2^n characters, by n.
    """
    found, diagnosis, wanted = Findings(), Diagnosis(), patterns(None)
    index = Near() if near else None
    sides, keys = array("b"), array("Q")
    lengths: dict[str, Counter[int]] = {}
    for number, part in enumerate(read()):
        eye = _Look(part, wanted, found)
        if index is not None:
            index.add(number, eye.pieces())
        for _ in eye.pieces() if index is None else ():
            pass
        sides.append(SPLITS.index(part.split))
        keys.append(int.from_bytes(eye.digest.digest()[:8], "big"))
        lengths.setdefault(part.split, Counter())[eye.sizes.bit_length()] += 1
    repeats = _repeats(np.frombuffer(keys, dtype=np.uint64), sides)
    within: dict[int, int] = {}
    across: dict[int, int] = {}
    if index is not None and len(sides) > 1:
        candidates = index.pairs()
        known = _hashes(read, np.unique(candidates), index) if len(candidates) else {}
        whole = np.array([i in known and j in known for i, j in candidates.tolist()], dtype=bool)
        within, across = resolve(candidates[whole], sides.__getitem__, known.__getitem__, keys.__getitem__)
        within = {i: j for i, j in within.items() if i not in repeats[0][1]}
        across = {i: j for i, j in across.items() if i not in repeats[1][1]}
        if index.capped or not whole.all():
            diagnosis.notes.append("near duplicates: candidates were too many or too long, only a part was compared")
    _name(read, [*repeats, ("near duplicate", within), ("near overlap", across)], sides, found)
    diagnosis.findings = found.list()
    return diagnosis, lengths


def _repeats(keys: NDArray[np.uint64], sides: array[int]) -> list[tuple[str, dict[int, int]]]:
    """Documents equal to an earlier one: of their split, and of another."""
    inside: dict[int, int] = {}
    across: dict[int, int] = {}
    order = np.argsort(keys, kind="stable")
    edges = np.flatnonzero(np.diff(keys[order])) + 1
    starts, ends = np.append(0, edges), np.append(edges, len(order))
    for run in np.flatnonzero(ends - starts > 1).tolist():
        members = order[starts[run] : ends[run]].tolist()
        members.sort(key=lambda i: (sides[i], i))
        first: dict[int, int] = {}
        for i in members:
            earlier = first.setdefault(sides[i], i)
            if earlier != i:
                inside[i] = earlier
            if sides[members[0]] != sides[i]:
                across[i] = members[0]
    return [("duplicate", inside), ("overlap", across)]


def _hashes(read: Read, numbers: NDArray[np.int64], index: Near) -> dict[int, UInt64]:
    """The 3-grams of some documents, as far as there is room."""
    wanted, known, room = set(numbers.tolist()), {}, _BUDGET
    for number, part in enumerate(read()):
        if number in wanted and room > 0:
            known[number] = index.shingler.whole(part.pieces)
            room -= len(known[number])
    return known


def _name(read: Read, found: list[tuple[str, dict[int, int]]], sides: array[int], into: Findings) -> None:
    """Count what was found, and read once more to say where the first of them stand."""
    shown = {i for _, pairs in found for i in sorted(pairs)[:20]}
    shown |= {pairs[i] for _, pairs in found for i in sorted(pairs)[:20]}
    where: dict[int, tuple[str, str]] = {}
    if shown:
        for number, part in zip(count(), read(), strict=False):
            if number in shown:
                where[number] = (part.where, next((p for p in part.pieces if p), "")[:80])
    for kind, pairs in found:
        for i in sorted(pairs):
            into.add(kind, _spot(where, i, pairs[i], kind, sides))


def _spot(where: dict[int, tuple[str, str]], i: int, j: int, kind: str, sides: array[int]) -> Spot | None:
    if i not in where or j not in where:
        return None
    sign = "~" if kind.startswith("near") else "="
    other = f"{SPLITS[sides[j]]} " if sides[i] != sides[j] else ""
    return spot(f"{where[i][0]} {sign} {other}{where[j][0]}", where[i][1])
