"""The strict reader: what is well formed comes back exactly, what is not is named with its place."""

from __future__ import annotations

import csv
import gzip
import io
import json
import lzma
import os
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data import opening
from finetwo.data.source import find_files, read_all, read_rows

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
RECORDS = [{"prompt": "a\u2028b", "completion": "c\x00d"}, {"prompt": "é\U0001f600", "completion": ""}]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path: Path, notes: list[str] | None = None, **rows: Any) -> list[dict[str, object]]:
    said: list[str] = [] if notes is None else notes
    return [row.fields for row in read_rows(path, RowsConfig(**rows), said.append)]


def refusal(path: Path, **rows: Any) -> str:
    with pytest.raises(InputError) as caught:
        read(path, **rows)
    line = str(caught.value)
    assert "\n" not in line and "Fix: " in line
    return line.replace(str(path), path.name)


def refused(folder: Path, name: str, content: str | bytes, **rows: Any) -> str:
    return refusal(write(folder / name, content), **rows)


# --- what is well formed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("ascii_only", [True, False])
def test_json_and_jsonl_come_back_exactly(tmp_path: Path, indent: int | None, ascii_only: bool) -> None:
    array = write(tmp_path / "a.json", json.dumps(RECORDS, indent=indent, ensure_ascii=ascii_only))
    lines = write(tmp_path / "a.jsonl", "\r\n\n".join(json.dumps(r, ensure_ascii=ascii_only) for r in RECORDS))
    assert read(array) == read(lines) == RECORDS
    assert [row.line for row in read_rows(lines, RowsConfig())] == [1, 3]
    row = list(read_rows(array, RowsConfig()))[1]
    assert row.where == f"{array}:{6 if indent else 1}: record 2"


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_packed_files_read_as_unpacked(tmp_path: Path, pack: Any) -> None:
    raw = "\n".join(json.dumps(r) for r in RECORDS * 5000).encode()
    suffix = ".gz" if pack is gzip.compress else ".xz"
    two = write(tmp_path / f"a.jsonl{suffix}", pack(raw[:1000]) + pack(raw[1000:]) + b"\0" * 8)
    assert read(two) == RECORDS * 5000
    notes: list[str] = []
    assert len(read(write(tmp_path / "b.jsonl", pack(raw)), notes)) == 10_000
    assert f"packed as {suffix[1:]}" in notes[0]
    assert read(write(tmp_path / f"t.txt{suffix}", pack(b"x\r\ny\n"))) == [{"text": "x\r\ny\n"}]


TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=12) | st.sampled_from(['"', '"",\r\n"', "\n", "\t;"])


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=6), st.sampled_from([",", ";", "\t"]), st.booleans())
def test_csv_agrees_with_the_standard_library(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str, str]], delimiter: str, everything: bool
) -> None:
    out = io.StringIO()
    writer = csv.writer(out, delimiter=delimiter, quoting=csv.QUOTE_ALL if everything else csv.QUOTE_MINIMAL)
    writer.writerow(["a", "b", "c"])
    writer.writerows(cells)
    folder = tmp_path_factory.getbasetemp()
    path = write(folder / ("h.tsv" if delimiter == "\t" else "h.csv"), out.getvalue())
    got = read(path, delimiter=delimiter)
    assert got == list(csv.DictReader(io.StringIO(out.getvalue(), newline=""), delimiter=delimiter))
    assert got == [dict(zip("abc", row, strict=True)) for row in cells]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.dictionaries(TEXT, TEXT | st.integers() | st.none() | st.lists(TEXT)), min_size=1, max_size=6))
def test_json_agrees_with_the_standard_library(
    tmp_path_factory: pytest.TempPathFactory, records: list[dict[str, object]]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    assert read(write(folder / "h.json", json.dumps(records, ensure_ascii=False))) == records
    lines = "".join(json.dumps(r) + "\n" for r in records)
    assert read(write(folder / "h.jsonl", lines)) == [json.loads(line) for line in lines.split("\n")[:-1]]


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_pieces_of_any_size_read_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(opening, "CHUNK", chunk)
    records = [{"a": 'é\\"\u2028' * n, "b": [n, -1.5e3, True, None]} for n in range(20)]
    assert read(write(tmp_path / "a.json", json.dumps(records, indent=1))) == records
    assert read(write(tmp_path / "b.json", json.dumps(records, ensure_ascii=False))) == records
    assert read(write(tmp_path / "c.json.gz", gzip.compress(json.dumps(records).encode()))) == records
    assert read(write(tmp_path / "d.csv.xz", lzma.compress(b'a,b\r\n"x\r\n""y",z\r\n'))) == [{"a": 'x\r\n"y', "b": "z"}]


def test_a_json_array_takes_flat_memory(tmp_path: Path) -> None:
    path = tmp_path / "big.json"
    record = json.dumps({"prompt": "p" * 500, "completion": "c" * 500})
    with path.open("w") as file:
        file.write("[" + record)
        for _ in range(30):
            file.write(("," + record) * 1000)
        file.write("]")
    assert path.stat().st_size > 30_000_000
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(path, RowsConfig())) == 30_001
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000


def test_limit_takes_the_first_records(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a":"1"}\n{"a":"2"}\nnot json')
    assert read(path, limit=2) == [{"a": "1"}, {"a": "2"}]
    assert len(read_all([path, path], RowsConfig(limit=2))) == 2


def test_tsv_quotes_are_text_unless_the_whole_file_uses_them(tmp_path: Path) -> None:
    notes: list[str] = []
    glue = write(tmp_path / "glue.tsv", 'a\tb\nHe said "no".\t"It" is\n"open\tx\n')
    assert read(glue, notes) == [{"a": 'He said "no".', "b": '"It" is'}, {"a": '"open', "b": "x"}]
    assert "read as plain text" in notes[0]
    sheet = write(tmp_path / "sheet.tsv", 'a\tb\nx\t"one\ntwo ""2"""\n')
    assert read(sheet) == [{"a": "x", "b": 'one\ntwo "2"'}]


def test_an_index_column_and_a_delimiter_for_txt(tmp_path: Path) -> None:
    notes: list[str] = []
    assert read(write(tmp_path / "a.csv", ",q,a\n0,x,y\n"), notes) == [{"q": "x", "a": "y"}]
    assert "left out" in notes[0]
    assert read(write(tmp_path / "a.txt", "q;a\nx;y\n"), delimiter=";") == [{"q": "x", "a": "y"}]


PIECES = [
    *(b"[", b"]", b"{", b"}", b",", b":", b'"', b"\\", b"\n", b"\r", b"\t", b" ", b"1e", b"nul", b"NaN", b"\\ud83d"),
    *(
        b'{"a": "b"}',
        b'"a"',
        b"\xef\xbb\xbf",
        b"\xff\xfe",
        b"\xc3",
        b"\x00",
        "é\u2028".encode(),
        b"a,b\n",
        gzip.compress(b"{}"),
    ),
]


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=12).map(b"".join),
    st.sampled_from(["json", "jsonl", "csv", "tsv", "txt", "json.gz", "csv.xz", "what"]),
    st.sampled_from([lambda b: b, gzip.compress, lzma.compress]),
)
def test_any_bytes_give_records_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str, pack: Any
) -> None:
    path = write(tmp_path_factory.getbasetemp() / f"fuzz.{suffix}", pack(content))
    try:
        for fields in read(path):
            json.dumps(fields, ensure_ascii=False).encode()
    except InputError as error:
        assert "\n" not in str(error)
        assert str(path) in str(error)


# --- bad input, by the row of the list of bad inputs ------------------------------------------------------------------


def test_row_31_nothing_in_it(tmp_path: Path) -> None:
    write(tmp_path / "data.json", "[]")
    assert "no such file or folder" in refusal(tmp_path / "dat.json")
    assert "did you mean" in refusal(tmp_path / "dat.json")
    for name in ("e.json", "e.jsonl", "e.csv", "e.tsv", "e.txt", "e.gz"):
        assert f"{name}: 0 records: the file is empty" in refused(tmp_path, name, "")
    for name in ("b.json", "b.jsonl", "b.csv", "b.txt"):
        assert "0 records: only blank lines" in refused(tmp_path, name, "\n \n\r\n")
    assert "0 records: only a header line" in refused(tmp_path, "h.csv", "a,b\n")
    assert "0 records: the array is empty" in refused(tmp_path, "n.json", " [ ] ")
    assert "0 records" in refused(tmp_path, "z.jsonl.gz", gzip.compress(b""))


def test_row_32_a_pattern(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no file matches \(current folder: "):
        find_files(tmp_path / "*.jsonl")
    write(tmp_path / "b.jsonl", "{}")
    write(tmp_path / "a.jsonl", "{}")
    assert find_files(tmp_path / "*.jsonl") == {"train": [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]}


def test_row_33_invalid_json_names_line_and_column(tmp_path: Path) -> None:
    lines = ['{"a": "b"}'] * 1041 + ['{"a": \x07"b"}', '{"a": "b"}']
    line = refused(tmp_path, "a.jsonl", "\n".join(lines))
    assert line.startswith("a.jsonl:1042:7: record 1042: invalid JSON: expecting value")
    assert r'\x07"b"' in line
    line = refused(tmp_path, "a.json", '[\n  {"a": "b"},\n  {"a" "c"}\n]')
    assert line.startswith("a.json:3:8: record 2: invalid JSON: expecting ':' delimiter")
    big = '[{"a": "' + "x" * 600_000 + '"},\n {"a": "' + "y" * 600_000 + '", "b": tru},\n' + '{"a": 1},' * 90_000
    assert refused(tmp_path, "b.json", big).startswith("b.json:2:600017: record 2: invalid JSON: expecting value")
    for content, what in (
        ('[{"a": 1}', "should follow the record"),
        ('[{"a": 1},]', "a record is missing"),
        ('[{"a": 1},', "a record is missing"),
        ('[{"a": 1}] x', "text after the array's end"),
        ('[{"a": 1} {"a": 1}]', "should follow the record"),
        ('[{"a": "x', "unterminated string"),
        ('[{"a": "x\ny"}]', r"write \n"),
        ("<html>", "expecting value"),
    ):
        assert what in refused(tmp_path, "c.json", content), content
    assert "--rows.format json" in refused(tmp_path, "d.jsonl", '{"a":\n"b"}')
    assert "text after the object" in refused(tmp_path, "d.jsonl", '{"a": "b"},')


@pytest.mark.parametrize(
    ("value", "kind"), [("[1]", "a list"), ("7", "a number"), ('"x"', "text"), ("null", "null"), ("true", "true or")]
)
def test_row_34_a_record_must_be_an_object(tmp_path: Path, value: str, kind: str) -> None:
    line = refused(tmp_path, "a.jsonl", '{"a": "b"}\n' + value)
    assert line.startswith(f"a.jsonl:2:1: record 2: {kind}")
    assert refused(tmp_path, "a.json", f'[{{"a": 1}},\n{value}]').startswith(f"a.json:2:1: record 2: {kind}")


def test_row_35_array_and_lines_are_told_apart(tmp_path: Path) -> None:
    notes: list[str] = []
    assert read(write(tmp_path / "a.jsonl", '\n [{"a": "b"}]'), notes) == [{"a": "b"}]
    assert "--rows.format json" in notes[0]
    assert read(write(tmp_path / "a.json", '{"a": "b"}\n{"a": "c"}'), notes) == [{"a": "b"}, {"a": "c"}]
    assert "--rows.format jsonl" in notes[1]
    assert "--rows.format json" in refusal(tmp_path / "a.jsonl", format="jsonl")
    assert "field 'data' holds a list" in refused(tmp_path, "w.json", '{"version": 1, "data": [{"a": "b"}]}')
    assert "--rows.format" in refused(tmp_path, "a.what", "hello")
    assert read(write(tmp_path / "b.what", '[{"a": "b"}]')) == [{"a": "b"}]


def test_row_42_encodings(tmp_path: Path) -> None:
    line = refused(tmp_path, "a.csv", "q,a\nx,caf\xe9 \n".encode("latin-1"))
    assert "not UTF-8 at byte offset 9 (line 2); it looks like latin-1 (got byte 0xe9)" in line
    assert "--rows.encoding latin-1" in line
    assert "it looks like cp1252" in refused(tmp_path, "b.txt", b"a" * 300_000 + b"\x93quoted\x94")
    assert "byte offset 300000" in refusal(tmp_path / "b.txt")
    assert "the last character is cut off" in refused(tmp_path, "c.txt", "aé".encode()[:-1])
    for encoding in ("utf-16", "utf-16-le", "utf-16-be"):
        path = write(tmp_path / "u.jsonl", '{"a": "é"}\n'.encode(encoding))
        assert "--rows.encoding utf-16" in refusal(path)
        assert read(path, encoding=encoding) == [{"a": "é"}]
    assert "not a text encoding" in refusal(path, encoding="hex")
    assert "not a text encoding" in refusal(path, encoding="klingon")
    assert "not ASCII at byte offset 1" in refused(tmp_path, "d.txt", "aé", encoding="ascii")


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.txt"])
def test_row_43_byte_order_mark(tmp_path: Path, name: str) -> None:
    content = {"a.csv": "a\nb", "a.txt": "b"}.get(name, '[{"a": "b"}]')
    notes: list[str] = []
    (fields,) = read(write(tmp_path / name, "\ufeff" + content), notes)
    assert list(fields.values()) == ["b"]
    assert any("byte order mark" in note for note in notes)


def test_row_44_surrogates_and_odd_characters(tmp_path: Path) -> None:
    line = refused(tmp_path, "a.jsonl", '{"a": "b"}\n{"prompt": "\\ud83d"}')
    assert line.startswith("a.jsonl:2:1: record 2: field 'prompt' holds the lone surrogate")
    assert "ud83d" in line
    assert "lone surrogate" in refused(tmp_path, "b.json", '[{"a": {"b": ["\\uDE00"]}}]')
    odd = "a\u2028b\u2029c\x0bd\x0ce\x85f\x1cg"
    assert read(write(tmp_path / "c.jsonl", json.dumps({"a": "NUL\x00"}) + "\n" + f'{{"a": "{odd[:5]}"}}')) == [
        {"a": "NUL\x00"},
        {"a": odd[:5]},
    ]
    assert read(write(tmp_path / "d.csv", f"a,b\n{odd},\x00\n")) == [{"a": odd, "b": "\x00"}]
    assert read(write(tmp_path / "e.txt", odd + "\x00\r\n")) == [{"text": odd + "\x00\r\n"}]


def test_rows_45_and_46_duplicate_keys_and_constants(tmp_path: Path) -> None:
    line = refused(tmp_path, "a.jsonl", '{"a": "b"}\n{"a": "1", "b": "2", "a": "3"}')
    assert line.startswith("a.jsonl:2:1: record 2: duplicate key 'a'")
    line = refused(tmp_path, "b.json", '[\n{\n"a": "NaN",\n"b": NaN}]')
    assert line.startswith("b.json:4:6: record 1: NaN is not a JSON value")
    assert "-Infinity is not a JSON value" in refused(tmp_path, "c.jsonl", '{"a": -Infinity}')
    assert "too large" in refused(tmp_path, "d.jsonl", '{"a": 1e999}')
    assert "5,000 digits" in refused(tmp_path, "d.jsonl", '{"a": ' + "1" * 5000 + "}")


def test_row_47_limits(tmp_path: Path) -> None:
    for content in ('{"a": ' + "[" * 100_000, '{"a": ' + "[" * 64 + "]" * 64 + "}"):
        assert "a.jsonl:1:1: record 1: nested deeper than the limit of 64" in refused(tmp_path, "a.jsonl", content)
        assert "nested deeper than the limit of 64" in refused(tmp_path, "a.json", "[" + content)
    assert read(write(tmp_path / "b.jsonl", '{"a": ' + "[" * 63 + "]" * 63 + "}"))
    long = gzip.compress(b'{"a": "' + b"x" * (18 << 20) + b'"}', 1)
    assert "a.jsonl.gz:1: the line is longer than the limit of 16 MiB" in refused(tmp_path, "a.jsonl.gz", long)
    assert "record 1 is longer than the limit of 16 MiB" in refused(tmp_path, "a.json.gz", long)
    quoted = gzip.compress(b'a\n"' + b"x\n" * (18 << 19), 1)
    assert "c.csv.gz:2:1: the quoted field that opens here" in refused(tmp_path, "c.csv.gz", quoted)


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress])
def test_row_48_damaged_packed_files(tmp_path: Path, pack: Any) -> None:
    name = "a.jsonl.gz" if pack is gzip.compress else "a.jsonl.xz"
    good = pack("".join(f'{{"a": "{zlib.crc32(bytes([i % 256]))}"}}\n' for i in range(999)).encode())
    assert f"ends at byte offset {len(good) - 5}" in refused(tmp_path, name, good[:-5])
    assert f"trailing garbage after the {name[-2:]} data at byte offset {len(good)}" in refused(
        tmp_path, name, good + b"garbage"
    )
    at = len(good) - 6 if pack is gzip.compress else len(good) // 2
    bad = good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :]
    assert f"damaged {name[-2:]} file" in refused(tmp_path, name, bad)
    assert "the content is not" in refused(tmp_path, name, '{"a": "b"}')
    if pack is gzip.compress:
        assert "wrong checksum (CRC)" in refused(tmp_path, name, bad)


def test_row_48_a_bomb_stops_at_the_ratio(tmp_path: Path) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = b" " * (1 << 20)
    bomb = packer.compress(b"[") + b"".join(packer.compress(block) for _ in range(100)) + packer.flush()
    tracemalloc.start()
    try:
        line = refused(tmp_path, "a.json.gz", bomb)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "unpacks to more than 1000:1 (limit beyond 64 MiB)" in line
    assert peak < 16_000_000


def test_row_48_a_flood_of_blank_lines_is_refused_before_it_is_counted(tmp_path: Path) -> None:
    """64 MiB of line ends took a minute to be found a bomb."""
    line = refused(tmp_path, "a.jsonl.gz", gzip.compress(b"\n" * (3 << 20)))
    assert "begins with more than 1 MiB of white space" in line


def test_row_50_files_that_are_never_read(tmp_path: Path) -> None:
    for name in ("a.npy", "a.npz"):
        line = refused(tmp_path, name, "x")
        assert "pickle, which can run code" in line
        assert "Fix: where you trust it, load it in Python (numpy.load)" in line
    for name in ("a.pkl", "a.pt", "a.joblib", "a.bin", "a.pkl.gz"):
        line = refused(tmp_path, name, "x")
        assert "pickle can run code" in line
        assert "Fix: finetwo convert FILE OUT.jsonl" in line
    for name in ("a.zip", "a.tar", "a.tar.gz"):
        assert "an archive is not a data file" in refused(tmp_path, name, "x")
    assert "pickle can run code" in refused(tmp_path, "a.json", b"\x80\x04\x95abc")
    assert "pickle can run code" in refused(tmp_path, "a.jsonl.gz", gzip.compress(b"\x80\x04\x95abc"))
    assert "git lfs pull" in refused(tmp_path, "a.json", "version https://git-lfs.github.com/spec/v1\n")
    assert read(write(tmp_path / "my.bin.jsonl", '{"a": "b"}')) == [{"a": "b"}]


def test_row_51_csv(tmp_path: Path) -> None:
    assert "--rows.delimiter ';'" in refused(tmp_path, "a.csv", "prompt;completion\nx;y\n")
    ragged = "a,b\n" + "1,2\n" * 86 + "1,2,3\n"
    assert refused(tmp_path, "b.csv", ragged).startswith("b.csv:88: record 87 has 3 fields, the header has 2")
    line = refused(tmp_path, "c.csv", 'a,b\n1,2\n3,"open\n' + "5,6\n" * 9)
    assert line.startswith("c.csv:3:3: the quote that opens here is never closed")
    assert "no header" in refused(tmp_path, "d.csv", "1,2\n3,4\n")
    assert "duplicate column name 'a' (columns 1 and 3)" in refused(tmp_path, "e.csv", "a,b,a\n1,2,3\n")
    assert "column 2 of the header has no name" in refused(tmp_path, "f.csv", "a,,c\n1,2,3\n")
    assert "g.csv:2:4: text after a closing quote" in refused(tmp_path, "g.csv", 'a,b\n"x"y,z\n')
    assert "carriage return" in refused(tmp_path, "h.csv", "a,b\r1,2\r")
    assert "ragged.tsv:2: record 1 has 3" in refused(tmp_path, "ragged.tsv", "a\tb\n1\t2\t3\n")
    assert "has no meaning" in refused(tmp_path, "i.json", '[{"a": "b"}]', delimiter=";")
    assert "cannot be a quote" in refused(tmp_path, "j.csv", "a\nb\n", delimiter='"')


def test_row_58_a_file_that_changes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": "b"}\n{"a": "c"}\n')
    reader = read_rows(path, RowsConfig())
    next(reader)
    with path.open("a") as file:
        file.write('{"a": "d"}\n')
    with pytest.raises(InputError, match="changed while it was being read"):
        list(reader)
    reader = read_rows(path, RowsConfig())
    next(reader)
    os.replace(write(tmp_path / "new", path.read_bytes()), path)
    with pytest.raises(InputError, match="changed while it was being read"):
        list(reader)


def test_rows_8_and_60_not_a_regular_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.json")
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "loop.json").symlink_to("loop.json")
    (tmp_path / "broken.json").symlink_to("nothing.json")
    assert "not a regular file (got a pipe" in refusal(tmp_path / "pipe.json")
    assert "not a regular file (got a folder" in refusal(tmp_path / "folder.json")
    assert "not a regular file" in refusal(Path("/dev/zero"), format="jsonl")
    assert "symbolic links" in refusal(tmp_path / "loop.json")
    assert "a symbolic link to something that is not there (got nothing.json)" in refusal(tmp_path / "broken.json")
    assert "not a usable path" in refusal(tmp_path / "nul\x00.json")
    assert "name too long" in refusal(tmp_path / ("x" * 300)).lower()


# --- finding the files ------------------------------------------------------------------------------------------------


def test_find_files_in_a_folder(tmp_path: Path) -> None:
    for name in ("train.jsonl.gz", "val.csv", "test.tsv", "README.md", "notes.txt"):
        write(tmp_path / name, "x")
    assert {split: [p.name for p in paths] for split, paths in find_files(tmp_path).items()} == {
        "train": ["train.jsonl.gz"],
        "validation": ["val.csv"],
        "test": ["test.tsv"],
    }
    write(tmp_path / "dev.csv", "x")
    with pytest.raises(InputError, match=r"two files for validation: dev\.csv and val\.csv"):
        find_files(tmp_path)
    books = tmp_path / "books"
    books.mkdir()
    with pytest.raises(InputError, match=r"looked for train\.\*.*no files"):
        find_files(books)
    assert find_files(write(books / "b.txt", "x")) == {"train": [books / "b.txt"]}
    write(books / "a.txt", "x")
    assert find_files(books) == {"all": [books / "a.txt", books / "b.txt"]}
    write(books / "c.json", "x")
    with pytest.raises(InputError, match="no data found"):
        find_files(books)


@pytest.mark.parametrize(
    ("name", "count", "fields"),
    [
        ("alpaca_data.json", 52_002, ["instruction", "input", "output"]),
        ("databricks-dolly-15k.jsonl", 15_011, ["instruction", "context", "response", "category"]),
        ("instruction-data.json", 1_100, ["instruction", "input", "output"]),
    ],
)
def test_the_real_files(name: str, count: int, fields: list[str]) -> None:
    path = SHARED / "instruct" / name
    if not path.is_file():
        pytest.skip("shared data not present")
    rows = list(read_rows(path, RowsConfig()))
    assert [row.number for row in rows] == list(range(1, count + 1))
    assert {tuple(row.fields) for row in rows} == {tuple(fields)}
    whole = path.read_text(encoding="utf-8")
    expected = json.loads(whole) if name.endswith(".json") else [json.loads(x) for x in whole.split("\n") if x]
    assert [row.fields for row in rows] == expected


# --- columns of a file without a header line -------------------------------------------------------------------------


def test_names_stand_for_a_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "i feel fine;joy\n7;sadness\n")
    rows = list(read_rows(path, RowsConfig(format="csv", delimiter=";", names="text, label")))
    assert [row.fields for row in rows] == [{"text": "i feel fine", "label": "joy"}, {"text": "7", "label": "sadness"}]
    assert [row.where for row in rows] == [f"{path}:1: record 1", f"{path}:2: record 2"]
    assert read(path, delimiter=";", names="text,label") == [row.fields for row in rows]
    tab = write(tmp_path / "a.tsv", 'He said "no".\t0\n"open\t1\n')
    assert read(tab, names="text,label") == [{"text": 'He said "no".', "label": "0"}, {"text": '"open', "label": "1"}]
    assert read(write(tmp_path / "b.tsv", '"one\ntwo"\tx\n'), names="a,b") == [{"a": "one\ntwo", "b": "x"}]


def test_names_that_do_not_fit(tmp_path: Path) -> None:
    line = refused(tmp_path, "a.csv", "x,y,z\n", names="text,label")
    assert "a.csv:1: record 1 has 3 fields, --rows.names has 2" in line
    assert "check --rows.delimiter and --rows.names" in line
    line = refused(tmp_path, "b.csv", "Text,label\nx,y\n", names="text,label")
    assert "b.csv:1: the first line holds the names of the columns itself" in line
    for name in ("c.json", "c.txt", "c.jsonl"):
        assert "--rows.names: has no meaning" in refused(tmp_path, name, '{"a": "b"}', names="a")
    for names in ("", "a,", "a,a", " , "):
        assert "--rows.names: must be different names, none empty" in refused(tmp_path, "d.csv", "x\n", names=names)
    assert "--rows.names prompt,completion" in refused(tmp_path, "e.csv", "1,2\n3,4\n")
    assert "0 records" in refused(tmp_path, "f.csv", "", names="a")


def test_a_folder_like_the_emotion_set(tmp_path: Path) -> None:
    for name, count in (("train", 3), ("val", 2), ("test", 1)):
        write(tmp_path / f"{name}.txt", "text;label\n" + "i feel fine;joy\n" * count)
    rows = RowsConfig(format="csv", delimiter=";")
    assert {split: len(read_all(files, rows)) for split, files in find_files(tmp_path).items()} == {
        "train": 3,
        "validation": 2,
        "test": 1,
    }


def test_columns_without_a_name_at_the_end_are_left_out(tmp_path: Path) -> None:
    """Spreadsheets leave them behind; a well-known file of spam begins with v1,v2,,,."""
    path = tmp_path / "spam.csv"
    path.write_text("v1,v2,,,\nham,hello there,,,\nspam,win,now,,\n", encoding="utf-8")
    notes: list[str] = []
    rows = [row.fields for row in read_rows(path, RowsConfig(), notes.append)]
    assert rows == [{"v1": "ham", "v2": "hello there"}, {"v1": "spam", "v2": "win"}]
    assert any("the last columns have no name" in note for note in notes)
    path.write_text("a,,b\n1,2,3\n", encoding="utf-8")
    with pytest.raises(InputError, match="column 2 of the header has no name"):
        list(read_rows(path, RowsConfig()))
