"""Opens one user file safely: a regular file, of a harmless kind, unpacked within limits, as byte pieces.

It knows nothing of text encodings, formats or records. Its invariant: what it yields is the file's exact (unpacked)
content, whole and verified, or an error that names the file, the offset and the limit.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.data.unpacking import packed_kind, unpack

CHUNK = 1 << 18
"""Bytes read, and at most unpacked, at a time."""

PACKED = (".gz", ".xz")
"""File name endings of the compressions that are read."""

TABLES = (".parquet", ".pq", ".arrow", ".feather")
"""File name endings of the tables that are read with the extra `data`."""
CONVERT = "finetwo convert FILE OUT.jsonl"
"""The command that makes JSONL of what is not read as it is."""

_TO_LINES = "convert it to JSONL, one JSON object a line"
_UNPACK = "unpack it and give the file inside"
_PICKLE = ("pickle can run code, so it is not read", CONVERT)
ARRAYS_FIX = "where you trust it, load it in Python (numpy.load) and write its records with json.dumps, one a line"
_ARRAYS = ("it may hold pickle, which can run code, so it is not read", ARRAYS_FIX)
_TABLE = ("Parquet and Arrow are not read packed", _UNPACK)
_ARCHIVE = ("an archive is not a data file", _UNPACK)
_BINARY = ("a binary file is not a data file", _TO_LINES)
_ADDRESS = re.compile(r"(https?|ftp|file|hf|s3|gs):/", re.IGNORECASE)
_REFUSED_NAMES = {
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"), _PICKLE),
    **dict.fromkeys((".npy", ".npz"), _ARRAYS),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".zst", ".bz2", ".lz4"), ("this compression is not read", "unpack it, or pack it as .gz or .xz")),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), ("a spreadsheet is not a data file", "save it as CSV")),
    **dict.fromkeys((".safetensors", ".gguf", ".h5", ".db", ".sqlite", ".pdf", ".docx", ".orc", ".avro"), _BINARY),
}
_REFUSED_BYTES = (
    *((bytes((0x80, version)), _PICKLE) for version in (2, 3, 4, 5)),
    (b"\x93NUMPY", _ARRAYS),
    (b"PAR1", _TABLE),
    (b"ARROW1", _TABLE),
    (b"PK\x03\x04", _ARCHIVE),
    (b"7z\xbc\xaf", _ARCHIVE),
    (b"BZh9", ("this compression is not read", "unpack it, or pack it as .gz or .xz")),
    (b"\x28\xb5\x2f\xfd", ("this compression is not read", "unpack it, or pack it as .gz or .xz")),
    (b"%PDF-", _BINARY),
    (b"GGUF", _BINARY),
    (b"version https://git-lfs", ("this is a Git LFS pointer, not the data", "run git lfs pull")),
)


def refuse_name(path: Path) -> None:
    """Raise InputError for a file whose name says a kind that is never read (pickle, archive, ...)."""
    ends = path.suffixes[-2:]
    packed = bool(ends) and ends[-1].lower() in PACKED
    for suffix in ends if packed else ends[-1:]:
        refusal = _REFUSED_NAMES.get(suffix.lower()) or (_TABLE if packed and suffix.lower() in TABLES else None)
        if refusal:
            raise InputError(str(path), f"a {suffix.lower()} file: {refusal[0]}", fix=refusal[1])


def refuse_content(name: str, head: bytes) -> None:
    """Raise InputError when the first bytes `head` of the file `name` are of a kind that is never read."""
    for magic, (what, fix) in _REFUSED_BYTES:
        if head.startswith(magic):
            raise InputError(name, what, fix=fix)
    if head[257:262] == b"ustar":
        raise InputError(name, *_ARCHIVE[:1], fix=_ARCHIVE[1])


def missing(path: Path) -> InputError:
    """Return the error for a file or folder that is not there, with the nearest name beside it."""
    if address := _ADDRESS.match(str(path)):
        on_hub = re.search(r"/huggingface\.co/datasets/([\w.-]+/[\w.-]+)", str(path))
        named = on_hub[1] if on_hub else "OWNER/NAME"
        fix = f"download it first; a data set of the Hugging Face hub is named hub:{named}"
        whole = f"{address[0]}/{str(path)[address.end() :]}"  # a path holds one of the two slashes
        return InputError(whole, "a web address is not read, only files are", fix=fix)
    if path.is_symlink():
        what = "a symbolic link to something that is not there"
        return InputError(str(path), what, str(path.readlink()), "give the file itself")
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), 1)
    except (OSError, ValueError):
        near = []
    fix = f"did you mean {path.parent / near[0]}?" if near else f"check the path (current folder: {Path.cwd()})"
    if not near and len(path.parts) == 2 and not path.suffix and not path.parent.exists():
        fix += f"; a data set of the Hugging Face hub is named hub:{path}"
    return InputError(str(path), "no such file or folder", fix=fix)


def fault(path: Path, error: OSError | ValueError) -> InputError | EnvironmentFault:
    """Return the one-line error for what the operating system said about `path`."""
    if isinstance(error, ValueError):
        return InputError(str(path), f"not a usable path: {error}", fix="give the path of a file")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return missing(path)
    if isinstance(error, PermissionError):
        return EnvironmentFault(str(path), "no permission to read", fix="chmod u+r, or run as its owner")
    if error.errno == errno.ELOOP:
        return InputError(str(path), "symbolic links that lead in a circle", fix="give the file itself")
    if error.errno == errno.ENAMETOOLONG:
        return InputError(str(path), error.strerror or "not a usable path", fix="give the file a shorter name")
    if error.errno == errno.ENXIO:
        return InputError(str(path), "not a regular file", fix="give a data file")
    return EnvironmentFault(str(path), f"cannot be read: {error.strerror or error}", fix="check the disk")


class SourceFile:
    """One open regular file; `chunks()` gives its unpacked bytes, `check_unchanged()` that nobody wrote meanwhile.

    With `as_is` the name may be of a kind that `chunks()` never reads, for a reader that takes `file` by itself.

    Raises:
        InputError: no such file, not a regular file, or a kind that is never read.
        EnvironmentFault: no permission, or the device fails.
    """

    def __init__(self, path: Path, *, as_is: bool = False) -> None:
        if not as_is:
            refuse_name(path)
        self.path = path
        self.file = _open_regular(path)
        self._stamp = _stamp(os.fstat(self.file.fileno()))

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def chunks(self, on_note: Callable[[str], None]) -> Iterator[bytes]:
        """Yield the content in pieces of at most `CHUNK` bytes, unpacked when it is gzip or xz."""
        name, raw = str(self.path), self._raw()
        first = b""
        while len(first) < 512 and (piece := next(raw, b"")):
            first += piece
        suffix = self.path.suffix.lower()
        kind = packed_kind(first)
        if suffix in PACKED and kind != suffix and first:
            raise InputError(name, f"the name ends in {suffix} but the content is not {suffix[1:]}", fix="rename it")
        refuse_content(name, first[:512])
        if kind is None:
            yield from _chain(first, raw)
            return
        if suffix != kind:
            on_note(f"{name}: packed as {kind[1:]}, unpacked while reading")
        opened = False
        for piece in unpack(_chain(first, raw), kind, name, CHUNK):
            if not opened:
                refuse_content(name, piece[:512])
            opened = True
            yield piece

    def ends(self, count: int) -> tuple[bytes, bytes]:
        """Return the first and the last `count` bytes of the file, as it lies on disk."""
        handle = self.file.fileno()
        try:
            size = os.fstat(handle).st_size
            return os.pread(handle, count, 0), os.pread(handle, count, max(0, size - count))
        except OSError as error:
            raise fault(self.path, error) from error

    def check_unchanged(self) -> None:
        """Raise InputError when the file's size, time or identity is no longer what it was at opening."""
        try:
            same = _stamp(os.fstat(self.file.fileno())) == self._stamp == _stamp(os.stat(self.path))
        except OSError:
            same = False
        if not same:
            raise InputError(
                str(self.path), "the file changed while it was being read", fix="wait until it is written, start again"
            )

    def _raw(self) -> Iterator[bytes]:
        while True:
            try:
                piece = self.file.read(CHUNK)
            except OSError as error:
                raise fault(self.path, error) from error
            if not piece:
                return
            yield piece


def _stamp(info: os.stat_result) -> tuple[int, int, int, int]:
    return info.st_size, info.st_mtime_ns, info.st_ino, info.st_dev


def _open_regular(path: Path) -> BinaryIO:
    """Open without ever waiting on a pipe or device, and refuse what is not a regular file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except (OSError, ValueError) as error:
        raise fault(path, error) from error
    mode = os.fstat(handle).st_mode
    if not stat.S_ISREG(mode):
        os.close(handle)
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise InputError(str(path), "not a regular file", kind, "give a data file")
    return os.fdopen(handle, "rb", buffering=0)


def _chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    if first:
        yield first
    yield from rest
