"""Tensor files in the safetensors format: one canonical writer, one strict reader.

It knows names, dtypes, shapes and bytes, and must not know what a tensor is for. Its one invariant: equal content
gives equal bytes, and nothing is allocated for a file before its whole header has been checked against its size.

Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import sys
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetwo.core.errors import InputError, shown
from finetwo.core.files import faults, replacing, require_file
from finetwo.core.strict_json import parse_json

MAX_HEADER = 16 * 1024 * 1024
"""Longest header accepted, in bytes; GPT-2 XL needs about 60 kB."""
MAX_TENSORS = 100_000

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_DIMENSIONS = 16
_MAX_ELEMENTS = 2**48


@dataclass(frozen=True)
class Entry:
    """One tensor of a file: dtype, shape and where its bytes lie, `begin` to `end` counted from the file's start."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """The checked header of a tensor file: its tensors by name, and its string metadata."""

    entries: dict[str, Entry]
    metadata: dict[str, str]


@dataclass(frozen=True)
class Written:
    """What was written: size in bytes and SHA-256 in hexadecimal."""

    size: int
    sha256: str


# --- writing ----------------------------------------------------------------------------------------------------


def size_of(tensors: Mapping[str, Tensor]) -> int:
    """Return the bytes that the values of `tensors` take in a file, header not counted."""
    return sum(t.numel() * t.element_size() for t in tensors.values())


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> Written:
    """Write `tensors` to `path`, atomically and durably; equal content gives equal bytes.

    The header's keys are sorted. Data lie by falling element size, then name, so that each tensor is aligned, as the
    safetensors library lays them out and expects. Tensors of any device; copied to the CPU one at a time.
    Raises EnvironmentFault where the disk refuses, TypeError for a dtype the format does not name.
    """
    if sys.byteorder != "little":
        raise NotImplementedError("tensor files are little-endian, and so must be the machine")
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    head = _header_bytes(tensors, order, metadata)
    digest, size = hashlib.sha256(), 0
    with replacing(Path(path), len(head) + size_of(tensors)) as file:
        file.write(head)
        digest.update(head)
        size += len(head)
        for name in order:
            data = _bytes_of(tensors[name])
            file.write(data)
            digest.update(data)
            size += len(data)
    return Written(size, digest.hexdigest())


def _header_bytes(tensors: Mapping[str, Tensor], order: list[str], metadata: Mapping[str, str] | None) -> bytes:
    """Return length, JSON and padding: the data begin at a multiple of 8 bytes."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name in order:
        tensor = tensors[name]
        if tensor.dtype not in _NAMES or name == "__metadata__":
            raise TypeError(f"cannot write tensor {name!r} of {tensor.dtype}")
        end = at + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _bytes_of(tensor: Tensor) -> memoryview:
    flat = tensor.detach().to("cpu").contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")


# --- reading ----------------------------------------------------------------------------------------------------


def read_header(path: Path) -> Header:
    """Return the header of the tensor file `path`, checked in full against the file's size.

    Raises InputError naming the tensor and the offset, or the kind of file it is instead (a Git LFS pointer, a web
    page, a pickle, an empty file).
    """
    path, size = Path(path), require_file(Path(path))
    with faults(path), path.open("rb") as file:
        start = file.read(512)
        _refuse_other_kinds(path, start)
        if size < 8:
            raise _broken(path, "file too short for a header length", f"{size} bytes, at offset 0")
        length = struct.unpack("<Q", start[:8])[0]
        if length > MAX_HEADER:
            raise _broken(path, f"header longer than {MAX_HEADER:,} bytes", f"{length:,}, at offset 0")
        if length > size - 8:
            raise _broken(path, "header reaches past the end of the file", f"{length:,} of {size - 8:,} bytes")
        file.seek(8)
        data = file.read(length)
    if len(data) != length:
        raise _broken(path, "file changed while it was read", f"{len(data):,} of {length:,} header bytes")
    return _parse_header(path, data, size - 8 - length)


def _broken(path: Path, what: str, got: object = None, tensor: str | None = None) -> InputError:
    where = str(path) if tensor is None else f"{path}: {shown(tensor, 100)}"
    return InputError(where, what, got, "fetch or write the file again")


def _refuse_other_kinds(path: Path, start: bytes) -> None:
    """Name the usual things that are found in the place of a tensor file."""
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        raise _broken(path, "file is empty", "0 bytes")
    if start.startswith(b"version https://git-lfs"):
        raise InputError(str(path), "this is a Git LFS pointer, not the weights", fix="run git lfs pull")
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise InputError(str(path), "this is a web page, not the weights", fix="download the raw file")
    if start.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")) and start[8:9] != b"{":
        raise InputError(str(path), "this is a pickle, which can run code", fix="convert it to safetensors")


def _parse_header(path: Path, data: bytes, room: int) -> Header:
    """Check the header JSON `data` against `room`, the bytes that follow it."""
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _broken(path, "header is not valid UTF-8", f"offset {8 + error.start}") from error
    if not text.startswith("{"):
        raise _broken(path, "header is not a JSON object", text[:20])
    tables = text.count("{")
    if tables > MAX_TENSORS + 2:  # told before the parser makes objects of them
        raise _broken(path, f"more than {MAX_TENSORS:,} tensors", f"{tables:,}")
    if text.count(",") > 10_000 + (_MAX_DIMENSIONS + 4) * tables:
        raise _broken(path, "header holds more values than its tensors need", f"{text.count(','):,}")
    raw = parse_json(text, str(path), max_depth=4)
    metadata = raw.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _broken(path, "metadata must map strings to strings", tensor="__metadata__")
    start = 8 + len(data)
    entries = {name: _entry(path, name, item, start, room) for name, item in raw.items()}
    _check_cover(path, entries, start, room)
    return Header(entries, metadata)


def _natural(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _entry(path: Path, name: str, item: object, start: int, room: int) -> Entry:
    """Return one tensor's entry, its dtype, shape and offsets in agreement."""
    if not isinstance(item, dict) or set(item) != {"dtype", "shape", "data_offsets"}:
        got = sorted(item) if isinstance(item, dict) else item
        raise _broken(path, "must have exactly dtype, shape and data_offsets", got, name)
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise InputError(f"{path}: {shown(name, 100)}", "unknown dtype", dtype, f"known are {', '.join(_DTYPES)}")
    if not isinstance(shape, list) or len(shape) > _MAX_DIMENSIONS or not all(map(_natural, shape)):
        raise _broken(path, "shape must be a short list of natural numbers", shape, name)
    if math.prod(n for n in shape if n) > _MAX_ELEMENTS:
        raise _broken(path, "shape overflows", shape, name)
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_natural, offsets)):
        raise _broken(path, "data_offsets must be two natural numbers", offsets, name)
    begin, end = offsets
    if begin > end:
        raise _broken(path, "data_offsets are reversed", offsets, name)
    if end > room:
        raise _broken(path, "data reach past the end of the file", f"offset {start + end:,} of {start + room:,}", name)
    needed = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != needed:
        raise _broken(path, f"{dtype} of shape {shape} takes {needed:,} bytes", f"{end - begin:,}", name)
    return Entry(_DTYPES[dtype], tuple(shape), start + begin, start + end)


def _check_cover(path: Path, entries: Mapping[str, Entry], start: int, room: int) -> None:
    """The tensors must follow each other without gap or overlap, to the file's last byte."""
    at = start
    for name, entry in sorted(entries.items(), key=lambda pair: (pair[1].begin, pair[1].end)):
        if entry.begin != at:
            kind = "overlaps the tensor before it" if entry.begin < at else "leaves a gap before it"
            raise _broken(path, kind, f"offset {entry.begin:,}, expected {at:,}", name)
        at = entry.end
    if at != start + room:
        raise _broken(path, "trailing bytes after the last tensor", f"{start + room - at:,} from offset {at:,}")


def read_tensors(path: Path, names: Collection[str] | None = None) -> dict[str, Tensor]:
    """Return the tensors of `path` on the CPU, all or those of `names`, in the order of their names.

    Raises InputError as `read_header` does, and for a name the file does not hold.
    """
    path, header = Path(path), read_header(path)
    wanted = sorted(header.entries if names is None else names)
    for name in wanted:
        if name not in header.entries:
            raise InputError(str(path), "tensor missing", name)
    with faults(path), path.open("rb", buffering=0) as file:
        return {name: _read_one(path, file, name, header.entries[name]) for name in wanted}


def _read_one(path: Path, file: FileIO, name: str, entry: Entry) -> Tensor:
    """Read into memory of our own, not a map: a file cut short meanwhile is an error then, not a crash."""
    data = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
    view, at = data.numpy().data, 0
    file.seek(entry.begin)
    while at < len(view):
        got = file.readinto(view[at : at + 2**30])
        if not got:
            raise _broken(path, "file changed while it was read", f"ends at offset {entry.begin + at:,}", name)
        at += got
    if entry.dtype == torch.bool and data.numel() and int(data.max()) > 1:
        raise _broken(path, "a BOOL must be 0 or 1", int(data.max()), name)
    return data.view(entry.dtype).reshape(entry.shape)
