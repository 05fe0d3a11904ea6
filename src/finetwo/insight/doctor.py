"""The data doctor for records: duplicates, overlap, conflicts, empty answers, and damage, each with file and record.

It knows records and no tokens. Its one invariant: everything is counted over all records, and nothing is reported that
a look at the named records does not confirm.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice, pairwise
from pathlib import Path

from finetwo.core.config import RowsConfig
from finetwo.core.errors import shown
from finetwo.data.examples import Example, Loaded
from finetwo.data.selecting import select
from finetwo.data.source import SPLITS, find_files, place, read_all
from finetwo.data.split import content_key, parse_split
from finetwo.insight.findings import Finding, Findings, Spot, spot
from finetwo.insight.marks import marks, patterns
from finetwo.insight.shingles import Near, UInt64, resolve
from finetwo.text.template import Template, blank_part, turns_from_json

_ROLES = ("prompt", "input", "completion", "text", "first", "second", "messages")
_RARE = 10
_CHEAP = 200_000
"""Up to so many records are looked over by `train` of itself."""
_SAID = ("overlap",)
"""Findings that reading the data says of its own accord."""


@dataclass
class Diagnosis:
    """What the doctor has to say."""

    findings: list[Finding] = field(default_factory=list)
    labels: dict[str, dict[str, int]] = field(default_factory=dict)
    """Records of each class by split."""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Record:
    """A record as the doctor looks at it."""

    side: int
    example: Example

    @property
    def where(self) -> str:
        return self.example.where

    @property
    def texts(self) -> list[str]:
        """All its texts, as they stand; of a conversation each turn."""
        fields = self.example.fields
        if "messages" in fields:
            return [turn.content for turn in turns_from_json(fields["messages"])]
        return [fields[role] for role in _ROLES if fields.get(role)]

    @property
    def answers(self) -> list[tuple[str, str]]:
        """Each answer with the text it answers."""
        fields = self.example.fields
        if "messages" in fields:
            turns = turns_from_json(fields["messages"])
            pairs = pairwise(turns)
            return [(b.content, a.content) for a, b in pairs if b.role == "assistant"]
        return [(fields["completion"], fields["prompt"])] if "completion" in fields else []

    @property
    def key(self) -> int:
        """64 bits of the hash of what is read in it, its class aside."""
        return int.from_bytes(hashlib.sha256(content_key(self.example.fields)).digest()[:8], "big")


def examine(loaded: Loaded, template: Template | None = None, *, near: bool = True) -> Diagnosis:
    """Look at every record of every split; without `near` the search for near duplicates is left out.

    EnvironmentFault where that search is wanted and its package is not installed.
    """
    found, diagnosis = Findings(), Diagnosis()
    records = [_Record(s, e) for s, name in enumerate(SPLITS) for e in loaded.splits.get(name, ())]
    keys = [record.key for record in records]
    _repeats(records, keys, found)
    if near:
        _near(records, keys, found, diagnosis)
    if loaded.labels:
        _labels(records, keys, loaded.labels, found, diagnosis)
    wanted = patterns(template)
    for record in records:
        _answers(record, found)
        for kind, text, start, end in marks(record.texts, wanted):
            found.add(kind, spot(record.where, text, start, end))
    diagnosis.findings = found.list()
    return diagnosis


def cheap_findings(loaded: Loaded, template: Template | None, lines: int = 5) -> list[str]:
    """Return a few lines about faults in records that training has just read, or none: all but near duplicates.

    Nothing that goes wrong in here stops a run: it is said instead.
    """
    if sum(loaded.counts.get(name, 0) for name in SPLITS) > _CHEAP:
        return []
    try:
        found = [f for f in examine(loaded, template, near=False).findings if f.kind not in _SAID]
    except Exception as error:
        return [f"data: could not be looked over: {type(error).__name__}: {shown(str(error))}"]
    found.sort(key=lambda f: not f.strict)
    told = [f"data: {f.line(1)}" for f in found[:lines]]
    more = f"{len(found) - lines} more kinds of findings, and all " if len(found) > lines else "more "
    return [*told, f"data: {more}places: finetwo plan, with the same words"] if told else []


def with_left_out(diagnosis: Diagnosis, path: Path, rows: RowsConfig, loaded: Loaded) -> Diagnosis:
    """Add the records that were left out as empty or without a class, by reading the files again."""
    found = Findings()
    for kind, where in left_out(path, rows, loaded):
        found.add(kind, spot(where, ""))
    diagnosis.findings += found.list()
    return diagnosis


def left_out(path: Path, rows: RowsConfig, loaded: Loaded) -> Iterator[tuple[str, str]]:
    """Yield kind and place of each record that has nothing in a needed part, and of each that has no class."""
    columns = loaded.columns
    needed = [role for role in columns.roles if role not in ("input", "label")]
    there = {(e.file, e.line, e.number) for part in loaded.splits.values() for e in part}
    asked = sum(parse_split(rows.split).counts.values()) if rows.split is not None else 0
    for name, paths in find_files(path).items():
        for row in islice(read_all(paths, rows), asked if asked and name in ("all", "train") else None):
            if (row.file, row.line, row.number) in there:
                continue
            fields = select(row, columns)
            empty: str | None = next((role for role in needed if not fields[role].strip()), None)
            if empty is None and columns.messages is not None:
                empty = blank_part(turns_from_json(fields["messages"]))
            kinds = {"completion": "empty answer", "prompt": "empty prompt", None: "no class"}
            yield kinds.get(empty, "empty text"), place(row.file, row.line, row.number)


def _repeats(records: Sequence[_Record], keys: Sequence[int], found: Findings) -> None:
    """Records that say the same as an earlier one: in their split (with the same class), or in another."""
    first: dict[int, int] = {}
    inside: dict[tuple[int, int, str], int] = {}
    for i, (record, key) in enumerate(zip(records, keys, strict=True)):
        label = record.example.fields.get("label", "")
        earlier = inside.setdefault((record.side, key, label), i)
        if earlier != i:
            found.add("duplicate", _pair(record, records[earlier], "="))
        other = first.setdefault(key, i)
        if records[other].side != record.side:
            found.add("overlap", _pair(record, records[other], f"= {SPLITS[records[other].side]}"))


def _pair(record: _Record, other: _Record, sign: str) -> Spot:
    text = " | ".join(record.texts)
    return spot(f"{record.where} {sign} {other.where}", text)


def _near(records: Sequence[_Record], keys: Sequence[int], found: Findings, diagnosis: Diagnosis) -> None:
    index = Near()
    seen: set[tuple[int, int]] = set()
    for i, record in enumerate(records):
        if (record.side, keys[i]) not in seen:  # a repetition counts as such, not once more as nearly one
            seen.add((record.side, keys[i]))
            index.add(i, [_joined(record)])

    @lru_cache(maxsize=8192)
    def hashes(i: int) -> UInt64:
        return index.shingler.whole([_joined(records[i])])

    within, across = resolve(index.pairs(), lambda i: records[i].side, hashes, keys.__getitem__)
    for i in sorted(within):
        found.add("near duplicate", _pair(records[i], records[within[i]], "~"))
    for i in sorted(across):
        found.add("near overlap", _pair(records[i], records[across[i]], f"~ {SPLITS[records[across[i]].side]}"))
    if index.capped:
        diagnosis.notes.append("near duplicates: some texts resemble so many others that only a part was compared")


def _joined(record: _Record) -> str:
    return "\n".join(record.texts)


def _labels(
    records: Sequence[_Record], keys: Sequence[int], labels: Sequence[str], found: Findings, diagnosis: Diagnosis
) -> None:
    """Balance of the classes by split, and texts that bear several."""
    counts: dict[str, Counter[str]] = {}
    first: dict[int, int] = {}
    conflicts: dict[int, tuple[int, int]] = {}
    for i, record in enumerate(records):
        label = record.example.fields["label"]
        counts.setdefault(SPLITS[record.side], Counter())[label] += 1
        earlier = first.setdefault(keys[i], i)
        if records[earlier].example.fields["label"] != label:
            conflicts.setdefault(keys[i], (earlier, i))
    for a, b in conflicts.values():
        one, two = (f"{records[i].where} ({records[i].example.fields['label']})" for i in (a, b))
        found.add("label conflict", spot(f"{one} / {two}", _joined(records[a])))
    diagnosis.labels = {name: {label: part[label] for label in labels} for name, part in counts.items()}
    train = diagnosis.labels.get("train", {})
    top = max(train.values(), default=0)
    for label, count in train.items():
        if count * _RARE < top:
            found.add("class imbalance", spot(f"train: class {label}", f"{count:,} records, the largest has {top:,}"))


def _answers(record: _Record, found: Findings) -> None:
    """Answers of one word, and answers that only repeat what was asked; each record once."""
    short = next((a for a, _ in record.answers if len(a.split()) == 1), None)
    if short is not None:
        found.add("one-word answer", spot(record.where, short))
    same = next((a for a, prompt in record.answers if a.strip() == prompt.strip()), None)
    if same is not None:
        found.add("answer equals prompt", spot(record.where, same))


def counts_of(loaded: Mapping[str, int]) -> dict[str, int]:
    """The counts of reading and encoding that are not zero, in words a person knows."""
    words = {
        "read": "read",
        "empty": "left out, empty",
        "unlabelled": "left out, without a class",
        "left_out": "left out, beyond the counts of --rows.split",
        "too_long": "left out, too long",
        "truncated": "cut at max_length",
        "end_of_text": "with the end-of-text mark in their text",
        **{name: name for name in SPLITS},
    }
    return {text: loaded[name] for name, text in words.items() if loaded.get(name)}
