"""Reading and writing files so that neither a crash nor a hostile file does harm.

It knows bytes, strict JSON and locks, and must not know what they mean. Its one invariant: after any function
here returns or fails, a target file is either wholly old or wholly new, and what is new has reached the disk.
"""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError, shown
from finetwo.core.strict_json import parse_json

TEMPORARY = ".tmp-"
"""Every temporary file or folder of FineTwo starts with this; a lock holder may remove what is left of them."""

_MAX_JSON = 64 * 1024 * 1024
_counter = itertools.count()
_FULL = (errno.ENOSPC, errno.EDQUOT)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)
_BAD_NAME = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)


# --- faults -----------------------------------------------------------------------------------------------------


def existing_parent(path: Path) -> Path:
    """Return `path` or the nearest folder above it that exists."""
    path = Path(path).absolute()
    while not path.exists() and path != path.parent:
        path = path.parent
    return path


def free_bytes(path: Path) -> int:
    """Return the bytes an ordinary user can still write on the file system of `path` (which need not exist yet)."""
    status = os.statvfs(existing_parent(path))
    return status.f_bavail * status.f_frsize


def fault(error: OSError, path: Path, needed: int | None = None, note: str = "") -> FineTwoError:
    """Return the error a person sees for `error` on `path`; `needed` is what was to be written, in bytes.

    A name that cannot be is an InputError; a full disk, a missing permission and the rest are EnvironmentFaults.
    """
    where, note = str(path), f"; {note}" if note else ""
    reason = error.strerror or str(error)
    if error.errno in _FULL:
        got = f"free {_free_text(path)}" if needed is None else f"needed {needed:,} bytes, free {_free_text(path)}"
        return EnvironmentFault(where, f"{reason.lower()}{note}", got, "free some space or choose another folder")
    if error.errno == errno.EFBIG:
        return EnvironmentFault(where, f"file size limit reached{note}", needed, "raise `ulimit -f`")
    if error.errno in _DENIED:
        at = existing_parent(path)
        got = f"uid {os.getuid()}, {at} mode {_mode_text(at)}"
        return EnvironmentFault(
            where, f"{reason.lower()}{note}", got, "change its permissions or choose another folder"
        )
    if error.errno in _BAD_NAME:
        return InputError(where, f"{reason.lower()}{note}", fix=_nearest_text(path))
    return EnvironmentFault(where, f"{reason.lower()}{note}", f"errno {error.errno}", "check the disk")


@contextmanager
def faults(path: Path, needed: int | None = None) -> Iterator[None]:
    """Turn an OSError inside the block into the error of `fault(error, path, needed)`."""
    try:
        yield
    except OSError as error:
        raise fault(error, path, needed) from error


def _free_text(path: Path) -> str:
    try:
        return f"{free_bytes(path):,} bytes"
    except OSError:
        return "unknown"


def _mode_text(path: Path) -> str:
    try:
        status = path.stat()
    except OSError:
        return "unknown"
    return f"{stat.S_IMODE(status.st_mode):04o} owner {status.st_uid}"


def _nearest_text(path: Path) -> str:
    """Name the entry most like the missing `path`, as a remedy; the empty string if none is like it."""
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        return ""
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"did you mean {shown(str(path.parent / near[0]))}?" if near else ""


def require_file(path: Path) -> int:
    """Return the size in bytes of the regular file `path`; raise InputError where it is missing or something else."""
    try:
        status = Path(path).stat()
    except FileNotFoundError as error:
        raise InputError(
            str(Path(path).absolute()), "no such file", fix=_nearest_text(path) or "check the path"
        ) from error
    except ValueError as error:
        raise InputError(repr(os.fspath(path)), "is not a possible file name", fix="check the path") from error
    except OSError as error:
        raise fault(error, path) from error
    if not stat.S_ISREG(status.st_mode):
        kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or pipe"
        raise InputError(str(path), "not a regular file", kind, "give a file")
    return status.st_size


# --- writing ----------------------------------------------------------------------------------------------------


def _sync(handle: int) -> None:
    """Bring what was written through `handle` to the medium; macOS needs its own call for that."""
    if hasattr(fcntl, "F_FULLFSYNC"):
        with suppress(OSError):
            fcntl.fcntl(handle, fcntl.F_FULLFSYNC)
            return
    os.fsync(handle)


def fsync_dir(path: Path) -> None:
    """Make the names inside folder `path` durable."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        _sync(handle)
    finally:
        os.close(handle)


@contextmanager
def replacing(path: Path, needed: int | None = None) -> Iterator[BinaryIO]:
    """Give a file to write; on leaving it becomes `path`, atomically and durably, or `path` stays as it was.

    `needed` is the size to come, in bytes, for the message of a full disk. Raises as `fault` does.
    """
    path = Path(path)
    temporary = path.parent / f"{TEMPORARY}{os.getpid()}-{next(_counter)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    with faults(path, needed):
        with suppress(FileNotFoundError):
            temporary.unlink()
        with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
            try:
                yield file
                file.flush()
                _sync(file.fileno())
                temporary.rename(path)
            except BaseException:
                with suppress(OSError):
                    temporary.unlink()
                raise
        fsync_dir(path.parent)


def replace_file(path: Path, data: bytes) -> None:
    """Make `data` the content of `path`, atomically and durably."""
    with replacing(path, len(data)) as file:
        file.write(data)


def json_bytes(value: object) -> bytes:
    """Return `value` as strict JSON with sorted keys, one final newline; NaN and infinities raise ValueError."""
    text = json.dumps(value, sort_keys=True, indent=2, allow_nan=False)
    return text.encode("ascii") + b"\n"


def write_json(path: Path, value: object) -> None:
    """Write `value` as strict JSON, atomically and durably; equal values give equal bytes."""
    replace_file(path, json_bytes(value))


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of the file's bytes, in hexadecimal."""
    with faults(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_json(path: Path, where: str | None = None, max_bytes: int = _MAX_JSON) -> Any:
    """Return the value of the strict JSON file `path` (UTF-8, at most `max_bytes`); see `parse_json`."""
    where = str(path) if where is None else where
    size = require_file(path)
    if size > max_bytes:
        raise InputError(where, f"file larger than {max_bytes:,} bytes", f"{size:,} bytes")
    with faults(path), path.open("rb") as file:
        data = file.read(max_bytes + 1)
    if not data.strip():
        raise InputError(where, "file is empty")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            where, f"not valid UTF-8 at byte {error.start}", data[error.start : error.start + 1]
        ) from error
    return parse_json(text, where)
