"""Records that stand in training and in the sets that measure it.

It knows contents and places. Its one invariant: two records are the same if all their texts are, and nothing less.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.source import Note
from finetwo.data.split import content_key


class Record(Protocol):
    """A record with its texts by role and the place it came from."""

    @property
    def where(self) -> str:
        """Where it stands."""

    @property
    def fields(self) -> Mapping[str, str]:
        """Its texts by role."""


def find_overlap(splits: Mapping[str, Sequence[Record]], rows: RowsConfig, on_note: Note, origin: str) -> int:
    """Count validation and test examples whose content is in train too; name the first three pairs, or stop."""
    if not splits["validation"] and not splits["test"]:
        return 0
    first: dict[bytes, Record] = {}
    for example in splits["train"]:
        first.setdefault(hashlib.sha256(content_key(example.fields)).digest(), example)
    total = 0
    for name in ("validation", "test"):
        keys = ((hashlib.sha256(content_key(e.fields)).digest(), e) for e in splits[name])
        pairs = [(first[key], e) for key, e in keys if key in first]
        if pairs:
            shown = "; ".join(f"{a.where} = {b.where}" for a, b in pairs[:3])
            tell_overlap(f"{len(pairs):,} of {len(splits[name]):,} {name} records", shown, rows, on_note, origin)
        total += len(pairs)
    return total


def tell_overlap(share: str, pairs: str, rows: RowsConfig, on_note: Note, origin: str) -> None:
    """Say that a `share` of records is in train too, with their first `pairs`; InputError where that was asked for."""
    if rows.on_overlap == "error":
        fix = "remove them from one side, or leave --rows.on_overlap error out"
        raise InputError(origin, f"{share} are in train too: {pairs}", fix=fix)
    on_note(f"warning: {share} are in train too: {pairs}")
