"""Takes the text of every role out of a record whose columns are known.

It knows nothing of files, splits or tokens. Its invariant: a text is used exactly as it stands, and only if it is text;
nothing is ever turned into text by guessing, but for a class, whose number is its name.
"""

from __future__ import annotations

from numbers import Integral, Real

import numpy as np

from finetwo.core.errors import InputError
from finetwo.data.columns import Columns, listed
from finetwo.data.json_stream import kind_of
from finetwo.data.source import Row
from finetwo.text.template import parse_turns, turns_json


def select(row: Row, columns: Columns) -> dict[str, str]:
    """Return the text of every role by role name, then every further text column under its own name.

    An input or a class that is missing, null or empty is ''. A conversation is given as canonical JSON (see
    `Turn`). A further column that bears the name of a role is left out.

    Raises:
        InputError: a needed field is missing or is not text (null, number, list, ...), with the record's place.
    """
    taken: dict[str, str] = {}
    for role, name in columns.roles.items():
        value = row.fields.get(name)
        if role == "label":
            taken[role] = class_name(value, row.where, name)
        elif role == "messages" and name in row.fields:
            taken[role] = turns_json(parse_turns(value, f"{row.where}: the field '{name}'"))
        elif isinstance(value, str):
            taken[role] = value
        elif role == "input" and _is_nothing(value):
            taken[role] = ""
        elif name not in row.fields:
            what = f"the field '{name}' ({role}) is missing; fields found: {listed(row.fields)}"
            raise InputError(row.where, what, fix=f"add the field, or map another: --rows.columns.{role} NAME")
        else:
            kind = kind_of(value)
            got = kind if value is None else f"{kind}: {value!r}"
            fix = (
                "put the value in quotes"
                if isinstance(value, int | float)
                else f"give a text, or map another column: --rows.columns.{role} NAME"
            )
            fix = "fill it in, or leave the record out" if value is None else fix
            raise InputError(row.where, f"the field '{name}' ({role}) must be text", got, fix)
    if columns.kind == "instruct" and columns.messages is None:
        taken.setdefault("input", "")
    used = set(columns.roles.values())
    for name, value in row.fields.items():
        if name not in used and name not in taken and isinstance(value, str):
            taken[name] = value
    return taken


def _is_nothing(value: object) -> bool:
    """Whether a table says by `value` that there is none: null, NaN, or the NA of pandas."""
    return value is None or type(value).__name__ == "NAType" or (isinstance(value, Real) and value != value)


def class_name(value: object, where: str, column: str = "label") -> str:
    """Return the name of a class: a text without blanks at its ends, or a whole number or truth value as text.

    '' stands for no class: null, a NaN of a table, or an empty text. InputError for anything else.
    """
    if isinstance(value, str):
        return value.strip()
    if _is_nothing(value):
        return ""
    if isinstance(value, bool | np.bool_):
        return str(bool(value))
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real) and float(value).is_integer():
        return str(int(float(value)))
    fix = "give one class a record, as a text or a whole number"
    raise InputError(where, f"the field '{column}' (label) is no class", f"{kind_of(value)}: {value!r}", fix)
