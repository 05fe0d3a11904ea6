"""Strict JSON records out of text pieces: an array of objects, or objects one after another, or one a line.

It knows nothing of files on disk or columns. Its invariant: memory holds one record and a few pieces, however long the
file, and whatever is not a flat-enough object of plain JSON is refused with its line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NoReturn

from finetwo.core.errors import InputError
from finetwo.data.decoding import MAX_RECORD, too_long

MAX_DEPTH = 64
"""Deepest nesting of a record."""

Record = tuple[int, dict[str, object]]
"""(line the record starts on, its fields)."""

_SPACE = re.compile(r"[ \t\n\r]*")
_CONSTANT = re.compile(r'"(?:[^"\\]|\\.)*"|(?P<bad>NaN|-?Infinity)')
_AS_TEXT, _MEND = "write it as a text, in quotes", "correct it there, or write the file again"
_SURROGATE = re.compile(r"\\u[dD][89abAB]|\\u[dD][c-fC-F]")
_TOO_DEEP = (f"nested deeper than the limit of {MAX_DEPTH} levels", "leave the field out, or write it as a text")


class _Fault(Exception):
    """A record that is JSON by grammar but refused, and the way out; raised inside the parser's hooks."""

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(what)
        self.fix = fix


@dataclass(frozen=True, slots=True)
class Unreadable:
    """Stands for a value of a table's column whose type has no JSON form; refused wherever it is needed."""

    type: str

    def __repr__(self) -> str:
        return "no JSON form"


def kind_of(value: object) -> str:
    """Name a JSON value's type for a message: 'null', 'a number', 'a list', ..."""
    if isinstance(value, Unreadable):
        return f"a value of type {value.type}"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "text"
    return {"list": "a list", "tuple": "a list", "dict": "a nested object"}.get(type(value).__name__, repr(type(value)))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _Fault(f"duplicate key '{next(k for k in keys if keys.count(k) > 1)}'", "keep one of them")
    return fields


def _constant(name: str) -> NoReturn:
    raise _Fault(f"{name} is not a JSON value", "write null, or leave the field out")


def _float(text: str) -> float:
    value = float(text)
    if value - value != 0:
        raise _Fault("a number too large for a float64", _AS_TEXT)
    return value


def _int(text: str) -> int:
    if len(text) > 4000:
        raise _Fault(f"a number of {len(text):,} digits", _AS_TEXT)
    return int(text)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int)


def _check(value: object, source: str) -> dict[str, object]:
    """Return `value` (parsed from `source`) if it is an object within limits and free of lone surrogates."""
    if not isinstance(value, dict):
        what = f"{kind_of(value)} where a record, an object {{...}}, should be"
        raise _Fault(what, 'write each record as an object, such as {"text": "..."}')
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for node in level
            for child in (node.values() if isinstance(node, dict) else node)
            if isinstance(child, (dict, list))
        ]
        if not level:
            break
    else:
        raise _Fault(*_TOO_DEEP)
    if _SURROGATE.search(source):
        check_surrogates(value)
    return value


def check_surrogates(fields: dict[str, object]) -> None:
    """Raise when a field's name or value holds half of a surrogate pair, which no UTF-8 text can hold."""
    for key, value in fields.items():
        try:
            json.dumps([key, value], ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start].encode("unicode_escape").decode()
            what = f"field '{key}' holds the lone surrogate {half}, which is half a character"
            raise _Fault(what, "write both halves, or remove it") from error


def surrogate_fault(fields: dict[str, object]) -> str:
    """Return what is wrong with the surrogates of `fields`, or '' when nothing is."""
    try:
        check_surrogates(fields)
    except _Fault as error:
        return str(error)
    return ""


def _excerpt(text: str, at: int) -> str:
    return text[max(0, at - 20) : at + 40].strip() or "the end of the text"


class _Window:
    """A sliding part of the text: `text[pos]` is next; lines and columns are those of the file."""

    def __init__(self, chunks: Iterator[str], file: str) -> None:
        self.text, self.pos, self.file = "", 0, file
        self._chunks = chunks
        self._line, self._counted, self._column = 1, 0, 0
        self.ended = False

    def more(self) -> bool:
        """Drop what is consumed and take in as much as is waiting (so that retries cost twice at most)."""
        self.line()
        newline = self.text.rfind("\n", 0, self.pos)
        self._column = self._column + self.pos if newline < 0 else self.pos - newline - 1
        pieces, size, wanted = [self.text[self.pos :]], 0, len(self.text) - self.pos
        for piece in self._chunks:
            pieces.append(piece)
            size += len(piece)
            if size >= wanted:
                break
        else:
            self.ended = True
        self.text, self.pos, self._counted = "".join(pieces), 0, 0
        return size > 0

    def line(self) -> int:
        """Line number of the next character, from 1."""
        self._line += self.text.count("\n", self._counted, self.pos)
        self._counted = self.pos
        return self._line

    def where(self, at: int) -> str:
        """`file:line:column` of `text[at]`."""
        newline = self.text.rfind("\n", 0, at)
        column = at - newline if newline >= 0 else self._column + at + 1
        return f"{self.file}:{self._line + self.text.count(chr(10), self._counted, at)}:{column}"

    def peek(self) -> str:
        """Skip white space; return the next character, or '' at the end."""
        while True:
            match = _SPACE.match(self.text, self.pos)
            self.pos = match.end() if match else self.pos
            if self.pos < len(self.text):
                return self.text[self.pos]
            if not self.more():
                return ""

    def fail(self, number: int, what: str, at: int, fix: str = "") -> InputError:
        return InputError(self.where(at), f"record {number}: {what}", _excerpt(self.text, at), fix or _MEND)

    def record(self, number: int) -> Record:
        """Parse the value at `pos` as record `number`."""
        while True:
            line = self.line()
            try:
                value, end = _DECODER.raw_decode(self.text, self.pos)
                fields = _check(value, self.text[self.pos : end])
                if end - self.pos > MAX_RECORD:
                    raise too_long(f"{self.file}:{line}", f"record {number}")
                self.pos = end
                return line, fields
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated string") or error.pos > len(self.text) - 16
                if cut and len(self.text) - self.pos > MAX_RECORD:
                    raise too_long(f"{self.file}:{line}", f"record {number}") from error
                if cut and not self.ended:
                    self.more()
                    continue
                what = f"invalid JSON: {error.msg[:1].lower()}{error.msg[1:].removesuffix(' at')}"
                if error.msg.startswith("Invalid control"):
                    what += " (inside a string write \\n, \\t, \\u0000)"
                raise self.fail(number, what, error.pos) from error
            except _Fault as error:
                raise self.fail(number, str(error), self._place(error), error.fix) from error
            except RecursionError as error:
                raise self.fail(number, _TOO_DEEP[0], self.pos, _TOO_DEEP[1]) from error

    def _place(self, error: _Fault) -> int:
        """Where the refused constant stands (the parser does not say), else the start of the record."""
        if "is not a JSON value" in str(error):
            for match in _CONSTANT.finditer(self.text, self.pos):
                if match["bad"]:
                    return match.start("bad")
        return self.pos


def read_array(chunks: Iterator[str], file: str) -> Iterator[Record]:
    """Yield the objects of a JSON array whose text is `chunks`; memory does not grow with the array."""
    window, number = _Window(chunks, file), 0
    window.peek()
    window.pos += 1
    if window.peek() != "]":
        while True:
            number += 1
            head = window.peek()
            if head in ("]", "}", ",", ""):
                fix = "the array is not closed with ]" if not head else "remove the extra comma or bracket"
                raise window.fail(number, "invalid JSON: a record is missing", window.pos, fix)
            yield window.record(number)
            mark = window.peek()
            if mark == "]":
                break
            if mark != ",":
                what = "invalid JSON: ',' or ']' should follow the record"
                fix = "" if mark else "the file ends inside the array; is it cut off?"
                raise window.fail(number, what, window.pos, fix)
            window.pos += 1
    window.pos += 1
    if window.peek():
        fix = "remove it, or write all records within one array"
        raise InputError(window.where(window.pos), "text after the array's end", _excerpt(window.text, window.pos), fix)


def read_objects(chunks: Iterator[str], file: str) -> Iterator[Record]:
    """Yield JSON objects that follow each other with any white space between, over any number of lines."""
    window, number = _Window(chunks, file), 0
    while window.peek():
        number += 1
        yield window.record(number)


def read_lines(lines: Iterator[tuple[int, str]], file: str) -> Iterator[Record]:
    """Yield the objects of JSON Lines: one object a line, blank lines left out."""
    number = 0
    for line_number, line in lines:
        if not line.strip(" \t\r"):
            continue
        number += 1
        window = _Window(iter(()), file)
        window.text, window._line, window.ended = line, line_number, True
        window.peek()
        try:
            record = window.record(number)
        except InputError as error:
            if "invalid JSON" in error.what and error.fix == _MEND:
                error = InputError(
                    error.where, error.what, error.got,
                    "write one JSON object a line; for an array or objects over several lines: --rows.format json",
                )  # fmt: skip
            raise error from None
        if window.peek():
            what = f"record {number}: text after the object"
            raise InputError(window.where(window.pos), what, _excerpt(line, window.pos), "write one JSON object a line")
        yield record
