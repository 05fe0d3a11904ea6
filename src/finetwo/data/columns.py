"""Tells which column of a record is the prompt, the input, the answer or the text, and takes them out.

It knows nothing of files, splits or templates. Its invariant: a value is used exactly as it stands, and only if it is
text; nothing is ever turned into text by guessing.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from finetwo.core.config import ColumnsConfig
from finetwo.core.errors import InputError
from finetwo.data.json_stream import kind_of
from finetwo.data.source import Row

Role = Literal["prompt", "input", "completion", "text"]
ROLES: tuple[Role, ...] = ("prompt", "input", "completion", "text")
"""The parts a column can play."""


@dataclass(frozen=True, slots=True)
class _Layout:
    name: str
    prompt: str
    input: str | None
    completion: str


_LAYOUTS = (
    _Layout("Alpaca", "instruction", "input", "output"),
    _Layout("Dolly", "instruction", "context", "response"),
    _Layout("prompt/completion", "prompt", None, "completion"),
    _Layout("prompt/response", "prompt", None, "response"),
    _Layout("instruction/completion", "instruction", "input", "completion"),
    _Layout("question/answer", "question", "context", "answer"),
)
_COMPLETIONS = ("output", "response", "completion", "answer")
_PROMPTS = ("instruction", "prompt", "question")
_FLAGS = "--rows.columns.prompt NAME --rows.columns.completion NAME (or --rows.columns.text NAME)"


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column plays which part; `layout` names a known arrangement, or is 'mapped'."""

    prompt: str | None = None
    input: str | None = None
    completion: str | None = None
    text: str | None = None
    layout: str = "mapped"

    @property
    def kind(self) -> Literal["instruct", "text"]:
        """'instruct' for records with an answer, 'text' for plain text."""
        return "text" if self.text is not None else "instruct"

    @property
    def roles(self) -> dict[Role, str]:
        """The parts that are played, with their column."""
        return {role: name for role in ROLES if (name := getattr(self, role)) is not None}

    def describe(self) -> str:
        """Return the choice as one line to be said aloud."""
        parts = ", ".join(f"{role} = '{name}'" for role, name in self.roles.items())
        return f"columns: {parts} ({self.layout} layout)" if self.layout != "mapped" else f"columns: {parts} (as given)"


def _listed(names: Iterable[str]) -> str:
    found = [f"'{name}'" for name in names]
    return ", ".join(found[:12]) + (f" and {len(found) - 12} more" if len(found) > 12 else "") or "none"


def detect_columns(names: Sequence[str], wanted: ColumnsConfig, where: str) -> Columns:
    """Return the columns to use among `names`; what `wanted` maps wins, the rest is told by known names.

    Raises:
        InputError: a mapped column is not there, nothing is known, or two answers are possible; `where` names the
            place and the message lists the fields found.
    """
    for role in ROLES:
        name = getattr(wanted, role)
        if name is not None and name not in names:
            fix = f"use a field that is there: {_listed(names)}"
            raise InputError(where, f"--rows.columns.{role} names a field that the records lack", name, fix)
    if wanted.text is not None:
        if wanted.prompt or wanted.completion or wanted.input:
            raise InputError("--rows.columns.text", "excludes prompt, input and completion", wanted.text, "give one")
        return Columns(text=wanted.text)
    if wanted.prompt is not None or wanted.completion is not None:
        return _fill(names, wanted, where)
    return _known(names, wanted, where)


def _known(names: Sequence[str], wanted: ColumnsConfig, where: str) -> Columns:
    """Detect a known layout, letter case aside."""
    actual = {name.strip().lower(): name for name in reversed(names)}
    fits = [layout for layout in _LAYOUTS if layout.prompt in actual and layout.completion in actual]
    if len(fits) > 1:
        both = " or ".join(f"'{actual[layout.prompt]}' -> '{actual[layout.completion]}'" for layout in fits[:2])
        raise InputError(where, f"several columns could be prompt and answer: {both}", fix=_FLAGS)
    if fits:
        chosen = fits[0]
        return Columns(
            prompt=actual[chosen.prompt],
            input=wanted.input or actual.get(chosen.input or ""),
            completion=actual[chosen.completion],
            layout=chosen.name,
        )
    if "text" in actual and wanted.input is None:
        return Columns(text=actual["text"], layout="text")
    what = f"no known columns among the fields found: {_listed(names)}"
    raise InputError(where, what, fix=f"say which is which: {_FLAGS}")


def _fill(names: Sequence[str], wanted: ColumnsConfig, where: str) -> Columns:
    """Complete a mapping that gives the prompt or the answer, by the known names that are left."""
    chosen = {"prompt": wanted.prompt, "completion": wanted.completion}
    for role, known in (("prompt", _PROMPTS), ("completion", _COMPLETIONS)):
        if chosen[role] is None:
            left = [n for n in names if n.strip().lower() in known and n not in (wanted.prompt, wanted.completion)]
            if len(left) != 1:
                what = f"--rows.columns.{role} is missing; fields found: {_listed(names)}"
                raise InputError(where, what, fix=f"--rows.columns.{role} NAME")
            chosen[role] = left[0]
    return Columns(prompt=chosen["prompt"], input=wanted.input, completion=chosen["completion"])


def adopt_input(columns: Columns, rows: Iterable[Row]) -> Columns:
    """Return `columns` with its layout's optional input column, if the first record lacked it but another has it."""
    name = next((layout.input for layout in _LAYOUTS if layout.name == columns.layout), None)
    if columns.input is None and name is not None:
        for row in rows:
            found = next((field for field in row.fields if field.strip().lower() == name), None)
            if found is not None:
                return replace(columns, input=found)
    return columns


def select(row: Row, columns: Columns) -> dict[str, str]:
    """Return the text of every role by role name, then every further text column under its own name.

    An input that is missing, null or empty is ''. A further column that bears the name of a role is left out.

    Raises:
        InputError: a needed field is missing or is not text (null, number, list, ...), with the record's place.
    """
    taken: dict[str, str] = {}
    for role, name in columns.roles.items():
        value = row.fields.get(name)
        if isinstance(value, str):
            taken[role] = value
        elif role == "input" and (value is None or value != value):
            taken[role] = ""
        elif name not in row.fields:
            what = f"the field '{name}' ({role}) is missing; fields found: {_listed(row.fields)}"
            raise InputError(row.where, what, fix=f"add the field, or map another: --rows.columns.{role} NAME")
        else:
            kind = kind_of(value)
            got = kind if value is None else f"{kind}: {value!r}"
            raise InputError(row.where, f"the field '{name}' ({role}) must be text", got, "put the value in quotes")
    if columns.kind == "instruct":
        taken.setdefault("input", "")
    used = set(columns.roles.values())
    for name, value in row.fields.items():
        if name not in used and name not in taken and isinstance(value, str):
            taken[name] = value
    return taken
