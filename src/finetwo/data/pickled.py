"""Reads the records of a pickled data set in a process that can do nothing but read it (`pickle_child.py`).

It knows how to start that process and what it may say, and must not unpickle anything itself. Its one invariant: the
process is gone when the records end, however they end, and what it wrote is read as strictly as any user's file.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError
from finetwo.data.decoding import decoded, numbered_lines
from finetwo.data.json_stream import read_lines
from finetwo.data.opening import CHUNK, SourceFile

SUFFIXES = (".pkl", ".pickle", ".p")
"""File name endings of pickles."""

_REFUSED = 3
"""Exit code by which the process says that it refused the file."""
_FIX = "where you trust the file, load it in Python and write each record with json.dumps, one a line"
_FOREIGN = {
    b"PK\x03\x04": "an archive (as torch.save writes)",
    b"\x93NUMPY": "an array of numpy",
    b"\x1f\x8b": "packed as gzip: unpack it first",
    b"\xfd7zXZ": "packed as xz: unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the data: run git lfs pull",
}
_TOO_MUCH = {-signal.SIGKILL, -signal.SIGXCPU, -signal.SIGSEGV, -signal.SIGABRT}


def is_pickle(path: Path) -> bool:
    """Whether the file is a pickle, by its name or its first bytes; errors as `SourceFile`."""
    with SourceFile(path, as_is=True) as source:
        head = source.ends(2)[0]
    return path.suffix.lower() in SUFFIXES or (len(head) == 2 and head[0] == 0x80 and head[1] <= 5)


def read_pickle(path: Path, part: str | None, on_note: Callable[[str], None]) -> Iterator[dict[str, object]]:
    """Yield the records of a pickled list of dictionaries or texts, or dictionary of columns.

    `part` takes the list under that name of a pickled dictionary. `on_note` takes what should be said aloud.

    Raises:
        InputError: anything in it but plain values, whatever could run code first of all; damaged; no records.
        EnvironmentFault: the process cannot be started, or failed by itself.
    """
    name, count = str(path), 0
    with SourceFile(path, as_is=True) as source, tempfile.TemporaryDirectory(prefix="finetwo-") as empty:
        head, _ = source.ends(32)
        foreign = next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), None)
        if foreign is not None or not head:
            raise InputError(name, f"not a pickle: {foreign or 'the file is empty'}", fix=_FIX)
        process = _start(source, part, Path(empty))
        broken: FineTwoError | None = None
        ended = False
        try:
            for fields in _answers(process, name):
                count += 1
                yield fields
            ended = True
        except InputError as error:  # what the process says of its end comes first
            broken, ended = error, _drained(process)
        finally:
            said = _end(process, kill=not ended)
        _judge(process.returncode, said, name, on_note)
        if broken is not None:
            raise broken
        source.check_unchanged()
    if not count:
        raise InputError(name, "0 records: the list is empty", fix="give a file that holds records")


def _start(source: SourceFile, part: str | None, folder: Path) -> subprocess.Popen[bytes]:
    """Start the reading process: no environment, an empty folder, three files, a session of its own."""
    child = Path(__file__).with_name("pickle_child.py")
    command = [sys.executable, "-I", "-S", "-B", str(child), *([part] if part is not None else [])]
    try:
        return subprocess.Popen(
            command,
            stdin=source.file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        what = f"the reading process cannot be started: {error}"
        raise EnvironmentFault(str(source.path), what, fix="check limits of memory and processes") from error


def _answers(process: subprocess.Popen[bytes], name: str) -> Iterator[dict[str, object]]:
    assert process.stdout is not None
    pieces = iter(lambda: process.stdout.read(CHUNK), b"")  # type: ignore[union-attr]
    lines = numbered_lines(decoded(pieces, "utf-8", name, lambda _: None), name)
    return (fields for _, fields in read_lines(lines, name))


def _drained(process: subprocess.Popen[bytes]) -> bool:
    assert process.stdout is not None
    while process.stdout.read(CHUNK):
        pass
    return True


def _end(process: subprocess.Popen[bytes], *, kill: bool) -> str:
    """Wait for the process, which writes no more, or kill it; return the last line it said on standard error."""
    assert process.stdout is not None
    assert process.stderr is not None
    if kill:
        process.kill()
    with process.stdout, process.stderr as stream:
        said = stream.read(1 << 16).decode("utf-8", "replace")
    process.wait()
    return (said.strip().splitlines() or [""])[-1]


def _judge(code: int, said: str, name: str, on_note: Callable[[str], None]) -> None:
    """Raise what the end of the process means, or say what became of its numbers."""
    try:
        answer = json.loads(said)
    except ValueError:
        answer = {}
    if code == _REFUSED:
        raise InputError(name, f"refused: {answer.get('refused', said)}", fix=_FIX)
    if code in _TOO_MUCH:
        raise InputError(name, "refused: it takes more memory or time than a file of its size may", code, _FIX)
    if code != 0:
        raise EnvironmentFault(name, f"the reading process failed: {said}", f"exit code {code}", _FIX)
    if answer.get("nulls"):
        on_note(f"{name}: {answer['nulls']:,} numbers that are NaN or infinite became null")
