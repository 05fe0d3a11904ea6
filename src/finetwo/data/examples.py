"""Loads a user's data whole: reads the files, picks the columns, drops empty records and shares out the splits.

It knows nothing of tasks, templates or tokens. Its invariant: every record read is in one split or in one count, and
whatever was left out, doubled or unusual is said aloud.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.core.strict_json import parse_json
from finetwo.data.columns import Columns, Kind, adopt_input, detect_columns
from finetwo.data.folders import held_out
from finetwo.data.json_stream import kind_of, surrogate_fault
from finetwo.data.labels import find_labels, given_labels, name_classes, without_unlabelled
from finetwo.data.overlapping import find_overlap
from finetwo.data.selecting import select
from finetwo.data.source import SPLITS, Note, Row, find_files, place, read_all
from finetwo.data.split import DEFAULT_SPLIT, MIN_RECORDS, parse_split, split_rows
from finetwo.text.template import blank_part, turns_from_json

END_OF_TEXT = "<|endoftext|>"
"""The model's control token; in a user's text it is only text."""
_MAY_BE_EMPTY = ("input", "label")
_NEEDED = ("prompt", "completion", "text", "first", "second")


@dataclass(frozen=True, slots=True)
class Example:
    """One usable record: text by role (`prompt`, `input`, `completion`, `text`, `label`, ...), then further columns."""

    fields: dict[str, str]
    file: str
    line: int
    number: int

    @property
    def where(self) -> str:
        """The place to name in a message."""
        return place(self.file, self.line, self.number)


@dataclass(frozen=True, slots=True)
class Loaded:
    """The data of a job.

    `splits` always has train, validation and test (maybe empty), in file order. `counts`: records `read`; left out as
    `empty` (also by role: `empty_prompt`, ...) or `left_out` (beyond the counts of --rows.split); the size of each
    split; `overlap` (validation or test records that are in train too); `end_of_text` (records with that mark).
    `digest` is the SHA-256 (hex) of the content of all splits in order. `origin` names the data. `labels`: the names of
    the classes in order, where the records have one.
    """

    splits: dict[str, list[Example]]
    columns: Columns
    counts: dict[str, int]
    digest: str
    origin: str
    labels: tuple[str, ...] = ()


@runtime_checkable
class _Table(Protocol):
    def to_dict(self, orient: str) -> list[dict[str, object]]: ...


def load_splits(
    path: Path,
    rows: RowsConfig,
    seed: int,
    on_note: Note,
    kind: Kind | None = None,
    labels: tuple[str, ...] = (),
) -> Loaded:
    """Load a data file, a folder of train|validation|test.* or a folder of .txt documents.

    Without --rows.split and without a validation file the training records are split 0.9/0.1 by content. `kind` is what
    the records are wanted for; without it, it is told by the columns. `labels`: the classes of a model that is there.

    Raises:
        InputError: see `find_files`, `read_rows`, `detect_columns`, `select`, `parse_split`; no record is left.
        EnvironmentFault: a file cannot be read for want of permission or because of the device.
    """
    rows.check()
    if rows.split is not None:
        parse_split(rows.split)
    files = held_out(find_files(path), rows, str(path), on_note)
    if "train" not in files and "all" not in files:
        raise InputError(str(path), "no train.* in the folder", ", ".join(files), "add it, or give one file")
    # train first: its first record decides the columns
    files = {"train": files.get("all", files.get("train", [])), **files}
    groups = {name: read_all(paths, rows, on_note) for name, paths in files.items() if name != "all"}
    return _assemble(groups, _Wanted(rows, kind, labels), seed, on_note, str(path))


def load_rows(
    data: object,
    rows: RowsConfig,
    seed: int,
    on_note: Note,
    kind: Kind | None = None,
    labels: tuple[str, ...] = (),
) -> Loaded:
    """Load records that are in memory: a list of dictionaries, or a table with `.to_dict("records")` (a DataFrame).

    A dictionary of such lists by split name ({"train": [...], "validation": [...]}) gives the splits.

    Raises:
        InputError: not such an object, or as `load_splits`; a record is named `data[17]` (index from 0).
    """
    rows.check()
    groups = {"train": data}
    if isinstance(data, Mapping) and data and set(data) <= set(SPLITS):
        groups = {name: data[name] for name in SPLITS if name in data}
    named = {split: "data" if groups.keys() == {"train"} else f"data['{split}']" for split in groups}
    found = {split: _from_memory(part, named[split])[: rows.limit] for split, part in groups.items()}  # train first
    if not found.get("train"):
        raise InputError("data", "0 records", fix="give a list of dictionaries")
    return _assemble(found, _Wanted(rows, kind, labels), seed, on_note, "data")


def columns_in_memory(data: object, rows: RowsConfig) -> Columns:
    """Return the columns of records that are in memory, by the first of them; errors as `load_rows`."""
    inner = data["train"] if isinstance(data, Mapping) and "train" in data else data
    found = _from_memory(inner, "data")[:1]
    if not found:
        raise InputError("data", "0 records", fix="give a list of dictionaries")
    return detect_columns(list(found[0].fields), rows.columns, found[0].where)


def _from_memory(data: object, name: str) -> list[Row]:
    records = _records_of(data)
    if not isinstance(records, Iterable) or isinstance(records, (str, bytes, Mapping)):
        got = kind_of(data)
        raise InputError(name, "must be a path, a list of dictionaries or a DataFrame", got, "give one of these")
    found = []
    for index, record in enumerate(records):
        if not isinstance(record, Mapping) or not all(isinstance(key, str) for key in record):
            got = kind_of(record)
            raise InputError(f"{name}[{index}]", "must be a dictionary with text keys", got, "give one per record")
        fields = dict(record)
        fault = surrogate_fault({k: v for k, v in fields.items() if isinstance(v, str)})
        if fault:
            raise InputError(f"{name}[{index}]", fault, fix="remove it, or decode the text anew")
        found.append(Row(fields, name, 0, index + 1))
    return found


def _records_of(data: object) -> object:
    """Return the records of a table; anything else (also what already gives dictionaries one by one) as it is."""
    if isinstance(data, Mapping) or not isinstance(data, _Table):
        return data
    if isinstance(data, Iterable) and isinstance(next(iter(data), None), Mapping):
        return data
    return data.to_dict("records")


@dataclass(frozen=True)
class _Wanted:
    """How records are to be read, what for, and the classes if they are known."""

    rows: RowsConfig
    kind: Kind | None
    labels: tuple[str, ...]


def _assemble(groups: dict[str, list[Row]], wanted: _Wanted, seed: int, on_note: Note, origin: str) -> Loaded:
    """Turn rows by given split into examples by final split, counting and saying what is left out."""
    everything = [row for part in groups.values() for row in part]
    if not everything:
        raise InputError(origin, "0 records", fix="give data that holds records")
    rows = wanted.rows
    columns = detect_columns(list(everything[0].fields), rows.columns, everything[0].where, wanted.kind)
    columns = adopt_input(columns, everything)
    on_note(columns.describe())
    examples = {
        name: [Example(select(row, columns), row.file, row.line, row.number) for row in part]
        for name, part in groups.items()
    }
    if columns.messages is not None:
        _say_turns(everything, examples, columns.messages, on_note, origin)
    splits = _share(examples, rows, seed, on_note, origin)
    counts: Counter[str] = Counter(read=len(everything))
    counts["left_out"] = len(everything) - sum(map(len, splits.values()))
    splits = {name: _without_empty(part, columns, rows, counts) for name, part in splits.items()}
    labels: tuple[str, ...] = ()
    if columns.label is not None:
        names = given_labels(rows)
        splits, counts["unlabelled"] = without_unlabelled(splits, names or wanted.labels, rows.on_empty, on_note)
        if names:
            name_classes(splits, names)
        given = wanted.labels or names
        own = ["train", *(name for name in SPLITS if name not in groups)]  # those that are parts of train's file
        labels = find_labels(splits, given, origin, own, of_model=bool(wanted.labels))
    counts.update({name: len(part) for name, part in splits.items()})
    counts["end_of_text"] = count_marks(e for part in splits.values() for e in part)
    counts["overlap"] = find_overlap(splits, rows, on_note, origin)
    _say(counts, on_note, origin)
    return Loaded(splits, columns, dict(counts), digest(splits), origin, labels)


def _say_turns(rows: list[Row], examples: Mapping[str, list[Example]], column: str, on_note: Note, origin: str) -> None:
    """Say how many turns of conversations are left out: answers before a question, a question without an answer."""
    given = (row.fields[column] for row in rows)
    turns = (parse_json(value, column) if isinstance(value, str) else value for value in given)
    there = sum(len(found) for found in turns if isinstance(found, list))
    kept = sum(len(turns_from_json(e.fields["messages"])) for part in examples.values() for e in part)
    if there > kept:
        what = "answers to nothing at the beginning, blank system turns, last questions without an answer"
        on_note(f"{origin}: {there - kept:,} of {there:,} turns are left out ({what})")


def _share(
    examples: dict[str, list[Example]], rows: RowsConfig, seed: int, on_note: Note, origin: str
) -> dict[str, list[Example]]:
    """Split the training records, unless the splits are given as files."""
    given = {name: part for name, part in examples.items() if name != "train"}
    train = examples["train"]
    splits: dict[str, list[Example]] = {name: [] for name in SPLITS}
    if rows.split is not None:
        plan = parse_split(rows.split)
        both = sorted(given.keys() & (plan.fractions.keys() | plan.counts.keys()))
        if both:
            raise InputError("--rows.split", f"gives {both[0]}, and so does a file in {origin}", fix="use one of them")
        splits |= split_rows(train, plan, seed, origin)
    elif "validation" in given:
        splits["train"] = train
    elif len(train) < MIN_RECORDS:
        splits["train"] = train
        on_note(f"{origin}: {len(train)} records are too few to hold any out for validation; all are in train")
    else:
        splits |= split_rows(train, parse_split(DEFAULT_SPLIT), seed, origin)
        on_note(f"{origin}: split by content, {DEFAULT_SPLIT} (--rows.split changes it)")
    return splits | given


def _without_empty(part: list[Example], columns: Columns, rows: RowsConfig, counts: Counter[str]) -> list[Example]:
    """Return the examples whose needed texts hold more than white space; count the others, or stop at the first."""
    kept = []
    for example in part:
        empty: str | None = next(
            (r for r in columns.roles if r not in _MAY_BE_EMPTY and not example.fields[r].strip()), None
        )
        if empty is None and columns.messages is not None:
            empty = blank_part(turns_from_json(example.fields["messages"]))
        if empty is None:
            kept.append(example)
            continue
        if rows.on_empty == "error":
            column = getattr(columns, empty) or columns.messages
            what = f"empty {empty} (field '{column}')"
            raise InputError(example.where, what, fix="fill it in, or --rows.on_empty skip")
        counts["empty"] += 1
        counts[f"empty_{empty}"] += 1
    return kept


def count_marks(examples: Iterable[Example]) -> int:
    """Count the examples whose text contains the end-of-text mark, which is read as plain text."""
    return sum(any(END_OF_TEXT in value for value in example.fields.values()) for example in examples)


def digest(splits: Mapping[str, Sequence[Example]]) -> str:
    """Return the SHA-256 (hex) over all fields of all examples, in order, split by split; places do not count."""
    total = hashlib.sha256()
    for name in SPLITS:
        total.update(f"{name} {len(splits.get(name, ()))}\n".encode("ascii"))
        for example in splits.get(name, ()):
            text = json.dumps(example.fields, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
            total.update(text.encode("ascii") + b"\n")
    return total.hexdigest()


def _say(counts: Counter[str], on_note: Note, origin: str) -> None:
    """Say the counts aloud; raise InputError when nothing is left to train on."""
    sizes = ", ".join(f"{name} {counts[name]:,}" for name in SPLITS if counts[name])
    reasons = [f"{counts[f'empty_{r}']:,} empty {r}" for r in _NEEDED if counts[f"empty_{r}"]]
    if counts["unlabelled"]:
        reasons.append(f"{counts['unlabelled']:,} without a class")
    if counts["left_out"]:
        reasons.append(f"{counts['left_out']:,} beyond the counts of --rows.split")
    out = f"; left out: {', '.join(reasons)}" if reasons else ""
    if not sizes:
        fix = "give records with text in them"
        if counts["unlabelled"]:
            fix = "give records with a class; finetwo predict tells the classes of those without"
        raise InputError(origin, f"{counts['read']:,} records read, 0 left{out}", fix=fix)
    on_note(f"{origin}: {counts['read']:,} records read: {sizes}{out}")
    if counts["end_of_text"]:
        on_note(f"{origin}: {counts['end_of_text']:,} records contain {END_OF_TEXT}; it is read as plain text")
