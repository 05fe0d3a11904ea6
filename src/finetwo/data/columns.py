"""Tells which column of a record is the prompt, the answer, the text, the pair or the label.

It knows nothing of files, splits or tokens. Its invariant: what it cannot tell for certain it asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finetwo.core.config import ColumnsConfig
from finetwo.core.errors import InputError
from finetwo.data.known import (
    COMPLETIONS,
    CONVERSATIONS,
    INDEX,
    LABELS,
    LAYOUTS,
    MORE_TEXTS,
    PAIRS,
    PROMPTS,
    SURE_LABELS,
    TEXTS,
    USUAL_LABELS,
)
from finetwo.data.source import Row

Kind = Literal["instruct", "text", "classify", "entail"]
"""What records are good for: prompts with answers (or conversations), plain text, or texts or pairs with a class."""
Role = Literal["prompt", "input", "completion", "text", "first", "second", "label", "messages"]
ROLES: tuple[Role, ...] = ("prompt", "input", "completion", "text", "first", "second", "label", "messages")
"""The parts a column can play."""
NEEDED: dict[Kind, tuple[Role, ...]] = {
    "instruct": ("prompt", "completion"),
    "text": ("text",),
    "classify": ("text", "label"),
    "entail": ("first", "second", "label"),
}
"""The parts that a kind of data must have; a conversation needs `messages` alone."""


_WORDS: dict[Kind, str] = {
    "instruct": "prompts and answers",
    "text": "plain text",
    "classify": "texts with a class",
    "entail": "pairs of texts with a class",
}
_FLAGS: dict[Kind | None, str] = {
    None: "--rows.columns.prompt NAME --rows.columns.completion NAME (or --rows.columns.text NAME, and for classes "
    "--rows.columns.label NAME)",
    "instruct": "--rows.columns.prompt NAME --rows.columns.completion NAME (or --rows.columns.messages NAME)",
    "text": "--rows.columns.text NAME",
    "classify": "--rows.columns.text NAME --rows.columns.label NAME",
    "entail": "--rows.columns.first NAME --rows.columns.second NAME --rows.columns.label NAME",
}


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column plays which part; `layout` names a known arrangement, or is 'mapped'."""

    prompt: str | None = None
    input: str | None = None
    completion: str | None = None
    text: str | None = None
    first: str | None = None
    second: str | None = None
    label: str | None = None
    messages: str | None = None
    layout: str = "mapped"

    @property
    def kind(self) -> Kind:
        """What records with these columns are good for."""
        if self.first is not None:
            return "entail"
        if self.text is not None:
            return "text" if self.label is None else "classify"
        return "instruct"

    @property
    def roles(self) -> dict[Role, str]:
        """The parts that are played, with their column."""
        return {role: name for role in ROLES if (name := getattr(self, role)) is not None}

    def describe(self) -> str:
        """Return the choice as one line to be said aloud."""
        parts = ", ".join(f"{role} = '{name}'" for role, name in self.roles.items())
        return f"columns: {parts} ({self.layout} layout)" if self.layout != "mapped" else f"columns: {parts} (as given)"


def listed(names: Iterable[str]) -> str:
    """The first dozen names in quotes, and how many more there are."""
    found = [f"'{name}'" for name in names]
    return ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "") or "none"


def detect_columns(
    names: Sequence[str], wanted: ColumnsConfig, where: str, kind: Kind | None = None, *, labelled: bool = True
) -> Columns:
    """Return the columns to use among `names`; what `wanted` maps wins, the rest is told by known names.

    `kind` is what the records are wanted for; without it, it is told by the columns as well. Without `labelled` the
    column of the class may be missing (texts to be classified).

    Raises:
        InputError: a mapped column is not there, nothing is known, or two answers are possible; `where` names the
            place and the message lists the fields found.
    """
    given: dict[str, str] = {role: name for role in ROLES if (name := getattr(wanted, role)) is not None}
    for role, name in given.items():
        if name not in names:
            fix = f"use a field that is there: {listed(names)}"
            raise InputError(where, f"--rows.columns.{role} names a field that the records lack", name, fix)
    asked = kind or _kind_of(given)
    if asked is not None:
        known = (*NEEDED[asked], *(("input", "messages") if asked == "instruct" else ()))
        foreign = next((role for role in given if role not in known), None)
        if foreign is not None:
            what = f"plays no part in data for {_WORDS[asked]}"
            raise InputError(f"--rows.columns.{foreign}", what, given[foreign], f"give {_FLAGS[asked]}")
    found = _find(names, wanted, given, asked, where)
    needed = NEEDED[asked or found.kind] if not found.messages else ()
    missing = [role for role in needed if getattr(found, role) is None and (labelled or role != "label")]
    if missing:
        what = f"no column for {', '.join(missing)} among the fields found: {listed(names)}"
        flags = _FLAGS[asked] if labelled else " ".join(f"--rows.columns.{role} NAME" for role in missing)
        raise InputError(where, what, fix=f"say which is which: {flags}")
    return found


def _kind_of(given: Mapping[str, str]) -> Kind | None:
    """What the mapped columns alone say of the kind."""
    if "first" in given or "second" in given:
        return "entail"
    if "label" in given:
        return None if not given.keys() - {"label"} else "classify"
    if "text" in given:
        return "text"
    return "instruct" if given else None


def _find(
    names: Sequence[str], wanted: ColumnsConfig, given: Mapping[str, str], kind: Kind | None, where: str
) -> Columns:
    """The columns of the wanted kind, or of the first kind that fits."""
    actual = {name.strip().lower(): name for name in reversed(names)}
    if kind == "entail":
        return _pair(names, actual, given)
    if kind == "classify":
        return _classes(names, actual, given)
    if kind == "text":
        text = given.get("text") or actual.get("text") or (names[0] if len(names) == 1 else None)
        if text is not None:
            return Columns(text=text, layout="mapped" if "text" in given else "text")
    if kind != "text":
        if "prompt" in given or "completion" in given:
            return _fill(names, wanted, where)
        known = _known(actual, wanted, given, where)
        if known is not None:
            return known
    if kind is None:
        labelled = _unasked(names, actual, given)
        if labelled is not None:
            return labelled
        if "text" in actual:
            return Columns(text=actual["text"], layout="text")
    what = f"no known columns among the fields found: {listed(names)}"
    fix = f"say which is which: {_FLAGS[kind]}; --rows.names A,B where the file has no header line"
    raise InputError(where, what, fix=_if_asked(names, actual, given) + fix if kind is None else fix)


def _if_asked(names: Sequence[str], actual: Mapping[str, str], given: Mapping[str, str]) -> str:
    """The task that would read these columns if it were asked for, as the first half of a remedy; '' if none would."""
    if _label(actual, given) is None:
        return ""
    pair = _pair(names, actual, given, known=True)
    found = pair if pair.second is not None else _classes(names, actual, given)
    if not found.roles.keys() >= set(NEEDED[found.kind]):
        return ""
    parts = ", ".join(f"{role} = '{name}'" for role, name in found.roles.items())
    return f"--task {found.kind} would take {parts}; or "


def _known(actual: Mapping[str, str], wanted: ColumnsConfig, given: Mapping[str, str], where: str) -> Columns | None:
    """Detect a known layout of prompts and answers, or a conversation, letter case aside."""
    talk = given.get("messages") or next((actual[name] for name in CONVERSATIONS if name in actual), None)
    if "messages" in given:
        return Columns(messages=talk)
    fits = [layout for layout in LAYOUTS if layout.prompt in actual and layout.completion in actual]
    if len(fits) > 1 or (fits and talk):
        both = [f"'{actual[layout.prompt]}' -> '{actual[layout.completion]}'" for layout in fits[:2]]
        both += [f"the conversation '{talk}'"] if talk else []
        what = f"several columns could be prompt and answer: {' or '.join(both)}"
        raise InputError(where, what, fix=_FLAGS["instruct"] if talk else _FLAGS[None])
    if talk:
        return Columns(messages=talk, layout="conversation")
    if not fits:
        return None
    chosen = fits[0]
    return Columns(
        prompt=actual[chosen.prompt],
        input=wanted.input or actual.get(chosen.input or ""),
        completion=actual[chosen.completion],
        layout=chosen.name,
    )


def _unasked(names: Sequence[str], actual: Mapping[str, str], given: Mapping[str, str]) -> Columns | None:
    """The texts and their class, where names alone leave no doubt that this is what the records are for."""
    sure = any(name in actual for name in SURE_LABELS) or "label" in given
    pair = _pair(names, actual, given, known=True)
    if sure and pair.second is not None:
        return pair
    label, texts = _label(actual, given), [actual[name] for name in TEXTS if name in actual]
    others = _others(names, label)
    if sure and (len(others) == 1 or "text" in actual or len([n for n in texts if n.lower() != "message"]) == 1):
        return _classes(names, actual, given)
    if label is not None and label.strip().lower() in USUAL_LABELS and len(others) == 1 and others[0] in texts:
        return _classes(names, actual, given)
    return None


def _others(names: Sequence[str], *taken: str | None) -> list[str]:
    """The columns beside those `taken` that do more than number the records."""
    return [name for name in names if name not in taken and name.strip().lower() not in INDEX]


def _label(actual: Mapping[str, str], given: Mapping[str, str]) -> str | None:
    used = set(given.values())
    names = (actual[name] for name in LABELS if name in actual and actual[name] not in used)
    return given.get("label") or next(names, None)


def _classes(names: Sequence[str], actual: Mapping[str, str], given: Mapping[str, str]) -> Columns:
    """The text and its class; a text column without a known name is taken where it is the only other column."""
    label = _label(actual, given)
    known = (actual[n] for n in (*TEXTS, *MORE_TEXTS) if n in actual and actual[n] != label)
    text = given.get("text") or next(known, None)
    if text is None and len(others := _others(names, label)) == 1:
        text = others[0]
    if text is not None and label is None and len(others := _others(names, text)) == 1:
        label = others[0]
    return Columns(text=text, label=label, layout="mapped" if {"text", "label"} <= given.keys() else "classes")


def _pair(names: Sequence[str], actual: Mapping[str, str], given: Mapping[str, str], *, known: bool = False) -> Columns:
    """The two texts of a pair and their class; without known names (and `known`) the only other two columns."""
    label = _label(actual, given)
    fits = next(([actual[a], actual[b]] for a, b in PAIRS if a in actual and b in actual), [])
    mapped = [given[role] for role in ("first", "second") if role in given]
    if not fits and not known:
        others = _others(names, label, *mapped)
        fits = [given.get(role) or others.pop(0) for role in ("first", "second")] if len(others + mapped) == 2 else []
    first, second = fits or (None, None)
    layout = "mapped" if len(mapped) == 2 else "pair"
    return Columns(first=given.get("first") or first, second=given.get("second") or second, label=label, layout=layout)


def _fill(names: Sequence[str], wanted: ColumnsConfig, where: str) -> Columns:
    """Complete a mapping that gives the prompt or the answer, by the known names that are left."""
    chosen = {"prompt": wanted.prompt, "completion": wanted.completion}
    for role, known in (("prompt", PROMPTS), ("completion", COMPLETIONS)):
        if chosen[role] is None:
            left = [n for n in names if n.strip().lower() in known and n not in (wanted.prompt, wanted.completion)]
            if len(left) != 1:
                what = f"--rows.columns.{role} is missing; fields found: {listed(names)}"
                raise InputError(where, what, fix=f"--rows.columns.{role} NAME")
            chosen[role] = left[0]
    return Columns(prompt=chosen["prompt"], input=wanted.input, completion=chosen["completion"])


def adopt_input(columns: Columns, rows: Iterable[Row]) -> Columns:
    """Return `columns` with its layout's optional input column, if the first record lacked it but another has it."""
    name = next((layout.input for layout in LAYOUTS if layout.name == columns.layout), None)
    if columns.input is None and name is not None:
        for row in rows:
            found = next((field for field in row.fields if field.strip().lower() == name), None)
            if found is not None:
                return replace(columns, input=found)
    return columns
