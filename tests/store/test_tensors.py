"""Tensor files: canonical bytes out, nothing but the strictest in."""

from __future__ import annotations

import json
import struct
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from finetwo.core.errors import FineTwoError, InputError
from finetwo.store.tensors import read_header, read_tensors, size_of, write_tensors


def sample() -> dict[str, Tensor]:
    """Return one tensor of every dtype and of the awkward shapes."""
    torch.manual_seed(0)
    floats = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
    dtypes = (*floats, torch.int64, torch.int32, torch.int16, torch.int8, torch.bool)
    many = {str(dtype).removeprefix("torch."): (torch.randn(3, 5) * 9).to(dtype) for dtype in dtypes}
    odd = {"u8.odd": torch.arange(7, dtype=torch.uint8), "scalar": torch.tensor(2.5), "empty": torch.empty(0, 4)}
    return {**many, **odd, "é\n": torch.ones(2), "transposed": torch.randn(4, 3).t()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def raw(header: object, data: bytes = b"") -> bytes:
    """Return a file with `header` (bytes, text or a JSON value) as it is."""
    if not isinstance(header, (bytes, str)):
        header = json.dumps(header)
    text = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(text)) + text + data


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def test_both_ways_with_the_library(tmp_path: Path) -> None:
    tensors = sample()
    write_tensors(tmp_path / "ours", tensors, {"format": "pt"})
    assert equal(load_file(tmp_path / "ours"), tensors)
    assert equal(read_tensors(tmp_path / "ours"), tensors)
    save_file({k: v.contiguous() for k, v in tensors.items()}, tmp_path / "theirs", {"format": "pt"})
    assert equal(read_tensors(tmp_path / "theirs"), tensors)
    assert read_header(tmp_path / "theirs").metadata == read_header(tmp_path / "ours").metadata == {"format": "pt"}


def test_equal_content_gives_equal_bytes(tmp_path: Path) -> None:
    tensors = sample()
    first = write_tensors(tmp_path / "a", tensors, {"b": "1", "a": "2"})
    again = write_tensors(tmp_path / "b", dict(reversed(read_tensors(tmp_path / "a").items())), {"a": "2", "b": "1"})
    data = (tmp_path / "a").read_bytes()
    assert first == again
    assert data == (tmp_path / "b").read_bytes()
    assert first.size == len(data)
    length = struct.unpack("<Q", data[:8])[0]
    assert length % 8 == 0
    keys = list(json.loads(data[8 : 8 + length]))
    assert keys == sorted(keys)
    assert len(data) == 8 + length + size_of(tensors)
    for item in read_header(tmp_path / "a").entries.values():
        assert item.begin % item.dtype.itemsize == 0


def test_some_names_only(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", sample())
    assert list(read_tensors(tmp_path / "a", ["scalar"])) == ["scalar"]
    with pytest.raises(InputError, match=r"tensor missing \(got other\)"):
        read_tensors(tmp_path / "a", ["other"])
    write_tensors(tmp_path / "none", {})
    assert read_tensors(tmp_path / "none") == {}
    with pytest.raises(TypeError):
        write_tensors(tmp_path / "none", {"c": torch.zeros(2, dtype=torch.complex64)})


GOOD = entry()
HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "file is empty"),
    "short": (b"\1\0\0", "too short for a header length"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer.*Fix: run git lfs pull"),
    "html": (b"\n<!DOCTYPE html><html>", "web page"),
    "zip": (b"PK\x03\x04" + bytes(60), "pickle, which can run code"),
    "pickle": (b"\x80\x04\x95" + bytes(60), "pickle, which can run code"),
    "header past the end": (struct.pack("<Q", 100) + b"{}", "past the end of the file.*100 of 2"),
    "header huge": (struct.pack("<Q", 2**63) + b"{}", "longer than 16,777,216"),
    "not utf-8": (raw(b'{"\xff": 1}'), "not valid UTF-8.*offset 10"),
    "not json": (raw('{"a": '), "not valid JSON"),
    "zero header": (raw(""), "not a JSON object"),
    "array": (raw("[]"), "not a JSON object"),
    "leading space": (raw(" {}"), "not a JSON object"),
    "duplicate": (raw('{"a":%s,"a":%s}' % ((json.dumps(GOOD),) * 2), bytes(8)), 'duplicate key "a"'),
    "duplicate inside": (raw('{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', bytes(8)), "dupl"),
    "nan": (raw('{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)), "NaN"),
    "deep": (raw('{"a":' + "[" * 100_000), "nested deeper"),
    "metadata": (raw({"__metadata__": {"a": 1}}), "__metadata__: metadata must map strings"),
    "entry a list": (raw({"w": [1]}), "w: must have exactly"),
    "entry extra": (raw({"w": {**GOOD, "x": 1}}, bytes(8)), "w: must have exactly"),
    "dtype": (raw({"w": entry("F8_E4M3", [8])}, bytes(8)), r"w: unknown dtype \(got F8_E4M3\)"),
    "dtype a list": (raw({"w": entry(["F32"])}, bytes(8)), "w: unknown dtype"),
    "shape negative": (raw({"w": entry(shape=[-2])}, bytes(8)), "w: shape must be"),
    "shape true": (raw({"w": entry(shape=[True, 2])}, bytes(8)), "w: shape must be"),
    "shape float": (raw({"w": entry(shape=[2.0])}, bytes(8)), "w: shape must be"),
    "shape text": (raw({"w": entry(shape="2")}, bytes(8)), "w: shape must be"),
    "shape of 17": (raw({"w": entry(shape=[1] * 16 + [2])}, bytes(8)), "w: shape must be"),
    "shape overflows": (raw({"w": entry(shape=[2**62, 2**62, 4])}, bytes(8)), "w: shape overflows"),
    "zero-size trick": (raw({"w": entry(shape=[0, 2**62, 2**62], offsets=[0, 0])}), "w: shape overflows"),
    "size": (raw({"w": entry(shape=[3])}, bytes(8)), r"w: F32 of shape \[3\] takes 12 bytes \(got 8\)"),
    "offsets three": (raw({"w": entry(offsets=[0, 4, 8])}, bytes(8)), "w: data_offsets must be two"),
    "offsets negative": (raw({"w": entry(offsets=[-8, 0])}, bytes(8)), "w: data_offsets must be two"),
    "reversed": (raw({"w": entry(offsets=[8, 0])}, bytes(8)), "w: data_offsets are reversed"),
    "past the end": (raw({"w": entry(offsets=[8, 16])}, bytes(8)), "w: data reach past the end of the file"),
    "gap first": (raw({"w": entry(offsets=[4, 12])}, bytes(12)), "w: leaves a gap"),
    "gap": (raw({"a": GOOD, "w": entry(offsets=[12, 20])}, bytes(20)), "w: leaves a gap"),
    "overlap": (raw({"a": GOOD, "w": entry(offsets=[4, 12])}, bytes(12)), "w: overlaps"),
    "same place": (raw({"a": GOOD, "w": GOOD}, bytes(8)), "w: overlaps"),
    "zero inside": (raw({"a": GOOD, "w": entry(shape=[0], offsets=[4, 4])}, bytes(8)), "w: overlaps"),
    "trailing": (raw({"w": GOOD}, bytes(9)), "trailing bytes after the last tensor.*1 from offset"),
    "only trailing": (raw({}, bytes(3)), "trailing bytes"),
    "bool of 2": (raw({"w": entry("BOOL", [1], [0, 1])}, b"\2"), "w: a BOOL must be 0 or 1"),
    "too many": (raw("{" + ",".join(f'"{i}":{{}}' for i in range(100_003)) + "}"), "more than 100,000 tensors"),
    "too much": (raw('{"a":[' + "0," * 100_000 + "0]}"), "more values than its tensors need"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_files(kind: str, tmp_path: Path) -> None:
    data, text = HOSTILE[kind]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(InputError, match=text) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_every_truncation_and_every_appended_byte_is_found(tmp_path: Path) -> None:
    write_tensors(tmp_path / "a", {"w": torch.randn(3), "b": torch.tensor([True])})
    data, path = (tmp_path / "a").read_bytes(), tmp_path / "b"
    for cut in [*(data[:n] for n in range(len(data))), data + b"\0", data + b" "]:
        path.write_bytes(cut)
        with pytest.raises(InputError):
            read_tensors(path)


@pytest.mark.parametrize("kind", ["missing", "folder", "device"])
def test_not_a_file(kind: str, tmp_path: Path) -> None:
    path = {"missing": tmp_path / "x", "folder": tmp_path, "device": Path("/dev/zero")}[kind]
    with pytest.raises(InputError, match=r"no such file|not a regular file"):
        read_tensors(path)


SMALL = st.integers(-1, 40)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "U8", "BOOL", "F99"]),
        "shape": st.lists(st.integers(-1, 5) | st.just(2**62), max_size=3),
        "data_offsets": st.lists(SMALL, min_size=1, max_size=3),
    }
)
HEADERS = st.dictionaries(st.text(max_size=3), ENTRIES | st.integers(), max_size=3) | st.lists(st.integers())


@settings(max_examples=300, deadline=1000)
@given(HEADERS, st.integers(0, 40), st.integers(-2, 2))
def test_any_header_is_read_or_refused(header: object, size: int, shift: int) -> None:
    data = raw(header, bytes(size))
    check(struct.pack("<Q", max(0, struct.unpack("<Q", data[:8])[0] + shift)) + data[8:])


@settings(max_examples=300, deadline=1000)
@given(st.data())
def test_any_mutation_is_read_or_refused(data: st.DataObject) -> None:
    good = bytearray(raw({"a": entry(), "b": entry("U8", [3], [8, 11])}, bytes(11)))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    check(bytes(good))


def check(data: bytes) -> None:
    """Read `data`; what is accepted must cover the file, and the library must agree."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x"
        path.write_bytes(data)
        try:
            ours = read_tensors(path)
        except FineTwoError:
            return
        length = struct.unpack("<Q", data[:8])[0]
        assert size_of(ours) == len(data) - 8 - length
        assert load_file(path).keys() == ours.keys()
