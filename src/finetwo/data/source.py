"""Finds a user's data files and reads their records, whatever the format, with line numbers.

It knows nothing of what a column means, of splits or of models. Its invariant: every record is yielded exactly as
written, in file order, or the file is refused with the place and the remedy; nothing is ever skipped silently.
"""

from __future__ import annotations

import glob
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.decoding import decoded, numbered_lines
from finetwo.data.delimited import read_delimited
from finetwo.data.json_stream import Record, kind_of, read_array, read_lines, read_objects
from finetwo.data.opening import PACKED, SourceFile, fault, missing

Note = Callable[[str], None]
"""Takes one line that should be said aloud."""

MAX_DOCUMENT = 1 << 30
"""Longest text document, in characters."""
SPLITS = ("train", "validation", "test")
"""The names of the splits, in their fixed order."""

_SPLIT_STEMS = {"train": "train", "test": "test", **dict.fromkeys(("validation", "valid", "val", "dev"), "validation")}
_FORMATS = {
    ".json": "json",
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".txt", ".text", ".md"), "txt"),
}
_REFUSED = (".parquet", ".arrow", ".pkl", ".pickle", ".pt", ".npy", ".npz", ".bin", ".zip", ".tar")
_SNIFF = 1 << 20
_LOOKED_FOR = "train.*, validation.* (or valid, val, dev) and test.*, each .json .jsonl .csv .tsv .txt (also .gz .xz)"


def place(file: str, line: int, number: int) -> str:
    """Where a record stands: 'file:line: record n', or 'name[index]' for records that come from memory (line 0)."""
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
    """Yield the records of one JSON, JSONL, CSV, TSV or text file (also .gz, .xz), at most `rows.limit` of them.

    A text file is one record with the field `text`. Memory stays flat for the other formats. `on_note` takes what
    should be said aloud (another format than the name says, a byte order mark, ...).

    Raises:
        InputError: anything wrong with the file, named with line (and column); no record at all; a file that changes.
        EnvironmentFault: no permission, or the device fails.
    """
    rows.check()
    quotes = "lenient"
    if rows.format == "tsv" or (rows.format == "auto" and _suffix(path) in (".tsv", ".tab")):
        quotes = "strict" if _has_strict_quotes(path, rows) else "none"
    with SourceFile(path) as source:
        file, number = str(path), 0
        text = decoded(source.chunks(on_note), rows.encoding, file, on_note)
        head = _head(text)
        records = _records(itertools.chain([head], text), head, path, rows, on_note, quotes)
        for line, fields in itertools.islice(records, rows.limit):
            number += 1
            yield Row(fields, file, line, number)
        source.check_unchanged()
    if not number:
        raise InputError(file, f"0 records: {_why_none(head)}", fix="give a file that holds records")
    if quotes == "none":
        on_note(f'{file}: quotes (") are read as plain text, as they do not enclose whole fields')


def _head(text: Iterator[str]) -> str:
    """Take from `text` until something other than white space shows up (within `_SNIFF` characters)."""
    head = ""
    for piece in text:
        head += piece
        if not head.isspace() or len(head) > _SNIFF:
            break
    return head


def _why_none(head: str) -> str:
    if not head:
        return "the file is empty"
    if head.isspace():
        return "only blank lines"
    return "the array is empty" if head.lstrip().startswith("[") else "only a header line"


def _suffix(path: Path) -> str:
    """The ending that tells the format, without .gz or .xz."""
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


def _format(path: Path, rows: RowsConfig, first: str, on_note: Note) -> str:
    """Return 'array', 'objects', 'lines', 'csv', 'tsv' or 'txt', by the settings, the name and the first character."""
    named = _FORMATS.get(_suffix(path), "")
    kind = rows.format if rows.format != "auto" else named
    if rows.delimiter is not None and kind not in ("csv", "tsv"):
        if rows.format != "auto" or named in ("json", "jsonl"):
            raise InputError("--rows.delimiter", f"has no meaning for {path}, read as {kind}", fix="leave it out")
        kind = "csv"
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
    if not head or (head.isspace() and len(head) <= _SNIFF):
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
        raise InputError("--rows.delimiter", "cannot be a quote or a line end", delimiter)
    return read_delimited(numbered_lines(text, file), file, delimiter, on_note, quotes=quotes)


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
            records = read_delimited(lines, "", delimiter, _silent, quotes="strict")
            for _ in itertools.islice(records, rows.limit):
                pass
    except InputError:
        return False
    return True


def find_files(path: Path) -> dict[str, list[Path]]:
    """Return the data files at `path`, by split.

    A file is {"train": [file]}. A folder with train.*, validation.* (valid, val, dev) or test.* gives those; a folder
    of .txt documents gives {"all": [...]} in name order. A pattern with * or ? gives all its matches as "train".

    Raises:
        InputError: nothing there, nothing suitable (says what was looked for), or two files for one split.
        EnvironmentFault: no permission to list the folder.
    """
    try:
        if path.is_dir():
            return _in_folder(path)
        os.stat(path)
    except FileNotFoundError as error:
        if not glob.has_magic(str(path)):
            raise missing(path) from error
        matches = [Path(name) for name in sorted(glob.glob(str(path)))]  # noqa: PTH207 - Path.glob refuses absolute ones
        if not matches:
            raise InputError(str(path), f"no file matches (current folder: {Path.cwd()})", fix="check it") from error
        return {"train": matches}
    except (OSError, ValueError) as error:
        raise fault(path, error) from error
    return {"train": [path]}


def _in_folder(folder: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    names = sorted(item for item in folder.iterdir() if not item.name.startswith(".") and not item.is_dir())
    data = [item for item in names if _suffix(item) in _FORMATS and _suffix(item) != ".md"]
    for item in data:
        split = _SPLIT_STEMS.get(item.name.split(".")[0].lower())
        if split:
            found.setdefault(split, []).append(item)
    for split, items in found.items():
        if len(items) > 1:
            both = " and ".join(item.name for item in items[:2])
            raise InputError(str(folder), f"two files for {split}: {both}", fix="keep one, or give one file")
    if found:
        return {split: found[split] for split in SPLITS if split in found}
    if data and all(_suffix(item) == ".txt" for item in data):
        return {"all": data}
    refused = [item.name for item in names if _suffix(item) in _REFUSED]
    fix = f"give the file: {data[0]}" if len(data) == 1 else "name the files so, or give one file"
    if refused and not data:
        fix = f"convert {refused[0]} to JSONL, one JSON object a line"
    seen = ", ".join(item.name for item in names[:5]) or "no files"
    raise InputError(str(folder), f"no data found in the folder; looked for {_LOOKED_FOR}, or only .txt", seen, fix)


def read_all(paths: list[Path], rows: RowsConfig, on_note: Note = _silent) -> list[Row]:
    """Read several files as one, `rows.limit` counted over all of them; errors as `read_rows`."""
    found: list[Row] = []
    for path in paths:
        left = None if rows.limit is None else rows.limit - len(found)
        if left == 0:
            break
        found.extend(read_rows(path, replace(rows, limit=left), on_note))
    return found


__all__ = ["SPLITS", "Note", "Row", "find_files", "kind_of", "place", "read_all", "read_rows"]
