"""`finetwo convert`: a pickled, Parquet or Arrow data set as JSON lines."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.errors import InputError

_USAGE = "finetwo convert FILE OUT.jsonl [--part NAME]"
_ABOUT = """Write a data set as JSON lines, one record a line, which every other verb reads.

A pickle (.pkl, .pickle, .joblib, and .pt or .bin as torch.save writes them) can run code when it is loaded. It is read
here by a process of its own that has no network, no files and an unpickler that knows no names: only lists,
dictionaries, texts, numbers, True, False and None come through, and a file with anything else is refused before any of
it runs. Parquet and Arrow files, folders that `datasets` saved and data sets of the hub (hub:OWNER/NAME) need:
pip install 'finetwo[data]'.

examples:
  finetwo convert austen.pkl austen.jsonl
  finetwo train austen.jsonl --rows.columns.text sentence
  finetwo convert splits.pkl train.jsonl --part train
  finetwo convert saved-dataset/ test.jsonl --part test
"""
_ARRAYS = (".npy", ".npz")


@dataclass
class ConvertArguments:
    """Options of `finetwo convert`."""

    part: str | None = None
    """Which list of a pickled dictionary, or which split of a folder: train, validation or test."""


def _settle(arguments: ConvertArguments, words: Words) -> ConvertArguments:
    words.expect("convert", 2, 2, "a file and the name of the new one are needed", _USAGE)
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(ConvertArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name, target) = asked
    from finetwo.app.console import say

    out = Path(target)
    if out.suffix.lower() not in (".jsonl", ".ndjson"):
        raise InputError(target, "the new file must be called .jsonl", fix=f"write {out.with_suffix('.jsonl')}")
    if out.exists() or out.is_symlink():
        raise InputError(target, "exists already", fix="give a new name, or remove it")
    count, fields = write_lines(_records(name, arguments.part, say), out, name, say)
    say(f"{out}: {count:,} records with the fields {', '.join(fields[:12])}")
    return 0


def _records(name: str, part: str | None, say: Callable[[str], None]) -> Iterator[dict[str, object]]:
    """The records of what `name` names: a pickle, a table, a folder of them, or a data set of the hub."""
    from finetwo.data.opening import ARRAYS_FIX
    from finetwo.data.pickled import is_pickle, read_pickle
    from finetwo.store.hub_data import data_path

    path = data_path(name, say)
    if path.is_dir():
        return _tables(path, part, say)
    if path.suffix.lower() in _ARRAYS:
        what = f"a {path.suffix.lower()} file holds arrays, not records, and is not read here either"
        raise InputError(name, what, fix=ARRAYS_FIX)
    if is_pickle(path):
        return read_pickle(path, part, say)
    return _tables(path, part, say)


def _tables(path: Path, part: str | None, say: Callable[[str], None]) -> Iterator[dict[str, object]]:
    """The records of Parquet and Arrow files; InputError for files that need no conversion."""
    from finetwo.core.config import RowsConfig
    from finetwo.data.opening import TABLES
    from finetwo.data.source import find_files, read_rows

    files = find_files(path)
    if part is not None and part not in files:
        raise InputError("--part", f"there is only {', '.join(files)} in {path}", part, "name one of them, or none")
    if part is None and len(files) > 1:
        raise InputError(str(path), f"has several splits: {', '.join(files)}", fix=f"--part {next(iter(files))}")
    chosen = files[part or next(iter(files))]
    plain = next((file for file in chosen if file.suffix.lower() not in TABLES), None)
    if plain is not None:
        raise InputError(str(plain), "is read as it is, or not at all", fix=f"finetwo train {plain}")
    return (row.fields for file in chosen for row in read_rows(file, RowsConfig(), say))


def write_lines(
    records: Iterable[dict[str, object]], out: Path, name: str, say: Callable[[str], None]
) -> tuple[int, list[str]]:
    """Write the records to the new file `out`, whole or not at all; return their number and the names of the fields.

    Columns whose type has no JSON form are left out, and NaN becomes null; both are said.
    """
    from finetwo.core.files import replacing
    from finetwo.data.decoding import MAX_RECORD, too_long

    count, fields, dropped, nulls = 0, dict[str, None](), dict[str, str](), 0
    with replacing(out) as file:
        for count, record in enumerate(records, start=1):
            kept, lost = _plain(record, dropped)
            nulls += lost
            fields.update(dict.fromkeys(kept))
            line = json.dumps(kept, ensure_ascii=False, allow_nan=False)
            if len(line) > MAX_RECORD:
                raise too_long(f"{name}: record {count}", "the record")
            file.write(line.encode("utf-8") + b"\n")
    for column, kind in dropped.items():
        say(f"{name}: the column '{column}' of type {kind} has no JSON form and is left out")
    if nulls:
        say(f"{name}: {nulls:,} numbers that are NaN or infinite became null")
    return count, list(fields)


def _plain(record: dict[str, object], dropped: dict[str, str]) -> tuple[dict[str, object], int]:
    """The record without values that have no JSON form, and how many numbers became null; notes what it dropped."""
    from finetwo.data.json_stream import Unreadable

    lost = 0

    def clean(value: object, place: str) -> object:
        nonlocal lost
        if isinstance(value, dict):
            return {k: clean(v, f"{place}.{k}") for k, v in value.items() if not marked(v, f"{place}.{k}")}
        if isinstance(value, list):
            return [clean(item, place) for item in value if not marked(item, place)]
        if isinstance(value, float) and value - value != 0:
            lost += 1
            return None
        return value

    def marked(value: object, place: str) -> bool:
        if isinstance(value, Unreadable):
            dropped[place] = value.type
        return isinstance(value, Unreadable)

    return {k: clean(v, k) for k, v in record.items() if not marked(v, k)}, lost
