"""Reads a user's texts one by one, each in pieces, and cuts a single one into consecutive parts.

It knows nothing of splits by content or of tokens. Its invariant: the pieces of a document joined are its text, and
what is told of it (size, hashes) is that of the whole text, however it is cut into pieces.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.columns import Columns, detect_columns
from finetwo.data.decoding import decoded
from finetwo.data.examples import END_OF_TEXT
from finetwo.data.folders import FORMATS, suffix_of
from finetwo.data.opening import SourceFile
from finetwo.data.selecting import select
from finetwo.data.source import Note, place, read_rows
from finetwo.data.split import content_key, position


@dataclass(frozen=True, slots=True)
class Part:
    """A text, in pieces, and the split it is in."""

    split: str
    pieces: Iterable[str]
    where: str


@dataclass(frozen=True, slots=True)
class Document:
    """One text of a user's data, which can be read again, and what is known of it as a whole."""

    read: Callable[[], Iterable[str]]
    place: tuple[str, int, int]
    size: int
    """Characters."""
    blank: bool
    marked: bool
    """Whether it spells the end-of-text mark."""
    side: float
    """The number in [0, 1) that decides its split."""
    key: int
    """64 bits of its content's hash."""

    @property
    def where(self) -> str:
        """The place to name in a message."""
        return place(*self.place)


def is_document(path: Path, rows: RowsConfig) -> bool:
    """Tell whether the file is one text as a whole, by the settings and its name, as `read_rows` does."""
    table = rows.delimiter is not None or rows.names is not None
    kind = rows.format if rows.format != "auto" else FORMATS.get(suffix_of(path))
    return kind == "txt" and not table


def read_text(path: Path, rows: RowsConfig, on_note: Note = lambda _: None) -> Iterator[str]:
    """Yield the text of a file in pieces; errors as `read_rows`."""
    with SourceFile(path) as source:
        yield from decoded(source.chunks(on_note), rows.encoding, str(path), on_note)
        source.check_unchanged()


# --- reading ------------------------------------------------------------------------------------------------------


@dataclass
class Reader:
    """Reads the documents of files; the first record of all decides the columns."""

    rows: RowsConfig
    seed: int
    on_note: Note
    columns: Columns | None = None

    def read(self, paths: list[Path]) -> Iterator[Document]:
        """Yield the documents of some files as one, `rows.limit` counted over all of them."""
        left = self.rows.limit
        for path in paths:
            if left == 0:
                return
            for document in self._file(path, replace(self.rows, limit=left)):
                yield document
                left = None if left is None else left - 1

    def _file(self, path: Path, rows: RowsConfig) -> Iterator[Document]:
        if is_document(path, rows):
            self._columns(["text"], f"{path}:1: record 1")
            yield self._whole(path, rows)
            return
        for row in read_rows(path, rows, self.on_note):
            fields = select(row, self._columns(list(row.fields), row.where))
            yield _of_fields(fields, (row.file, row.line, row.number), self.seed)

    def _columns(self, names: list[str], where: str) -> Columns:
        if self.columns is None:
            try:
                self.columns = detect_columns(names, self.rows.columns, where, "text")
            except InputError as error:
                if error.where.startswith("--"):
                    raise
                what = f"the task needs plain text: {error.what}"
                raise InputError(error.where, what, error.got, "name the column: --rows.columns.text NAME") from error
            self.on_note(self.columns.describe())
        return self.columns

    def _whole(self, path: Path, rows: RowsConfig) -> Document:
        """A file that is one document, read once for what is known of it and again whenever it is asked for."""
        stamp = _stamp(path)
        found = _look(read_text(path, rows, self.on_note), self.seed)
        if found.blank:
            why = "only blank lines" if found.size else "the file is empty"
            raise InputError(str(path), f"0 records: {why}", fix="give a file that holds records")

        def again() -> Iterator[str]:
            if _stamp(path) != stamp:
                fix = "wait until it is written, start again"
                raise InputError(str(path), "the file changed while it was being read", fix=fix)
            yield from read_text(path, rows)

        return replace(found, read=again, place=(str(path), 1, 1))


def _stamp(path: Path) -> tuple[int, int] | None:
    """What changes when the file is written; None where it cannot be looked at, which reading it will tell."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


def _of_fields(fields: Mapping[str, str], where: tuple[str, int, int], seed: int) -> Document:
    text, content = fields["text"], content_key(fields)
    side = position(hashlib.sha256(f"{seed}\n".encode("ascii") + content).digest())
    key = int.from_bytes(hashlib.sha256(content).digest()[:8], "big")
    marked = any(END_OF_TEXT in value for value in fields.values())
    return Document(lambda: (text,), where, len(text), not text or text.isspace(), marked, side, key)


def of_text(text: str, where: tuple[str, int, int] = ("data", 0, 1)) -> Document:
    """Return a text in memory as a document."""
    return _of_fields({"text": text}, where, 0)


def _look(pieces: Iterable[str], seed: int) -> Document:
    """Return what is known of a text, its content key hashed piece by piece."""
    head = b'{"text":"'
    sides, keys = hashlib.sha256(f"{seed}\n".encode("ascii") + head), hashlib.sha256(head)
    size, blank, marked, tail = 0, True, False, ""
    for piece in pieces:
        size += len(piece)
        blank = blank and piece.isspace()
        content = json.dumps(piece, ensure_ascii=True)[1:-1].encode("ascii")
        sides.update(content)
        keys.update(content)
        marked = marked or END_OF_TEXT in tail + piece
        tail = (tail + piece)[1 - len(END_OF_TEXT) :]
    sides.update(b'"}')
    keys.update(b'"}')
    key = int.from_bytes(keys.digest()[:8], "big")
    return Document(tuple, ("", 0, 1), size, blank, marked, position(sides.digest()), key)


# --- one document -------------------------------------------------------------------------------------------------


def cut(document: Document, shares: Mapping[str, float]) -> Iterator[Part]:
    """Cut one text into consecutive parts of the given shares, each ending at a line end (or blank)."""
    ends, share = [], 0.0
    for part in shares.values():
        share += part
        ends.append(document.size if share > 1 - 1e-6 else int(document.size * share))
    start = 0
    for name, end in zip(shares, _line_ends(document, ends), strict=True):
        if end > start:
            yield Part(name, _between(document.read(), start, end), document.where)
        start = end


def _line_ends(document: Document, ends: list[int]) -> list[int]:
    """Move each place but the last of the text back behind the last line end, or blank, after the one before."""
    found: list[int] = []
    start, offset, seen = 0, 0, {"\n": -1, " ": -1}
    for piece in document.read():
        while len(found) < len(ends) and ends[len(found)] <= offset + len(piece):
            end = ends[len(found)]
            if end < document.size:
                last = [max(seen[c], _last(piece, c, end - offset, offset)) for c in seen]
                end = next((at + 1 for at in last if at >= start), end)
            found.append(end)
            start = end
        seen = {c: max(seen[c], _last(piece, c, len(piece), offset)) for c in seen}
        offset += len(piece)
    return found


def _last(piece: str, character: str, end: int, offset: int) -> int:
    """Where in the whole text `character` stands last before `end` of `piece`; -1: nowhere in it."""
    at = piece.rfind(character, 0, end)
    return -1 if at < 0 else offset + at


def _between(pieces: Iterable[str], start: int, end: int) -> Iterator[str]:
    """Yield the characters from `start` to `end` of a text."""
    offset = 0
    for piece in pieces:
        if offset >= end:
            return
        chosen = piece[max(0, start - offset) : end - offset]
        if chosen:
            yield chosen
        offset += len(piece)
