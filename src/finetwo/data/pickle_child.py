"""The child process that reads a pickle: a program of its own, standard library only, started by `pickled.py`.

A pickle is a program, so this process is made unable to do anything before it looks at one: the file is its standard
input, JSON lines its standard output, and nothing else is left to it. Its one invariant: what is not lists, tuples,
dictionaries, texts, numbers, True, False and None is refused with its place, and refused once more when it is loaded.

The walls, each of which would do alone:

1. Every opcode is looked at before any is run; one that names, calls or builds something is refused.
2. `find_class` and `persistent_load` of the unpickler always refuse.
3. An audit hook, which nothing can take off again, refuses every event of the interpreter: opening a file, a socket, a
   process, importing, compiling, ctypes, changing a limit.
4. Limits of the kernel: memory and time by the size of the file, no bytes to any file, no open file beyond the three
   standard ones (so no file, pipe or socket can be opened), no core dump.
5. No network: where the kernel permits it, the process moves to an empty network of its own (a container may forbid
   that; then 3 and 4 stand for it). The parent gives it an empty environment and an empty working folder.
"""

from __future__ import annotations

import collections
import ctypes
import io
import json
import os
import pickle
import pickletools
import resource
import sys
from typing import Any, BinaryIO, NoReturn

REFUSED = 3
"""Exit code when the file was refused; the last line of standard error says why, as JSON."""

_PLAIN = frozenset(
    """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 EMPTY_LIST LIST APPEND
    APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_DICT DICT SETITEM SETITEMS GET BINGET LONG_BINGET PUT BINPUT
    LONG_BINPUT MEMOIZE
    """.split()
)
_PUTS, _TEXTS = ("PUT", "BINPUT", "LONG_BINPUT"), ("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_CLONE_NEWUSER, _CLONE_NEWNET = 0x10000000, 0x40000000
_MAX_DEPTH, _MAX_NODES, _MAX_CHARACTERS = 60, 1 << 20, 16 << 20
"""Levels, values and characters of one record: what a strict reader of JSON lines takes."""
_FREE_BYTES, _MAX_RATIO = 64 << 20, 100
"""Bytes that may be written out at any rate, and for each byte read."""


class Refused(Exception):
    """The file holds something that is not read; the text says what and where."""


# --- the walls -------------------------------------------------------------------------------------------------------


def _limit(size: int) -> None:
    memory, seconds = (1 << 30) + 32 * size, 60 + size // (1 << 20)
    limits = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 3,
    }
    for kind, most in limits.items():
        hard = resource.getrlimit(kind)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(kind, (most, most))
        except (OSError, ValueError):
            if kind not in (resource.RLIMIT_AS, resource.RLIMIT_CORE):  # macOS knows no limit of memory
                raise


def _leave_network() -> None:
    """Move to an empty network, where the kernel permits it."""
    try:
        libc = ctypes.CDLL(None)
        if libc.unshare(_CLONE_NEWNET) != 0:
            libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET)
    except (AttributeError, OSError):
        return


def _refuse_event(event: str, _: tuple[Any, ...]) -> NoReturn:
    raise Refused(f"it tries to act: {event}")


# --- reading ---------------------------------------------------------------------------------------------------------


def scan(data: bytes) -> None:
    """Raise Refused for the first opcode that could do more than make plain values, before any is run."""
    texts: collections.deque[str] = collections.deque(maxlen=2)
    at = 0
    for opcode, argument, position in pickletools.genops(data):
        at = position or 0
        if opcode.name in _TEXTS:
            texts.append(str(argument)[:80])
        if opcode.name in _PUTS and int(argument or 0) > len(data):
            raise Refused(f"at byte {at:,}: {opcode.name} to place {argument:,} of a file of {len(data):,} bytes")
        if opcode.name in _BYTES:
            raise Refused(f"at byte {at:,}: holds bytes, which JSON has no form for")
        if opcode.name not in _PLAIN:
            named = " ".join(texts) if opcode.name == "STACK_GLOBAL" else str(argument or "")[:160]
            raise Refused(f"at byte {at:,}: {opcode.name} {named}".rstrip() + ", which can run code")
    if at + 1 != len(data):
        raise Refused(f"at byte {at + 1:,}: more follows after the end of the pickle")


class _Plain(pickle.Unpickler):
    """An unpickler that knows no names."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise Refused(f"it names the code {module}.{name}")

    def persistent_load(self, pid: object) -> NoReturn:
        raise Refused("it names an object outside the file")


def records(value: object, part: str | None) -> list[Any]:
    """Return the records of a loaded value: a list of dictionaries or texts, or a dictionary of columns."""
    if part is not None:
        if type(value) is not dict or part not in value:
            names = ", ".join(map(str, list(value)[:8])) if type(value) is dict else "it holds no dictionary"
            raise Refused(f"there is no part '{part[:80]}': {names}")
        value = value[part]
    if type(value) is dict:
        columns = list(value.values())
        if not columns or any(type(column) not in (list, tuple) for column in columns):
            raise Refused("a dictionary, not a list of records")
        lengths = {len(column) for column in columns}
        if len(lengths) > 1 or any(type(item) is dict for column in columns for item in column[:1]):
            names = ", ".join(map(str, list(value)[:8]))
            raise Refused(f"a dictionary of several lists, not one list of records: {names}")
        return [dict(zip(value, items, strict=True)) for items in zip(*columns, strict=True)]
    if type(value) not in (list, tuple):
        raise Refused(f"{type(value).__name__}, not a list of records")
    return list(value)  # type: ignore[call-overload, no-any-return]


def plain(record: object, number: int) -> tuple[dict[str, object], int]:
    """Return a record as a dictionary of JSON values, and how many NaN and infinite numbers became null."""
    if type(record) is str:
        record = {"text": record}
    if type(record) is not dict:
        raise Refused(f"record {number}: {type(record).__name__}, not a dictionary or a text")
    budget = [_MAX_NODES, _MAX_CHARACTERS, 0]
    return {_key(k, number): _json(v, 1, budget, number) for k, v in record.items()}, budget[2]


def _key(key: object, number: int) -> str:
    if type(key) is not str:
        raise Refused(f"record {number}: the name of a field must be text, got {str(key)[:40]}")
    return key


def _json(value: Any, depth: int, budget: list[int], number: int) -> object:
    kind = type(value)
    budget[0] -= 1
    budget[1] -= len(value) if kind is str else 24
    if min(budget) < 0 or depth > _MAX_DEPTH:
        what = f"nested deeper than {_MAX_DEPTH} levels, or within itself" if depth > _MAX_DEPTH else "too large"
        raise Refused(f"record {number}: {what}")
    if kind is dict:
        return {_key(k, number): _json(v, depth + 1, budget, number) for k, v in value.items()}
    if kind in (list, tuple):
        return [_json(item, depth + 1, budget, number) for item in value]
    if kind is float and value - value != 0:
        budget[2] += 1
        return None
    if value is None or kind in (str, bool, int, float):
        return value
    raise Refused(f"record {number}: {kind.__name__}, which JSON has no form for")


def write(data: bytes, part: str | None, out: BinaryIO) -> int:
    """Write the records of the pickle `data` as JSON lines; return how many numbers became null."""
    scan(data)
    left, lost = max(_FREE_BYTES, _MAX_RATIO * len(data)), 0
    for number, record in enumerate(records(_Plain(io.BytesIO(data), encoding="utf-8").load(), part), start=1):
        fields, nulls = plain(record, number)
        line = json.dumps(fields, allow_nan=False).encode("ascii") + b"\n"
        left, lost = left - len(line), lost + nulls
        if left < 0:
            raise Refused(f"record {number}: the file unpacks to more than {_MAX_RATIO}:1, as a bomb does")
        out.write(line)
    return lost


def main() -> int:
    """Read the pickle on standard input; the one argument, if any, names the part of a dictionary."""
    part = sys.argv[1] if len(sys.argv) > 1 else None
    size = os.fstat(0).st_size
    out, source, said = sys.stdout.buffer, sys.stdin.buffer, sys.stderr
    for protocol in range(5):  # whatever Python loads late (its codecs) is loaded now
        write(pickle.dumps([{"é\n": [1.5, 10**20, None, True]}], protocol), None, io.BytesIO())
    _leave_network()
    _limit(size)
    sys.addaudithook(_refuse_event)
    try:
        answer: dict[str, object] = {"nulls": write(source.read(), part, out)}
        out.flush()
        code = 0
    except Refused as error:
        answer, code = {"refused": str(error)}, REFUSED
    except MemoryError:
        answer, code = {"refused": "it asks for more memory than a file of its size may"}, REFUSED
    except Exception as error:  # whatever a damaged pickle raises
        answer, code = {"refused": f"truncated or damaged: {str(error).split(';')[0][:160]}"}, REFUSED
    said.write(json.dumps(answer) + "\n")
    said.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
