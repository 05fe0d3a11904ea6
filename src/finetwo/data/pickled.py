"""Reads the records of a pickled data set in a process that can do nothing but read it (`pickle_child.py`).

It knows how to start that process and what it may say, and must not unpickle anything itself. Its one invariant: the
process is gone when the records end, however they end, and what it wrote is read as strictly as any user's file.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError
from finetwo.data.decoding import decoded, numbered_lines
from finetwo.data.json_stream import read_lines
from finetwo.data.opening import CHUNK, SourceFile

SUFFIXES = (".pkl", ".pickle", ".p", ".joblib", ".pt", ".pth", ".bin", ".ckpt")
"""File name endings of pickles, alone or in the archive of torch.save."""

_REFUSED = 3
"""Exit code by which the process says that it refused the file."""
_FIX = "where you trust the file, load it in Python and write each record with json.dumps, one a line"
_FOREIGN = {
    b"\x93NUMPY": "an array of numpy",
    b"\x1f\x8b": "packed as gzip: unpack it first",
    b"\xfd7zXZ": "packed as xz: unpack it first",
    b"version https://git-lfs": "a Git LFS pointer, not the data: run git lfs pull",
}
_ARCHIVE, _INSIDE = b"PK\x03\x04", "data.pkl"
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
    with ExitStack() as stack:
        source = stack.enter_context(SourceFile(path, as_is=True))
        head, _ = source.ends(32)
        foreign = next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), None)
        if foreign is not None or not head:
            raise InputError(name, f"not a pickle: {foreign or 'the file is empty'}", fix=_FIX)
        file = stack.enter_context(_unpacked(source.file, name)) if head.startswith(_ARCHIVE) else source.file
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="finetwo-"))
        process = _start(file, name, part, Path(folder))
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


def _unpacked(file: BinaryIO, name: str) -> BinaryIO:
    """The pickle in an archive of torch.save, which packs nothing, as a file of its own."""
    found = tempfile.TemporaryFile(prefix="finetwo-")  # noqa: SIM115 (the caller closes it)
    try:
        with zipfile.ZipFile(file) as archive:
            inside = [i for i in archive.infolist() if i.filename.split("/")[-1] == _INSIDE]
            if len(inside) != 1 or inside[0].compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"it must hold one {_INSIDE}, not compressed")
            with archive.open(inside[0]) as packed:
                shutil.copyfileobj(packed, found, CHUNK)
    except Exception as error:  # whatever a damaged or foreign archive raises
        found.close()
        raise InputError(name, f"an archive, but not as torch.save writes them: {error}", fix=_FIX) from error
    found.seek(0)
    return found


def _start(file: BinaryIO, name: str, part: str | None, folder: Path) -> subprocess.Popen[bytes]:
    """Start the reading process: no environment, an empty folder, three files, a session of its own."""
    child = Path(__file__).with_name("pickle_child.py")
    command = [sys.executable, "-I", "-S", "-B", str(child), *([part] if part is not None else [])]
    try:
        return subprocess.Popen(
            command,
            stdin=file,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=folder,
            env={},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        what = f"the reading process cannot be started: {error}"
        raise EnvironmentFault(name, what, fix="check limits of memory and processes") from error


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
