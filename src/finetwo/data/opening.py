"""Opens one user file safely: a regular file, of a harmless kind, unpacked within limits, as byte pieces.

It knows nothing of text encodings, formats or records. Its invariant: what it yields is the file's exact (unpacked)
content, whole and verified, or an error that names the file, the offset and the limit.
"""

from __future__ import annotations

import difflib
import errno
import lzma
import os
import stat
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from finetwo.core.errors import EnvironmentFault, InputError

CHUNK = 1 << 18
"""Bytes read, and at most unpacked, at a time."""
MAX_RATIO = 1000
"""Unpacked bytes allowed for each packed byte, once `FREE_BYTES` are out."""
FREE_BYTES = 64 << 20
"""Unpacked bytes that are allowed at any ratio."""
MAX_BYTES = 64 << 30
"""Unpacked bytes allowed in all."""
_XZ_MEMORY = 256 << 20

PACKED = (".gz", ".xz")
"""File name endings of the compressions that are read."""

_CODE = "pickle can run code, so it is not read"
_TO_LINES = "convert it to JSONL, one JSON object a line"
_UNPACK = "unpack it and give the file inside"
_PICKLE = (_CODE, f"where you trust the file, {_TO_LINES}")
_PARQUET = ("Parquet is not read by this version", _TO_LINES)
_ARCHIVE = ("an archive is not a data file", _UNPACK)
_BINARY = ("a binary file is not a data file", _TO_LINES)
_REFUSED_NAMES = {
    **dict.fromkeys((".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".npy", ".npz", ".joblib"), _PICKLE),
    **dict.fromkeys((".parquet", ".arrow", ".feather", ".orc"), _PARQUET),
    **dict.fromkeys((".zip", ".tar", ".tgz", ".7z", ".rar"), _ARCHIVE),
    **dict.fromkeys((".zst", ".bz2", ".lz4"), ("this compression is not read", "unpack it, or pack it as .gz or .xz")),
    **dict.fromkeys((".xlsx", ".xls", ".ods"), ("a spreadsheet is not a data file", "save it as CSV")),
    **dict.fromkeys((".safetensors", ".gguf", ".h5", ".db", ".sqlite", ".pdf", ".docx"), _BINARY),
}
_REFUSED_BYTES = (
    *((bytes((0x80, version)), _PICKLE) for version in (2, 3, 4, 5)),
    (b"\x93NUMPY", _PICKLE),
    (b"PAR1", _PARQUET),
    (b"ARROW1", _PARQUET),
    (b"PK\x03\x04", _ARCHIVE),
    (b"7z\xbc\xaf", _ARCHIVE),
    (b"BZh9", ("this compression is not read", "unpack it, or pack it as .gz or .xz")),
    (b"\x28\xb5\x2f\xfd", ("this compression is not read", "unpack it, or pack it as .gz or .xz")),
    (b"%PDF-", _BINARY),
    (b"GGUF", _BINARY),
    (b"version https://git-lfs", ("this is a Git LFS pointer, not the data", "run git lfs pull")),
)


def refuse_name(path: Path) -> None:
    """Raise InputError for a file whose name says a kind that is never read (pickle, archive, Parquet, ...)."""
    ends = path.suffixes[-2:]
    for suffix in ends if ends and ends[-1].lower() in PACKED else ends[-1:]:
        refusal = _REFUSED_NAMES.get(suffix.lower())
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
    try:
        near = difflib.get_close_matches(path.name, os.listdir(path.parent), 1)
    except (OSError, ValueError):
        near = []
    fix = f"did you mean {path.parent / near[0]}?" if near else f"check the path (current folder: {Path.cwd()})"
    return InputError(str(path), "no such file or folder", fix=fix)


def fault(path: Path, error: OSError | ValueError) -> InputError | EnvironmentFault:
    """Return the one-line error for what the operating system said about `path`."""
    if isinstance(error, ValueError):
        return InputError(str(path), f"not a usable path: {error}")
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return missing(path)
    if isinstance(error, PermissionError):
        return EnvironmentFault(str(path), "no permission to read", fix="chmod u+r, or run as its owner")
    if error.errno in (errno.ELOOP, errno.ENAMETOOLONG):
        return InputError(str(path), error.strerror or "not a usable path")
    if error.errno == errno.ENXIO:
        return InputError(str(path), "not a regular file")
    return EnvironmentFault(str(path), f"cannot be read: {error.strerror or error}")


class SourceFile:
    """One open regular file; `chunks()` gives its unpacked bytes, `check_unchanged()` that nobody wrote meanwhile.

    Raises:
        InputError: no such file, not a regular file, or a kind that is never read.
        EnvironmentFault: no permission, or the device fails.
    """

    def __init__(self, path: Path) -> None:
        refuse_name(path)
        self.path = path
        self._file = _open_regular(path)
        self._stamp = _stamp(os.fstat(self._file.fileno()))

    def __enter__(self) -> SourceFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def chunks(self, on_note: Callable[[str], None]) -> Iterator[bytes]:
        """Yield the content in pieces of at most `CHUNK` bytes, unpacked when it is gzip or xz."""
        name, raw = str(self.path), self._raw()
        first = b""
        while len(first) < 512 and (piece := next(raw, b"")):
            first += piece
        suffix = self.path.suffix.lower()
        kind = next((k for k, (magic, _) in _CODERS.items() if first.startswith(magic)), None)
        if suffix in PACKED and kind != suffix and first:
            raise InputError(name, f"the name ends in {suffix} but the content is not {suffix[1:]}", fix="rename it")
        refuse_content(name, first[:512])
        if kind is None:
            yield from _chain(first, raw)
            return
        if suffix != kind:
            on_note(f"{name}: packed as {kind[1:]}, unpacked while reading")
        opened = False
        for piece in _unpack(_chain(first, raw), kind, name):
            if not opened:
                refuse_content(name, piece[:512])
            opened = True
            yield piece

    def check_unchanged(self) -> None:
        """Raise InputError when the file's size, time or identity is no longer what it was at opening."""
        try:
            same = _stamp(os.fstat(self._file.fileno())) == self._stamp == _stamp(os.stat(self.path))
        except OSError:
            same = False
        if not same:
            raise InputError(
                str(self.path), "the file changed while it was being read", fix="wait until it is written, start again"
            )

    def _raw(self) -> Iterator[bytes]:
        while True:
            try:
                piece = self._file.read(CHUNK)
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


class _Coder(Protocol):
    eof: bool
    hungry: bool
    rest: bytes

    def step(self, data: bytes) -> bytes: ...


class _Gzip:
    def __init__(self) -> None:
        self._coder = zlib.decompressobj(31)
        self.eof, self.hungry, self.rest = False, True, b""

    def step(self, data: bytes) -> bytes:
        piece = self._coder.decompress(self._coder.unconsumed_tail + data, CHUNK)
        self.eof, self.rest = self._coder.eof, self._coder.unused_data
        self.hungry = not self._coder.unconsumed_tail and len(piece) < CHUNK
        return piece


class _Xz:
    def __init__(self) -> None:
        self._coder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        self.eof, self.hungry, self.rest = False, True, b""

    def step(self, data: bytes) -> bytes:
        piece = self._coder.decompress(data, CHUNK)
        self.eof, self.hungry = self._coder.eof, self._coder.eof or self._coder.needs_input
        self.rest = self._coder.unused_data
        return piece


_CODERS: dict[str, tuple[bytes, Callable[[], _Coder]]] = {
    ".gz": (b"\x1f\x8b", _Gzip),
    ".xz": (b"\xfd7zXZ\x00", _Xz),
}


def _unpack(raw: Iterator[bytes], kind: str, name: str) -> Iterator[bytes]:
    """Yield the unpacked content of one or several members; zero padding after a member is allowed."""
    magic, new = _CODERS[kind]
    coder: _Coder | None = None
    packed = unpacked = members = 0
    for data in raw:
        packed += len(data)
        while data or (coder and not coder.hungry):
            if coder is None:
                data = data.lstrip(b"\0") if members else data
                if not data:
                    break
                if not data.startswith(magic[: len(data)]):
                    raise InputError(
                        name, f"trailing garbage after the {kind[1:]} data at byte offset {packed - len(data)}",
                        fix="download or pack the file again",
                    )  # fmt: skip
                coder = new()
            piece, data = _step(coder, data, kind, name, packed), b""
            unpacked += len(piece)
            _check_bomb(name, packed, unpacked)
            if piece:
                yield piece
            if coder.eof:
                data, coder, members = coder.rest, None, members + 1
    if coder is not None:
        raise InputError(
            name, f"truncated {kind[1:]} file: it ends at byte offset {packed}", fix="download or pack the file again"
        )


def _step(coder: _Coder, data: bytes, kind: str, name: str, packed: int) -> bytes:
    try:
        return coder.step(data)
    except (zlib.error, lzma.LZMAError, EOFError) as error:
        reason = "wrong checksum (CRC)" if "data check" in str(error) or "length check" in str(error) else str(error)
        raise InputError(
            name, f"damaged {kind[1:]} file before byte offset {packed}: {reason}", fix="download or pack it again"
        ) from error


def _check_bomb(name: str, packed: int, unpacked: int) -> None:
    if unpacked > FREE_BYTES and unpacked > MAX_RATIO * packed:
        raise InputError(
            name,
            f"unpacks to more than {MAX_RATIO}:1 (limit beyond {FREE_BYTES >> 20} MiB): a decompression bomb?",
            f"{unpacked:,} bytes out of {packed:,}",
            "unpack it yourself if you trust it",
        )
    if unpacked > MAX_BYTES:
        raise InputError(name, f"unpacks to more than the limit of {MAX_BYTES >> 30} GiB", fix="split the file")
