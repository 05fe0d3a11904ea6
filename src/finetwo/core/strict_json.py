"""Strict JSON: what the standard library takes beyond the standard is refused, with the place.

It knows text, and must not know files. Its one invariant: a value it returns has one meaning: no duplicate keys,
no NaN or infinity, no nesting beyond the limit.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

from finetwo.core.errors import InputError, shown

MAX_DEPTH = 64
"""Levels of nesting accepted unless told otherwise."""


class _Refused(Exception):
    """A JSON document that `json` would take and we do not; carries the reason."""


def _refuse(literal: str) -> NoReturn:
    raise _Refused(f"{literal} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"duplicate key {shown(json.dumps(key), 60)}")
            seen.add(key)
    return found


def _finite(literal: str) -> float:
    value = float(literal)
    if value in (float("inf"), float("-inf")):
        raise _Refused(f"number {shown(literal, 30)} is too large")
    return value


_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]:,]|[^\s{}\[\]:,"]+', re.DOTALL)


def _offender(text: str) -> int:
    """Return the offset of the first duplicate key or not-a-number in `text` (0 where there is none)."""
    stack: list[set[str]] = []
    before: tuple[int, str] = (0, "")
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == ":" and stack:
            key = json.loads(before[1], strict=False)
            if key in stack[-1]:
                return before[0]
            stack[-1].add(key)
        elif token in "{[":
            stack.append(set())
        elif token in "}]" and stack:
            stack.pop()
        elif token[0] in "-NI0123456789" and (token.lstrip("-") in ("NaN", "Infinity") or _is_infinite(token)):
            return match.start()
        before = (match.start(), token)
    return 0


def _is_infinite(token: str) -> bool:
    try:
        return float(token) in (float("inf"), float("-inf")) and len(token) < 5000
    except ValueError:
        return False


def _place(text: str, offset: int) -> str:
    line = text.count("\n", 0, offset) + 1
    return f"{line}:{offset - (text.rfind(chr(10), 0, offset) + 1) + 1}"


def _too_deep(value: object, limit: int) -> bool:
    level: list[object] = [value]
    for _ in range(limit):
        inside: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inside.extend(v for v in item.values() if isinstance(v, (dict, list)))
            elif isinstance(item, list):
                inside.extend(v for v in item if isinstance(v, (dict, list)))
        if not inside:
            return False
        level = inside
    return True


def parse_json(text: str, where: str, max_depth: int = MAX_DEPTH) -> Any:
    """Return the value of strict JSON `text`: no duplicate keys, no NaN or infinity, at most `max_depth` levels.

    Raises InputError with `where:line:column`.
    """
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}:{error.lineno}:{error.colno}", f"not valid JSON: {error.msg}") from error
    except _Refused as error:
        raise InputError(f"{where}:{_place(text, _offender(text))}", str(error)) from error
    except RecursionError as error:
        raise InputError(where, f"JSON nested deeper than {max_depth} levels") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(where, "JSON holds a number that is too long") from error
    if _too_deep(value, max_depth):
        raise InputError(where, f"JSON nested deeper than {max_depth} levels")
    return value
