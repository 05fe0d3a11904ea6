"""Shares a user's documents out to train, validation and test while they are read, in one pass and in flat memory.

It knows nothing of tasks or tokens. Its invariant: a document goes where `split` puts it whole, and every document
read is in one split or in one count that is said aloud.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path

import numpy as np

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.documents import Document, Part, Reader, cut
from finetwo.data.examples import END_OF_TEXT
from finetwo.data.folders import held_out
from finetwo.data.overlapping import tell_overlap
from finetwo.data.source import SPLITS, Note, find_files, place
from finetwo.data.split import DEFAULT_SPLIT, MIN_RECORDS, parse_split, side_of

SMALLEST_CUT = 400
"""A single document of fewer characters is not cut: its parts would say nothing."""


def stream_splits(path: Path, rows: RowsConfig, seed: int, on_note: Note) -> Iterator[Part]:
    """Yield every document of `path` with its split, as `load_splits` would share them out; notes and errors as there.

    What can only be known behind the last document (overlap, counts, nothing for train) is said or raised there. A
    single document is cut by the fractions of --rows.split, so that no text is on two sides.
    """
    rows.check()
    plan = parse_split(rows.split or DEFAULT_SPLIT)
    files = held_out(find_files(path), rows, str(path), on_note)
    if "train" not in files and "all" not in files:
        raise InputError(str(path), "no train.* in the folder", ", ".join(files), "add it, or give one file")
    given = {name: paths for name, paths in files.items() if name not in ("train", "all")}
    both = sorted(given.keys() & (plan.fractions.keys() | plan.counts.keys())) if rows.split else []
    if both:
        raise InputError("--rows.split", f"gives {both[0]}, and so does a file in {path}", fix="use one of them")
    reader = Reader(rows, seed, on_note)
    share = _Share(str(path), rows, on_note, hashed=bool(given or plan.counts))
    documents = reader.read(files.get("all", files.get("train", [])))
    if rows.split is None and "validation" in given:
        yield from share.to(documents, _always("train"))
    elif plan.counts:
        yield from share.counted(documents, plan.counts)
    else:
        yield from share.by_content(documents, plan.fractions, alone=not given)
    for name, paths in given.items():
        yield from share.to(reader.read(paths), _always(name))
    share.finish()


def _always(name: str) -> Callable[[Document], str]:
    return lambda _: name


class _Share:
    """Gives each document its split, and counts."""

    def __init__(self, origin: str, rows: RowsConfig, on_note: Note, *, hashed: bool) -> None:
        self.origin, self.rows, self.on_note = origin, rows, on_note
        self.counts: Counter[str] = Counter()
        self._keys: dict[str, array[int]] = {name: array("Q") for name in SPLITS}
        self._places: dict[str, array[int]] = {name: array("q") for name in SPLITS}
        self._files: dict[str, int] = {}
        self._hashed, self._whole = hashed, False

    def to(self, documents: Iterable[Document], side: Callable[[Document], str | None]) -> Iterator[Part]:
        """Yield the documents that are not blank, each in the split `side` says; None: in no split."""
        for document in documents:
            self.counts["read"] += 1
            name = side(document)
            if name is None:
                self.counts["left_out"] += 1
            elif not self._is_blank(document):
                yield self._part(document, name)

    def counted(self, documents: Iterable[Document], counts: Mapping[str, int]) -> Iterator[Part]:
        """Share out by counts in file order."""
        order = chain.from_iterable([name] * count for name, count in counts.items())
        yield from self.to(documents, lambda _: next(order, None))
        asked = sum(counts.values())
        if asked > self.counts["read"]:
            what = f"--rows.split asks for {asked:,} records, there are {self.counts['read']:,}"
            raise InputError(self.origin, what, fix="ask for fewer")

    def by_content(
        self, documents: Iterable[Document], fractions: Mapping[str, float], *, alone: bool
    ) -> Iterator[Part]:
        """Share out by content; a document that is `alone` is cut, and few of them stay together by default."""
        rest, default = self._not_blank(documents), self.rows.split is None
        head: list[Document] = []
        for document in rest:
            head.append(document)
            if len(head) > 1 and self.counts["read"] >= MIN_RECORDS:
                break
        else:
            if alone and len(head) == 1 and head[0].size >= SMALLEST_CUT:
                self.on_note(f"one document: cut at line ends, {self.rows.split or DEFAULT_SPLIT}")
                self.counts["end_of_text"] += head[0].marked
                self._whole = True
                yield from cut(head[0], fractions)
                return
            if default and self.counts["read"] < MIN_RECORDS:
                few = f"{self.origin}: {self.counts['read']} records are too few to hold any out for validation"
                self.on_note(f"{few}; all are in train")
                fractions, default = {"train": 1.0}, False
        if default:
            self.on_note(f"{self.origin}: split by content, {DEFAULT_SPLIT} (--rows.split changes it)")
        for document in chain(head, rest):
            yield self._part(document, side_of(document.side, fractions))

    def _not_blank(self, documents: Iterable[Document]) -> Iterator[Document]:
        for document in documents:
            self.counts["read"] += 1
            if not self._is_blank(document):
                yield document

    def _is_blank(self, document: Document) -> bool:
        if document.blank and self.rows.on_empty == "error":
            raise InputError(document.where, "empty text", fix="fill it in, or --rows.on_empty skip")
        self.counts["empty"] += document.blank
        return document.blank

    def _part(self, document: Document, name: str) -> Part:
        self.counts[name] += 1
        self.counts["end_of_text"] += document.marked
        if self._hashed:
            file, line, number = document.place
            self._keys[name].append(document.key)
            self._places[name].extend((self._files.setdefault(file, len(self._files)), line, number))
        return Part(name, document.read(), document.where)

    def finish(self) -> None:
        """Say what was read; raise InputError when nothing is left to train on."""
        for name in ("validation", "test"):
            self._say_overlap(name)
        counts = self.counts
        sizes = ", ".join(f"{name} {counts[name]:,}" for name in SPLITS if counts[name])
        reasons = [f"{counts['empty']:,} empty text"] if counts["empty"] else []
        if counts["left_out"]:
            reasons.append(f"{counts['left_out']:,} beyond the counts of --rows.split")
        out = f"; left out: {', '.join(reasons)}" if reasons else ""
        if not sizes and not self._whole:
            what = f"{counts['read']:,} records read, 0 left{out}"
            raise InputError(self.origin, what, fix="give records with text in them")
        if not counts["train"] and not self._whole:
            where = "--rows.split" if self.rows.split else self.origin
            raise InputError(where, "leaves no document for train", self.rows.split, "give train a share")
        if not self._whole or reasons:
            self.on_note(f"{self.origin}: {counts['read']:,} records read: {sizes or 'one document'}{out}")
        if counts["end_of_text"]:
            self.on_note(
                f"{self.origin}: {counts['end_of_text']:,} records contain {END_OF_TEXT}; it is read as plain text"
            )

    def _say_overlap(self, name: str) -> None:
        """Say how many documents of `name` are in train too, and name the first three pairs."""
        train, others = (np.frombuffer(self._keys[n], dtype=np.uint64) for n in ("train", name))
        if not len(train) or not len(others):
            return
        order = np.argsort(train, kind="stable")
        at = order[np.minimum(np.searchsorted(train, others, sorter=order), len(train) - 1)]
        hits = np.flatnonzero(train[at] == others)
        if len(hits):
            shown = "; ".join(f"{self._named('train', int(at[i]))} = {self._named(name, int(i))}" for i in hits[:3])
            share = f"{len(hits):,} of {len(others):,} {name} records"
            tell_overlap(share, shown, self.rows, self.on_note, self.origin)

    def _named(self, name: str, index: int) -> str:
        file, line, number = self._places[name][3 * index : 3 * index + 3]
        return place(list(self._files)[file], line, number)
