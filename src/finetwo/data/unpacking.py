"""Unpacks gzip and xz as a stream, within limits.

It knows nothing of files on disk or of what is packed. Its invariant: what it yields is the exact content, verified by
the checksums of its format, or an error that names the offset; and never more than the limits allow.
"""

from __future__ import annotations

import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Protocol

from finetwo.core.errors import InputError

MAX_RATIO = 1000
"""Unpacked bytes allowed for each packed byte, once `FREE_BYTES` are out."""
FREE_BYTES = 64 << 20
"""Unpacked bytes that are allowed at any ratio."""
MAX_BYTES = 64 << 30
"""Unpacked bytes allowed in all."""

_XZ_MEMORY = 256 << 20


class _Coder(Protocol):
    eof: bool
    hungry: bool
    rest: bytes

    def step(self, data: bytes) -> bytes: ...


class _Gzip:
    def __init__(self, most: int) -> None:
        self._most = most
        self._coder = zlib.decompressobj(31)
        self.eof, self.hungry, self.rest = False, True, b""

    def step(self, data: bytes) -> bytes:
        piece = self._coder.decompress(self._coder.unconsumed_tail + data, self._most)
        self.eof, self.rest = self._coder.eof, self._coder.unused_data
        self.hungry = not self._coder.unconsumed_tail and len(piece) < self._most
        return piece


class _Xz:
    def __init__(self, most: int) -> None:
        self._most = most
        self._coder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
        self.eof, self.hungry, self.rest = False, True, b""

    def step(self, data: bytes) -> bytes:
        piece = self._coder.decompress(data, self._most)
        self.eof, self.hungry = self._coder.eof, self._coder.eof or self._coder.needs_input
        self.rest = self._coder.unused_data
        return piece


_CODERS: dict[str, tuple[bytes, Callable[[int], _Coder]]] = {
    ".gz": (b"\x1f\x8b", _Gzip),
    ".xz": (b"\xfd7zXZ\x00", _Xz),
}


def packed_kind(head: bytes) -> str | None:
    """Return '.gz' or '.xz' when a file that begins with `head` is so packed."""
    return next((kind for kind, (magic, _) in _CODERS.items() if head.startswith(magic)), None)


def unpack(raw: Iterator[bytes], kind: str, name: str, most: int) -> Iterator[bytes]:
    """Yield the unpacked content of one or several members, at most `most` bytes at a time; zeros may follow each.

    Raises:
        InputError: damaged, truncated, followed by something else, or a bomb; names the file, offset and limit.
    """
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
                coder = new(most)
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
