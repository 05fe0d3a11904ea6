"""The classes of a data set: their names and order, and which records have none.

It knows records and no network. Its one invariant: every class of every record that is kept is in the list, and a
record without a class is counted, never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeVar

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError, shown
from finetwo.data.source import Note

MAX_CLASSES = 10_000
_WITHHELD = ("-1", "-")
"""What GLUE and its kin write where the class is not told, and SNLI where its judges disagreed."""
_RARE = 0.05
"""Up to this share of the training records, such a mark is taken for a class that is not told."""


class _Labelled(Protocol):
    @property
    def fields(self) -> dict[str, str]: ...

    @property
    def where(self) -> str: ...


T = TypeVar("T", bound=_Labelled)


def given_labels(rows: RowsConfig) -> tuple[str, ...]:
    """Return the names in --rows.labels, () without; InputError for an empty, doubled or only name."""
    if rows.labels is None:
        return ()
    names = tuple(name.strip() for name in rows.labels.split(","))
    if len(set(names)) != len(names) or not all(names) or len(names) < 2:
        fix = "give two or more different names, separated by commas"
        raise InputError("--rows.labels", "must be different names", rows.labels, fix)
    return names


def without_unlabelled(
    splits: Mapping[str, Sequence[T]], labels: Sequence[str], on_empty: str, on_note: Note
) -> tuple[dict[str, list[T]], int]:
    """Return the records that have a class, and how many have none; with `on_empty` error, stop at the first."""
    train = Counter(e.fields["label"] for e in splits.get("train", ()))
    nothing = {"", *_WITHHELD} - set(labels)
    for mark in _WITHHELD if not labels else ():
        if train[mark] > _RARE * train.total():
            on_note(f"labels: {mark} is taken for a class, as {train[mark]:,} of {train.total():,} records bear it")
            nothing.remove(mark)
    marked = sum(count for mark, count in train.items() if mark and mark in nothing)
    if marked:
        what = f"labels: {marked:,} training records marked {' or '.join(_WITHHELD)} are taken to have no class"
        on_note(f"{what} (--rows.labels with it among the names keeps them)")
    kept: dict[str, list[T]] = {}
    dropped = 0
    for name, part in splits.items():
        kept[name] = []
        for example in part:
            if example.fields["label"] not in nothing:
                kept[name].append(example)
                continue
            if on_empty == "error":
                fix = "fill it in, or --rows.on_empty skip"
                raise InputError(example.where, "no class (label)", example.fields["label"] or None, fix)
            dropped += 1
    return kept, dropped


def name_classes(splits: Mapping[str, Sequence[_Labelled]], given: Sequence[str]) -> None:
    """Put the names in --rows.labels in the place of the whole numbers that stand for them, in the records themselves.

    Raises:
        InputError: a record's class is neither one of the names nor the place of one.
    """
    for name, part in splits.items():
        for example in part:
            label = example.fields["label"]
            place = given.index(label) if label in given else _place(label, given)
            if place is None:
                raise _unknown(label, given, example.where, is_train=name == "train")
            example.fields["label"] = given[place]


def find_labels(
    splits: Mapping[str, Sequence[_Labelled]],
    given: Sequence[str],
    origin: str,
    own: Sequence[str] = ("train",),
    *,
    of_model: bool = False,
) -> tuple[str, ...]:
    """Return the names of the classes: as given, else those of the splits `own`, numbers by size and texts by letter.

    `of_model`: the given ones are those of a model that is there, which no option can change.

    Raises:
        InputError: fewer than two classes, too many, or a record whose class is not among them.
    """
    found = {e.fields["label"] for name in own for e in splits.get(name, ())}
    labels = tuple(given) or _ordered(found)
    if not found and not given:
        fix = "is the label column the right one? name it: --rows.columns.label NAME"
        raise InputError(origin, "no record has a class", None, fix)
    if len(labels) < 2:
        got = ", ".join(found)
        raise InputError(origin, "one class only: there is nothing to tell apart", got, "give records of another class")
    if len(labels) > MAX_CLASSES:
        fix = "is the label column the right one? name it: --rows.columns.label NAME"
        raise InputError(origin, f"more than {MAX_CLASSES:,} classes", f"{len(labels):,}", fix)
    known = set(labels)
    for name, part in splits.items():
        for example in part:
            label = example.fields["label"]
            if label not in known:
                fix = "correct it, or leave such records out: the model knows no other classes" if of_model else ""
                raise _unknown(label, labels, example.where, fix, is_train=name == "train")
    return labels


def label_index(label: str, labels: Sequence[str], where: str) -> int:
    """Return the place of `label` among the class names; InputError at `where` when it is none of them."""
    if label not in labels:
        raise _unknown(label, labels, where)
    return labels.index(label)


def _place(label: str, labels: Sequence[str]) -> int | None:
    """The place that a whole number means where the names are no numbers themselves, if there is such a place."""
    number = re.fullmatch(r"(\d{1,9})(\.0+)?", label)
    if number is None or int(number[1]) >= len(labels) or all(re.fullmatch(r"-?\d+", name) for name in labels):
        return None
    return int(number[1])


def _unknown(label: str, labels: Sequence[str], where: str, fix: str = "", *, is_train: bool = False) -> InputError:
    names = ", ".join(shown(name, 40) for name in labels[:12]) + (" ..." if len(labels) > 12 else "")
    if not fix:
        fix = (
            "correct the record, or list it in --rows.labels"
            if is_train
            else "correct it, or add such records to train"
        )
    if _place(label, labels) is not None:
        fix = "name the numbers, in their own order: --rows.labels NAME0,NAME1,..."
    return InputError(where, f"the class is not among {names}", label, fix)


def _ordered(labels: set[str]) -> tuple[str, ...]:
    if all(re.fullmatch(r"-?\d{1,18}", name) for name in labels):
        return tuple(sorted(labels, key=int))
    return tuple(sorted(labels))


def class_weights(setting: str, labels: Sequence[str], counts: Mapping[str, int]) -> list[float] | None:
    """Return the weight of each class: None for 'none', n / (classes * n_class) for 'balanced', or as listed.

    Raises:
        InputError: an unknown class, a weight that is no number above 0, or no record of a class to balance.
    """
    text = setting.strip()
    if text == "none":
        return None
    if text == "balanced":
        empty = next((name for name in labels if not counts.get(name)), None)
        if empty is not None:
            raise InputError("--class_weights", "train has no record of the class", empty, "list weights instead")
        total = sum(counts[name] for name in labels)
        return [total / (len(labels) * counts[name]) for name in labels]
    weights = dict.fromkeys(labels, 1.0)
    for part in text.split(","):
        name, colon, number = (piece.strip() for piece in part.rpartition(":"))
        try:
            value = float(number)
        except ValueError:
            value = -1.0
        if not colon or name not in weights or not 0 < value < 1e6:
            fix = f"write none, balanced, or name:weight with names of {', '.join(labels[:6])}"
            raise InputError("--class_weights", "not a class and a weight above 0", part.strip(), fix)
        weights[name] = value
    return [weights[name] for name in labels]
