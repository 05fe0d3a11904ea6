"""Shares records out to train, validation and test, by their content or by counts in file order.

It knows nothing of files, tokens or models. Its invariant: by fractions a record's side depends only on its own
content and the seed, so that appending or reordering never moves one and equal records never stand on two sides.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from finetwo.core.errors import InputError
from finetwo.data.source import SPLITS

DEFAULT_SPLIT = "train:0.9,validation:0.1"
"""Used when neither a split nor a validation file is given."""
MIN_RECORDS = 10
"""With fewer records than this, the default split leaves all of them in train."""

_FLAG = "--rows.split"
_EXAMPLE = "write fractions such as train:0.9,validation:0.1 or counts such as train:935,test:110,validation:55"
_ROLES = ("prompt", "input", "completion", "text", "first", "second", "messages")


class _HasFields(Protocol):
    @property
    def fields(self) -> Mapping[str, str]: ...


T = TypeVar("T", bound=_HasFields)


@dataclass(frozen=True, slots=True)
class SplitPlan:
    """What --rows.split asks for: `fractions` by content or `counts` in file order (exactly one is not empty)."""

    fractions: dict[str, float]
    counts: dict[str, int]


def parse_split(text: str) -> SplitPlan:
    """Read 'train:0.9,validation:0.1' (fractions, sum 1) or 'train:935,test:110' (counts, in this order).

    Raises:
        InputError: an unknown or doubled name, no number, fractions mixed with counts, or a sum that is not 1.
    """
    fractions: dict[str, float] = {}
    counts: dict[str, int] = {}
    for part in text.split(","):
        name, colon, number = (piece.strip() for piece in part.partition(":"))
        if name not in SPLITS or not colon:
            raise InputError(_FLAG, "the names are train, validation and test", part.strip() or text, _EXAMPLE)
        if name in fractions or name in counts:
            raise InputError(_FLAG, f"{name} is given twice", text, _EXAMPLE)
        if number.isascii() and number.isdigit() and 1 <= len(number) <= 15 and int(number) > 0:
            counts[name] = int(number)
        else:
            fractions[name] = _fraction(name, number)
    if fractions and counts:
        raise InputError(_FLAG, "fractions and counts are mixed", text, _EXAMPLE)
    if fractions and abs(math.fsum(fractions.values()) - 1.0) > 1e-6:
        raise InputError(_FLAG, f"the fractions sum to {math.fsum(fractions.values()):g}, not 1", text, _EXAMPLE)
    return SplitPlan(fractions, counts)


def _fraction(name: str, number: str) -> float:
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        what = f"{name} is neither a fraction (above 0, at most 1) nor a count (an integer >= 1)"
        raise InputError(_FLAG, what, number, _EXAMPLE)
    return value


def content_key(fields: Mapping[str, str]) -> bytes:
    """Return the canonical JSON of what is read in a record: prompt, input and answer, or its text or pair of texts.

    Columns that play no part (an id, a category) do not count, so that two records that teach the same are equal; nor
    does a class label, so that one text never stands on two sides under two labels.
    """
    taught = {role: fields[role] for role in _ROLES if fields.get(role)}
    return json.dumps(taught, sort_keys=True, ensure_ascii=True, separators=(",", ":")).encode("ascii")


def uniform(fields: Mapping[str, str], seed: int) -> float:
    """Return a number in [0, 1) that depends only on the record's content and the seed (SHA-256, 53 bits)."""
    return position(hashlib.sha256(f"{seed}\n".encode("ascii") + content_key(fields)).digest())


def position(digest: bytes) -> float:
    """Return the number in [0, 1) that the SHA-256 of the seed, a line feed and a content key stands for."""
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def assign(fields: Mapping[str, str], fractions: Mapping[str, float], seed: int) -> str:
    """Return the split of one record; `fractions` are laid on [0, 1) in the order train, validation, test."""
    return side_of(uniform(fields, seed), fractions)


def side_of(at: float, fractions: Mapping[str, float]) -> str:
    """Return the split in whose share of [0, 1) the number `at` lies."""
    top, name = 0.0, ""
    for name in (split for split in SPLITS if split in fractions):
        top += fractions[name]
        if at < top:
            return name
    return name


def split_rows(records: Sequence[T], plan: SplitPlan, seed: int, where: str) -> dict[str, list[T]]:
    """Share out `records`, each with its text in `.fields`; the order within a split is file order.

    Counts take the records from the first on, in the order the counts were written; what is beyond them is in no
    split. `where` names the data in a message.

    Raises:
        InputError: the counts ask for more records than there are.
    """
    shares: dict[str, list[T]] = {name: [] for name in SPLITS}
    if plan.fractions:
        for record in records:
            shares[assign(record.fields, plan.fractions, seed)].append(record)
        return shares
    asked = sum(plan.counts.values())
    if asked > len(records):
        raise InputError(where, f"{_FLAG} asks for {asked:,} records, there are {len(records):,}", fix="ask for fewer")
    start = 0
    for name, count in plan.counts.items():
        shares[name] = list(records[start : start + count])
        start += count
    return shares
