"""Strict CSV and TSV (RFC 4180): quoted fields with delimiters, quotes and line breaks; a header line or given names.

It knows nothing of files on disk or of what the columns mean. Its invariant: every record has exactly the named
fields, character for character, or the error names the line where it went wrong.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

from finetwo.core.errors import InputError
from finetwo.data.decoding import MAX_RECORD, too_long

Line = tuple[int, str]
Cells = tuple[int, list[str]]
"""(line the record starts on, its cells)."""


def read_delimited(
    lines: Iterator[Line],
    file: str,
    delimiter: str,
    on_note: Callable[[str], None],
    *,
    quotes: str = "lenient",
    names: Sequence[str] = (),
) -> Iterator[tuple[int, dict[str, object]]]:
    """Yield (line, fields) of every record below the header, or of every record where `names` stand for a header.

    Args:
        lines: numbered lines without their line feeds.
        file: name for messages.
        delimiter: one character.
        on_note: takes one line to be said aloud.
        quotes: 'lenient' reads a quote inside an unquoted field as text, 'strict' refuses it, 'none' reads every
            quote as text.
        names: the columns of a file without a header line.

    Raises:
        InputError: ragged record, quote never closed, no or doubled column names, probably the wrong delimiter.
    """
    records = _records(lines, file, delimiter, quotes)
    first = next(records, None)
    if first is None:
        return
    title = "--rows.names" if names else "the header"
    if names:
        records = itertools.chain([_not_a_header(first, names, file)], records)
    else:
        names = _header(first, file, delimiter)
    if names[0] == "":
        on_note(f"{file}: the first column has no name (an index?) and is left out")
    if names[-1] == "":
        on_note(f"{file}: the last columns have no name and are left out")
    for number, (line, cells) in enumerate(records, start=1):
        if len(cells) != len(names):
            raise InputError(
                f"{file}:{line}",
                f"record {number} has {len(cells)} fields, {title} has {len(names)}",
                delimiter.join(cells)[:80],
                'put fields that hold the delimiter in "quotes", or check --rows.delimiter'
                + (" and --rows.names" if title == "--rows.names" else ""),
            )
        fields: dict[str, object] = dict(zip(names, cells, strict=True))
        fields.pop("", None)
        yield line, fields


def _not_a_header(first: Cells, names: Sequence[str], file: str) -> Cells:
    """Return the first record, or raise InputError where it is the header that --rows.names says is not there."""
    line, cells = first
    if [cell.strip().lower() for cell in cells] == [name.lower() for name in names]:
        what = "the first line holds the names of the columns itself"
        raise InputError(f"{file}:{line}", what, ", ".join(cells), "leave --rows.names out")
    return first


def _header(first: Cells, file: str, delimiter: str) -> list[str]:
    """Return the column names, or raise InputError when the first line cannot be a header."""
    line, cells = first
    where, names = f"{file}:{line}", [cell.strip() for cell in cells]
    if len(names) == 1:
        other = next((d for d in (",", ";", "\t", "|") if d != delimiter and d in names[0]), None)
        if other:
            shown, now = other.replace("\t", "\\t"), delimiter.replace("\t", "\\t")
            raise InputError(
                where, f"only one column with the delimiter '{now}'", names[0], f"--rows.delimiter '{shown}'"
            )
    last = max((i for i, name in enumerate(names, start=1) if name), default=0)  # spreadsheets leave empty ones behind
    for column, name in enumerate(names, start=1):
        if column > last > 1:
            break
        if not name and (column > 1 or len(names) == 1):
            raise InputError(where, f"column {column} of the header has no name", fix="name every column")
        if names.index(name) != column - 1:
            raise InputError(
                where, f"duplicate column name '{name}' (columns {names.index(name) + 1} and {column})",
                fix="rename one of them",
            )  # fmt: skip
        if _is_number(name) or len(name) > 128 or "\n" in name:
            raise InputError(
                where, "no header: the first line looks like data, not like column names", name,
                "--rows.names prompt,completion (the names of the columns), or put such a line first",
            )  # fmt: skip
    return names


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _records(lines: Iterator[Line], file: str, delimiter: str, quotes: str) -> Iterator[Cells]:
    for number, line in lines:
        if line in ("", "\r"):
            continue
        if quotes == "none" or '"' not in line:
            body = line.removesuffix("\r")
            _no_bare_return(body, f"{file}:{number}")
            yield number, body.split(delimiter)
        else:
            yield number, _Quoted(lines, file, number, line).cells(delimiter, strict=quotes == "strict")


def _no_bare_return(text: str, where: str) -> None:
    if "\r" in text:
        fix = "save the file with line feeds (Unix or Windows line ends), or put the field in quotes"
        raise InputError(where, "a carriage return without a line feed outside quotes", fix=fix)


class _Quoted:
    """Reads one record that holds quotes; takes further lines while a quoted field is open."""

    def __init__(self, lines: Iterator[Line], file: str, number: int, line: str) -> None:
        self._lines, self._file, self._number, self._line = lines, file, number, line
        self._at = 0

    def cells(self, delimiter: str, *, strict: bool) -> list[str]:
        cells: list[str] = []
        while True:
            if not self._line.startswith('"', self._at):
                cell, ended = self._plain(delimiter, strict)
                cells.append(cell)
            else:
                cells.append(self._quoted())
                ended = self._line[self._at :] in ("", "\r")
                if not ended and not self._line.startswith(delimiter, self._at):
                    raise self._error("text after a closing quote", 'write a quote inside a field as ""')
                self._at += 1
            if ended:
                return cells

    def _plain(self, delimiter: str, strict: bool) -> tuple[str, bool]:
        end = self._line.find(delimiter, self._at)
        cell = self._line[self._at : end] if end >= 0 else self._line[self._at :].removesuffix("\r")
        _no_bare_return(cell, f"{self._file}:{self._number}")
        if strict and '"' in cell:
            raise self._error("a quote inside an unquoted field", "put the field in quotes")
        self._at = end + 1
        return cell, end < 0

    def _quoted(self) -> str:
        opened, parts, size = f"{self._file}:{self._number}:{self._at + 1}", [], 0
        start = self._at + 1
        while True:
            close = self._line.find('"', start)
            doubled = close >= 0 and self._line.startswith('"', close + 1)
            end = len(self._line) if close < 0 else close + doubled
            parts.append(self._line[start:end])
            size += end - start
            if close >= 0 and not doubled:
                self._at = close + 1
                return "".join(parts)
            start = close + 2
            if close < 0:
                if size > MAX_RECORD:
                    raise too_long(opened, "the quoted field that opens here (is its quote never closed?)")
                following = next(self._lines, None)
                if following is None:
                    raise InputError(opened, "the quote that opens here is never closed", fix='close it with "')
                self._number, self._line = following
                parts.append("\n")
                size += 1
                start = 0

    def _error(self, what: str, fix: str) -> InputError:
        around = self._line[max(0, self._at - 20) : self._at + 20]
        return InputError(f"{self._file}:{self._number}:{self._at + 1}", what, around, fix)
