"""Prepared records on disk: their tokens and targets memory-mapped, with the place each came from.

It knows sequences and files, and nothing of tasks or networks. Its one invariant: what is opened is, bit for bit and
number for number, what was written under the asked key, or it is refused.

A set of records is a folder. The four `.bin` files are bare little-endian numbers, `records.json` is written last:

    tokens.bin    int32, the tokens of all records one after another
    targets.bin   int32, as many: the id to be learned at each token (or the class, on the last one), or -100
    offsets.bin   int64, one more than records: record i is tokens offsets[i] to offsets[i + 1]
    places.bin    int64, three a record: index into `files`, line (0: from memory), number
    records.json  format, key, counts, size and SHA-256 of each file, `files` by name, `extra`, and its own SHA-256

`docs/prepared.md` describes the folder of `finetwo prepare`, which holds such a set for each split.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from finetwo.core.errors import InputError
from finetwo.core.files import faults, replacing
from finetwo.data.sealed import filling, read_sealed, write_sealed
from finetwo.data.sequences import IGNORE, Sequence
from finetwo.data.source import place

INFO = "records.json"
_FORMAT = 1
_DTYPES = {"tokens": "<i4", "targets": "<i4", "offsets": "<i8", "places": "<i8"}
_BLOCK = 1 << 20
"""Numbers written or checked at a time."""

Place = tuple[str, int, int]
"""File, line (from 1; 0 for records from memory), number (from 1)."""


# --- writing ------------------------------------------------------------------------------------------------------


class _Column:
    """One file of numbers in the making."""

    def __init__(self, out: BinaryIO, dtype: str) -> None:
        self._out, self._dtype = out, dtype
        self._digest, self._bytes = hashlib.sha256(), 0

    def put(self, numbers: NDArray[np.generic]) -> None:
        """Append `numbers`."""
        raw = numbers.astype(self._dtype).tobytes()
        self._digest.update(raw)
        self._bytes += self._out.write(raw)

    def seal(self) -> dict[str, object]:
        """Size and hash of what was written."""
        return {"bytes": self._bytes, "sha256": self._digest.hexdigest()}


class _Writer:
    """The four files in the making, written block by block."""

    def __init__(self, outs: Mapping[str, BinaryIO]) -> None:
        self.columns = {name: _Column(outs[name], dtype) for name, dtype in _DTYPES.items()}
        self.files: dict[str, int] = {}
        self.records = self.tokens = self.learned = 0
        self._waiting: list[Sequence] = []
        self._size = 0
        self._places = array("q")
        self.columns["offsets"].put(np.zeros(1, dtype=np.int64))

    def add(self, sequence: Sequence, where: Place) -> None:
        """Append one record."""
        if len(sequence.tokens) == 0 or len(sequence.tokens) != len(sequence.targets):
            raise ValueError(f"{place(*where)}: {len(sequence.tokens)} tokens, {len(sequence.targets)} targets")
        self._waiting.append(sequence)
        self._size += len(sequence)
        file, line, number = where
        self._places.extend((self.files.setdefault(file, len(self.files)), line, number))
        if self._size >= _BLOCK:
            self.flush()

    def flush(self) -> None:
        """Write what waits."""
        if not self._waiting:
            return
        targets = np.concatenate([s.targets for s in self._waiting])
        self.columns["tokens"].put(np.concatenate([s.tokens for s in self._waiting]))
        self.columns["targets"].put(targets)
        self.columns["offsets"].put(self.tokens + np.cumsum([len(s) for s in self._waiting], dtype=np.int64))
        self.columns["places"].put(np.array(self._places, dtype=np.int64))
        self.records += len(self._waiting)
        self.tokens += len(targets)
        self.learned += int((targets != IGNORE).sum())
        self._waiting, self._size, self._places = [], 0, array("q")


def write_records(folder: Path, key: str, items: Iterable[tuple[Sequence, Place]], extra: Mapping[str, object]) -> None:
    """Write a set of records into `folder` while they come; `extra` is any JSON value to be kept with them.

    `key` says what the records depend on; they are opened under the same key only. An error of `items` leaves the
    folder's old records as they were; a crash leaves them, the new ones, or none that would be taken for whole.

    Raises:
        EnvironmentFault: the disk is full, no permission; InputError: the folder's name cannot be.
    """
    with ExitStack() as stack:
        stack.enter_context(filling(folder))
        writer = _Writer({name: stack.enter_context(replacing(folder / f"{name}.bin")) for name in _DTYPES})
        for sequence, where in items:
            writer.add(sequence, where)
        writer.flush()
        with faults(folder / INFO):
            (folder / INFO).unlink(missing_ok=True)
    counts = {"records": writer.records, "tokens": writer.tokens, "learned": writer.learned}
    content = {"format": _FORMAT, "key": key, **counts, "files": list(writer.files), "extra": dict(extra)}
    write_sealed(folder / INFO, content | {"sizes": {n: c.seal() for n, c in writer.columns.items()}})


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Records:
    """A set of records, memory-mapped: the same in each epoch."""

    folder: Path
    counts: dict[str, int]
    """`records`, `tokens`, and `learned`: targets that carry loss."""
    extra: dict[str, Any]
    """What was written with the records."""
    hashes: dict[str, str]
    """SHA-256 of each file, by name."""
    offsets: NDArray[np.int64]
    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    places: NDArray[np.int64]
    files: list[str]

    @classmethod
    def open(cls, folder: Path, key: str, vocab_size: int) -> Records | None:
        """Open the records of `folder`; None when there are none, or those of another key or format.

        Raises:
            InputError: a file is missing, cut off or changed, or holds a number that cannot be.
        """
        if not (folder / INFO).is_file():
            return None
        content = read_sealed(folder / INFO)
        if content.get("format") != _FORMAT or content.get("key") != key:
            return None
        try:
            columns = {name: _column(folder, name, content["sizes"][name]) for name in _DTYPES}
            counts = {name: int(content[name]) for name in ("records", "tokens", "learned")}
            hashes = {f"{name}.bin": str(content["sizes"][name]["sha256"]) for name in _DTYPES}
            found = cls(folder, counts, dict(content["extra"]), hashes, **columns, files=list(content["files"]))
            found._check(vocab_size)
        except (KeyError, TypeError, ValueError) as error:
            raise _damaged(folder / INFO, "not a description of ours", str(error)) from error
        return found

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def get(self, index: int, epoch: int) -> Sequence:
        """Return record `index`."""
        start, end = int(self.offsets[index]), int(self.offsets[index + 1])
        return Sequence(self.tokens[start:end], self.targets[start:end])

    def place(self, index: int) -> str:
        """Name the record behind sequence `index`: 'file:line: record n'."""
        file, line, number = self.places[3 * index : 3 * index + 3].tolist()
        return place(self.files[file], line, number)

    def summary(self) -> dict[str, object]:
        """Counts, the spread of the records' lengths in tokens, and the files' hashes, as metadata.json holds them."""
        lengths: dict[str, float] = {}
        if len(self):
            marks = np.percentile(np.diff(self.offsets), [0, 5, 25, 50, 75, 95, 99, 100], method="inverted_cdf")
            names = ("min", "p5", "p25", "p50", "p75", "p95", "p99", "max")
            lengths = {name: int(mark) for name, mark in zip(names, marks, strict=True)}
            lengths["mean"] = round(self.counts["tokens"] / len(self), 2)
        return {**self.counts, "lengths": lengths, "files": self.hashes}

    def _check(self, vocab_size: int) -> None:
        """Refuse files that do not fit together, and numbers that are no token, target or place."""
        ends, places = self.offsets, self.places.reshape(-1, 3)
        if len(self) != self.counts["records"] or len(places) != len(self) or (np.diff(ends) < 1).any():
            raise _damaged(self.folder / "offsets.bin", "does not fit the number of records", len(self))
        if ends[0] != 0 or not ends[-1] == len(self.tokens) == len(self.targets) == self.counts["tokens"]:
            raise _damaged(self.folder / "offsets.bin", "does not fit the number of tokens", int(ends[-1]))
        if len(places) and not (places[:, 0].min() >= 0 and places[:, 0].max() < len(self.files)):
            raise _damaged(self.folder / "places.bin", "names a file that is not listed", len(self.files))
        lasts = ends[1:] - 1
        for start in range(0, len(self.tokens), _BLOCK):
            tokens, targets = (self._block(name, start) for name in ("tokens", "targets"))
            if tokens.min() < 0 or tokens.max() >= vocab_size:
                at = start + int(np.argmax((tokens < 0) | (tokens >= vocab_size)))
                raise self._outside("tokens", at, vocab_size)
            odd = start + np.flatnonzero((targets >= vocab_size) | ((targets < 0) & (targets != IGNORE)))
            odd = odd[(self.targets[odd] < 0) | ~np.isin(odd, lasts)]  # a last target may be a class instead
            if len(odd):
                raise self._outside("targets", int(odd[0]), vocab_size)

    def _block(self, name: str, start: int) -> NDArray[np.int32]:
        """Read numbers of a file, not through the map, so that the memory of a check stays flat."""
        return np.fromfile(self.folder / f"{name}.bin", dtype=_DTYPES[name], count=_BLOCK, offset=4 * start)

    def _outside(self, name: str, at: int, vocab_size: int) -> InputError:
        record = int(np.searchsorted(self.offsets, at, side="right")) - 1
        what = f"number {at:,} ({self.place(record)}) is outside the vocabulary of {vocab_size:,}"
        return _damaged(self.folder / f"{name}.bin", what, int(getattr(self, name)[at]))


def _column(folder: Path, name: str, expected: Mapping[str, Any]) -> NDArray[Any]:
    """Map one file, after its size and its hash were compared."""
    path, dtype = folder / f"{name}.bin", np.dtype(_DTYPES[name])
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise _damaged(path, "is missing", None) from None
    if size != expected["bytes"]:
        raise _damaged(path, f"must have {expected['bytes']:,} bytes", size)
    with faults(path), path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != expected["sha256"]:
        raise _damaged(path, f"is damaged: its SHA-256 must begin {expected['sha256'][:12]}", digest[:12])
    return np.asarray(np.memmap(path, dtype=dtype, mode="r")) if size else np.empty(0, dtype=dtype)


def _damaged(path: Path, what: str, got: object) -> InputError:
    return InputError(str(path), f"prepared data: {what}", got, f"delete the folder {path.parent} and prepare it again")
