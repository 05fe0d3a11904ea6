"""Reads the records of a user's data files, whatever the format, with their places.

It knows nothing of what a column means, of splits or of models. Its invariant: every record is yielded exactly as
written, in file order, or the file is refused with the place and the remedy; nothing is ever skipped silently.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.decoding import decoded, numbered_lines
from finetwo.data.delimited import read_delimited
from finetwo.data.folders import FORMATS, SPLITS, find_files, suffix_of
from finetwo.data.json_stream import Record, kind_of, read_array, read_lines, read_objects
from finetwo.data.opening import SourceFile
from finetwo.data.parquet import read_table, table_kind

Note = Callable[[str], None]
"""Takes one line that should be said aloud."""

MAX_DOCUMENT = 1 << 30
"""Longest text document, in characters."""
NO_LINE = -1
"""The line of a record in a file that has none, such as Parquet."""

_SNIFF = 1 << 20


def place(file: str, line: int, number: int) -> str:
    """Where a record stands: 'file:line: record n' ('file: record n' for `NO_LINE`), or 'name[index]' for line 0.

    Line 0 is that of records which come from memory.
    """
    if line == NO_LINE:
        return f"{file}: record {number}"
    return f"{file}:{line}: record {number}" if line else f"{file}[{number - 1}]"


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a user's file: its fields, and where it stands (`line` and `number` count from 1)."""

    fields: dict[str, object]
    file: str
    line: int
    number: int

    @property
    def where(self) -> str:
        """The place to name in a message."""
        return place(self.file, self.line, self.number)


def _silent(_: str) -> None:
    return None


def read_rows(path: Path, rows: RowsConfig, on_note: Note = _silent) -> Iterator[Row]:
    """Yield the records of one file, at most `rows.limit`: JSON, JSONL, CSV, TSV, text (also .gz, .xz), Parquet, Arrow.

    A text file is one record with the field `text`. Memory stays flat for the other formats. `on_note` takes what
    should be said aloud (another format than the name says, a byte order mark, ...).

    Raises:
        InputError: anything wrong with the file, named with line (and column); no record at all; a file that changes.
        EnvironmentFault: no permission, the device fails, or a package that the format needs is not installed.
    """
    rows.check()
    file, number = str(path), 0
    with SourceFile(path) as source:
        kind = table_kind(source)
        records, why = _table(source, kind, rows, on_note) if kind else _text(source, rows, on_note)
        for line, fields in itertools.islice(records, rows.limit):
            number += 1
            yield Row(fields, file, line, number)
        source.check_unchanged()
    if not number:
        raise InputError(file, f"0 records: {why}", fix="give a file that holds records")


def _table(source: SourceFile, kind: str, rows: RowsConfig, on_note: Note) -> tuple[Iterator[Record], str]:
    """The records of a Parquet or Arrow file, and what to say if there are none."""
    unset = RowsConfig()
    if rows.names is not None:
        raise InputError(
            "--rows.names", f"has no meaning for {source.path}, which is {kind}", rows.names, "leave it out"
        )
    for name in ("format", "delimiter", "encoding"):  # a recipe serves the hub's tables and a user's text files alike
        if getattr(rows, name) != getattr(unset, name):
            on_note(f"{source.path}: --rows.{name} is not needed, as the file is {kind}")
    fields = read_table(source.file, str(source.path), kind, on_note)
    return zip(itertools.repeat(NO_LINE), fields, strict=False), "the table has no rows"


def _text(source: SourceFile, rows: RowsConfig, on_note: Note) -> tuple[Iterator[Record], str]:
    """The records of a text file, and what to say if there are none."""
    path, quotes = source.path, "lenient"
    if rows.format == "tsv" or (rows.format == "auto" and suffix_of(path) in (".tsv", ".tab")):
        quotes = "strict" if _has_strict_quotes(path, rows) else "none"
    text = decoded(source.chunks(on_note), rows.encoding, str(path), on_note)
    head = _head(text, str(path))
    records = _records(itertools.chain([head], text), head, path, rows, on_note, quotes)
    if quotes == "none":
        plain = f'{path}: quotes (") are read as plain text, as they do not enclose whole fields'
        records = _saying(plain, records, on_note)
    return records, _why_none(head)


def _saying(line: str, records: Iterator[Record], on_note: Note) -> Iterator[Record]:
    """Pass records on, and say `line` with the first one."""
    for count, record in enumerate(records):
        if not count:
            on_note(line)
        yield record


def _head(text: Iterator[str], file: str) -> str:
    """Take from `text` until something other than white space shows up; more than `_SNIFF` of that is refused."""
    head = ""
    for piece in text:
        head += piece
        if not head.isspace():
            break
        if len(head) > _SNIFF:
            what = f"begins with more than {_SNIFF >> 20} MiB of white space"
            raise InputError(file, what, fix="remove it: blank lines hold no record")
    return head


def _why_none(head: str) -> str:
    if not head:
        return "the file is empty"
    if head.isspace():
        return "only blank lines"
    return "the array is empty" if head.lstrip().startswith("[") else "only a header line"


def _format(path: Path, rows: RowsConfig, first: str, on_note: Note) -> str:
    """Return 'array', 'objects', 'lines', 'csv', 'tsv' or 'txt', by the settings, the name and the first character."""
    named = FORMATS.get(suffix_of(path), "")
    kind = rows.format if rows.format != "auto" else named
    if rows.delimiter is not None and kind not in ("csv", "tsv"):
        if rows.format != "auto" or named in ("json", "jsonl"):
            raise InputError("--rows.delimiter", f"has no meaning for {path}, read as {kind}", fix="leave it out")
        kind = "csv"
    if rows.names is not None and kind not in ("csv", "tsv"):
        fix = "--rows.format csv (or tsv), or leave it out"
        raise InputError("--rows.names", f"has no meaning for {path}, read as {kind or 'JSON'}", rows.names, fix)
    if kind in ("csv", "tsv", "txt"):
        return kind
    if not kind and first not in ("[", "{"):
        raise InputError(
            str(path), "the format cannot be told by the name or the content", path.suffix or path.name,
            "--rows.format json, jsonl, csv, tsv or txt",
        )  # fmt: skip
    if first == "[":
        if rows.format == "jsonl":
            raise InputError(str(path), "a JSON array, not one object a line", "[", "--rows.format json")
        if kind == "jsonl":
            on_note(f"{path}: holds a JSON array, not one object a line; read as --rows.format json")
        return "array"
    if kind == "json" and first == "{":
        on_note(f"{path}: holds objects one after another, not an array; read as --rows.format jsonl")
    return "lines" if kind == "jsonl" else "objects"


def _records(
    text: Iterator[str], head: str, path: Path, rows: RowsConfig, on_note: Note, quotes: str
) -> Iterator[Record]:
    """Return the parsed records of `text`, which begins with `head`."""
    file = str(path)
    if not head or head.isspace():
        return iter(())
    kind = _format(path, rows, head.lstrip()[:1], on_note)
    if kind == "array":
        return read_array(text, file)
    if kind == "objects":
        return _refuse_wrapper(read_objects(text, file), file)
    if kind == "lines":
        return read_lines(numbered_lines(text, file), file)
    if kind == "txt":
        return _document(text, file)
    delimiter = (rows.delimiter or ("\t" if kind == "tsv" else ",")).replace("\\t", "\t")
    if delimiter in '"\r\n':
        raise InputError("--rows.delimiter", "cannot be a quote or a line end", delimiter, "give , ; | or '\\t'")
    lines = numbered_lines(text, file)
    return read_delimited(lines, file, delimiter, on_note, quotes=quotes, names=rows.column_names)


def _refuse_wrapper(records: Iterator[Record], file: str) -> Iterator[Record]:
    """Pass records on; refuse a file of one object that only wraps the list of records."""
    first = next(records, None)
    second = next(records, None)
    if first is not None and second is None:
        for name, value in first[1].items():
            if isinstance(value, list) and value and isinstance(value[0], dict):
                what = f"one object, whose field '{name}' holds a list, instead of records"
                raise InputError(f"{file}:{first[0]}", what, fix=f"save only the list in '{name}'")
    return itertools.chain((record for record in (first, second) if record is not None), records)


def _document(text: Iterator[str], file: str) -> Iterator[Record]:
    """Yield one record with the whole text, line breaks as they are; none for a blank document."""
    parts, size = [], 0
    for part in text:
        parts.append(part)
        size += len(part)
        if size > MAX_DOCUMENT:
            raise InputError(
                file, f"a document longer than the limit of {MAX_DOCUMENT >> 30} GiB of characters",
                fix="split it into a folder of .txt files, or write JSONL with a field text",
            )  # fmt: skip
    whole = "".join(parts)
    if not whole.isspace():
        yield 1, {"text": whole}


def _has_strict_quotes(path: Path, rows: RowsConfig) -> bool:
    """Tell whether a TSV file encloses fields in quotes (as spreadsheets do) or never does (as GLUE does).

    The first reads the second wrongly and the other way round, so the whole file must agree: only when every quote
    opens, closes or doubles by the rules are quotes more than text.
    """
    try:
        with SourceFile(path) as source:
            lines = numbered_lines(decoded(source.chunks(_silent), rows.encoding, "", _silent), "")
            delimiter = (rows.delimiter or "\t").replace("\\t", "\t")
            records = read_delimited(lines, "", delimiter, _silent, quotes="strict", names=rows.column_names)
            for _ in itertools.islice(records, rows.limit):
                pass
    except InputError:
        return False
    return True


def read_all(paths: list[Path], rows: RowsConfig, on_note: Note = _silent) -> list[Row]:
    """Read several files as one, `rows.limit` counted over all of them; errors as `read_rows`."""
    found: list[Row] = []
    for path in paths:
        left = None if rows.limit is None else rows.limit - len(found)
        if left == 0:
            break
        found.extend(read_rows(path, replace(rows, limit=left), on_note))
    return found


__all__ = ["NO_LINE", "SPLITS", "Note", "Row", "find_files", "kind_of", "place", "read_all", "read_rows"]
