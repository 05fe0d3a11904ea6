"""Documents in pieces: what is told of a text is that of the whole, and one that is cut is all there."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.standins.models import TEXT

from finetwo.core.config import ColumnsConfig, RowsConfig
from finetwo.core.errors import InputError
from finetwo.data import documents as module
from finetwo.data.documents import Document, Reader, cut, is_document, of_text, read_text
from finetwo.data.source import read_rows
from finetwo.data.split import content_key, uniform

QUIET = lambda _: None  # noqa: E731


def reader(seed: int = 0, **rows: object) -> Reader:
    return Reader(RowsConfig(**rows), seed, QUIET)  # type: ignore[arg-type]


def in_pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)]


# --- what is told of a text ---------------------------------------------------------------------------------------


@given(
    text=st.one_of(st.text(), st.text(alphabet='a"\\\n é🙂<|endoftext|>')),
    size=st.integers(1, 20),
    seed=st.integers(0, 9),
)
@settings(max_examples=300, deadline=None)
def test_a_text_in_pieces_is_told_of_as_the_whole(text: str, size: int, seed: int) -> None:
    found = module._look(in_pieces(text, size), seed)
    assert (found.size, found.blank) == (len(text), not text.strip())
    assert found.marked == ("<|endoftext|>" in text)
    if text:
        assert found.side == uniform({"text": text}, seed)
        assert found.key == int.from_bytes(hashlib.sha256(content_key({"text": text})).digest()[:8], "big")
    whole = of_text(text)
    assert (whole.size, whole.blank, whole.marked) == (found.size, found.blank, found.marked)


def test_the_mark_is_found_across_pieces() -> None:
    for size in range(1, 30):
        assert module._look(in_pieces(f"one two {'<|endoftext|>'} three", size), 0).marked, size
        assert not module._look(in_pieces("one two <|endoftext| > three", size), 0).marked


# --- reading ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rows", "whole"),
    [
        ("a.txt", {}, True),
        ("a.TXT.gz", {}, True),
        ("a.md", {}, True),
        ("a.csv", {"format": "txt"}, True),
        ("a.txt", {"delimiter": ";", "format": "csv"}, False),
        ("a.txt", {"format": "jsonl"}, False),
        ("a.txt", {"names": "a,b", "format": "csv"}, False),
        ("a.txt", {"format": "jsonl"}, False),
        ("a.jsonl", {}, False),
        ("a.gz", {}, False),
    ],
)
def test_which_files_are_one_text(tmp_path: Path, name: str, rows: dict[str, str], whole: bool) -> None:
    path = tmp_path / name
    content = b'{"text": "x;y"}\n{"text": "z;y"}\n'
    path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    config = RowsConfig(**rows)  # type: ignore[arg-type]
    assert is_document(path, config) is whole
    read = [row.fields["text"] for row in read_rows(path, config)] if rows.get("format") != "csv" else []
    assert (read == [content.decode()]) is whole, "as the reader of rows does"


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gzip"])
def test_a_file_is_read_again_and_again(tmp_path: Path, packed: bool) -> None:
    text = ("\ufeff" + TEXT + "é🙂\r\n") * 40
    path = tmp_path / ("a.txt.gz" if packed else "a.txt")
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    [found] = reader().read([path])
    assert [len(list(found.read())) > 0 for _ in range(2)] == [True, True]
    assert "".join(found.read()) == text[1:] == "".join(read_text(path, RowsConfig()))
    assert found.where == f"{path}:1: record 1" == next(read_rows(path, RowsConfig())).where


def test_records_are_documents(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"t": "one", "n": 1}\n\n{"t": " ", "u": "<|endoftext|>"}\n', encoding="utf-8")
    found = list(reader(columns=ColumnsConfig(text="t")).read([path]))
    assert ["".join(d.read()) for d in found] == ["one", " "]
    assert [d.blank for d in found] == [False, True] and [d.marked for d in found] == [False, True]
    assert [d.where for d in found] == [f"{path}:1: record 1", f"{path}:3: record 2"]


def test_the_limit_counts_over_all_files(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.txt").write_text(f"text {name}", encoding="utf-8")
        (tmp_path / f"{name}.jsonl").write_text('{"text": "1"}\n{"text": "2"}\n', encoding="utf-8")
    texts = [tmp_path / f"{name}.txt" for name in "abc"]
    lines = [tmp_path / f"{name}.jsonl" for name in "abc"]
    assert ["".join(d.read()) for d in reader(limit=2).read(texts)] == ["text a", "text b"]
    assert ["".join(d.read()) for d in reader(limit=3).read(lines)] == ["1", "2", "1"]


@pytest.mark.parametrize(("content", "why"), [("", "the file is empty"), (" \n\n", "only blank lines")])
def test_a_file_of_nothing_is_refused(tmp_path: Path, content: str, why: str) -> None:
    """Bad input 31, in the words of the reader of rows."""
    path = tmp_path / "a.txt"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as ours:
        list(reader().read([path]))
    with pytest.raises(InputError) as theirs:
        list(read_rows(path, RowsConfig()))
    assert str(ours.value) == str(theirs.value) and why in str(ours.value)


def test_a_file_that_changes_between_its_readings_is_refused(tmp_path: Path) -> None:
    """Bad input 58."""
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8")
    [found] = reader().read([path])
    os.utime(path, ns=(1, 1))
    with pytest.raises(InputError, match="the file changed while it was being read"):
        list(found.read())


@pytest.mark.parametrize(
    ("content", "rows", "told"),
    [
        ('{"instruction": "a", "output": "b"}', {}, "the task needs plain text: no known columns.*--rows.columns.text"),
        ('{"a": "b", "c": "d"}', {"columns": ColumnsConfig(text="t")}, r"^--rows\.columns\.text names|names a field"),
        ('{"text": 3}', {}, "must be text"),
    ],
)
def test_records_without_text_are_refused(tmp_path: Path, content: str, rows: dict[str, object], told: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=told):
        list(reader(**rows).read([path]))


def test_bytes_that_are_no_text_are_named(tmp_path: Path) -> None:
    """Bad input 42: also where the document is read in pieces."""
    path = tmp_path / "a.txt"
    path.write_bytes(b"fine\n" * 200_000 + b"\xe9t\xe9")
    with pytest.raises(InputError, match=r"not UTF-8 at byte offset 1000000 .*latin-1"):
        list(reader().read([path]))


# --- one document -------------------------------------------------------------------------------------------------


def cut_whole(text: str, shares: dict[str, float]) -> dict[str, str]:
    """The reference: the text held whole."""
    parts: dict[str, str] = {}
    start, share = 0, 0.0
    for name, part in shares.items():
        share += part
        end = len(text) if share > 1 - 1e-6 else int(len(text) * share)
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or text.rfind(" ", start, end) + 1 or end
        parts[name], start = text[start:end], end
    return {name: part for name, part in parts.items() if part}


SHARES = st.sampled_from([(0.9, 0.1), (0.5, 0.25, 0.25), (0.05, 0.05, 0.9), (1.0,), (0.001, 0.999)])


@given(text=st.text(alphabet="ab \n", min_size=1, max_size=80), size=st.integers(1, 30), shares=SHARES)
@settings(max_examples=500, deadline=None)
def test_a_cut_in_pieces_is_the_cut_of_the_whole(text: str, size: int, shares: tuple[float, ...]) -> None:
    named = dict(zip(("train", "validation", "test"), shares, strict=False))
    document = Document(lambda: iter(in_pieces(text, size)), ("a", 1, 1), len(text), False, False, 0.0, 0)
    found = {part.split: "".join(part.pieces) for part in cut(document, named)}
    assert found == cut_whole(text, named)
    assert "".join(found.values()) == text


def test_no_more_than_a_few_pieces_are_held(tmp_path: Path) -> None:
    """The pieces of a file come while it is read."""
    path = tmp_path / "a.txt"
    path.write_text("A line of the story of the lamp.\n" * 100_000, encoding="utf-8")
    [found] = reader().read([path])
    pieces: Iterator[str] = iter(next(cut(found, {"train": 0.9, "validation": 0.1})).pieces)
    assert 0 < len(next(pieces)) < 1 << 19
