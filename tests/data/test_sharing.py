"""Splits made while reading: the same documents on the same sides, and the same words, as with all in memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.examples import load_splits
from finetwo.data.sharing import stream_splits

SPLITS = [
    None,
    "train:0.5,validation:0.25,test:0.25",
    "train:0.7,test:0.3",
    "train:1.0",
    "train:3,validation:2",
    "validation:2,train:4,test:1",
]
DOCUMENTS = st.lists(
    st.one_of(st.sampled_from(["same", "", "  \n", "a <|endoftext|> b"]), st.text(alphabet="ab é\n", max_size=8)),
    min_size=1,
    max_size=25,
)


def write(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": t, "n": i}) + "\n" for i, t in enumerate(texts)), encoding="utf-8")
    return path


def streamed(path: Path, **rows: Any) -> tuple[dict[str, list[str]], list[str]]:
    """The texts by split, and what was said; or what was refused."""
    said: list[str] = []
    found: dict[str, list[str]] = {"train": [], "validation": [], "test": []}
    try:
        for part in stream_splits(path, RowsConfig(**rows), rows.pop("seed", 0), said.append):
            found[part.split].append("".join(part.pieces))
    except InputError as error:
        return {}, [str(error)]
    return found, said


def loaded(path: Path, **rows: Any) -> tuple[dict[str, list[str]], list[str]]:
    said: list[str] = []
    try:
        data = load_splits(path, RowsConfig(**rows), 0, said.append, "text")
    except InputError as error:
        return {}, [str(error)]
    if not data.splits["train"]:
        where, got = ("--rows.split", f" (got {rows['split']})") if rows["split"] else (str(path), "")
        return {}, [f"{where}: leaves no document for train{got}. Fix: give train a share"]
    return {name: [e.fields["text"] for e in part] for name, part in data.splits.items()}, said


@given(
    texts=DOCUMENTS,
    validation=st.one_of(st.none(), DOCUMENTS),
    test=st.one_of(st.none(), DOCUMENTS),
    split=st.sampled_from(SPLITS),
    limit=st.sampled_from([None, 1, 3, 12]),
)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_streaming_shares_out_as_loading_does(
    tmp_path: Path,
    texts: list[str],
    validation: list[str] | None,
    test: list[str] | None,
    split: str | None,
    limit: int | None,
) -> None:
    folder = tmp_path / "d"
    for name, given_texts in (("train", texts), ("validation", validation), ("test", test)):
        (folder / f"{name}.jsonl").unlink(missing_ok=True)
        if given_texts is not None:
            write(folder / f"{name}.jsonl", given_texts)
    ours, theirs = (ask(folder, split=split, limit=limit) for ask in (streamed, loaded))
    assert ours[0] == theirs[0]
    assert sorted(ours[1]) == sorted(theirs[1])


@pytest.mark.parametrize("count", [1, 2, 9, 10, 30])
@pytest.mark.parametrize("split", SPLITS[:4])
def test_a_folder_of_texts_is_shared_out_as_loading_does(tmp_path: Path, count: int, split: str | None) -> None:
    for i in range(count):
        (tmp_path / f"{i:02}.txt").write_text(f"The story of number {i}.\n", encoding="utf-8")
    assert streamed(tmp_path, split=split) == loaded(tmp_path, split=split)


def test_one_long_document_is_cut_and_not_shared_out(tmp_path: Path) -> None:
    text = "".join(f"Line {i} of the story of the lamp.\n" for i in range(100))
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    write(tmp_path / "b.jsonl", [" ", text, ""])
    for name in ("a.txt", "b.jsonl"):
        found, said = streamed(tmp_path / name)
        assert found["train"][0] + found["validation"][0] == text and found["test"] == []
        assert "one document: cut at line ends, train:0.9,validation:0.1" in said
    assert any("3 records read: one document; left out: 2 empty text" in line for line in said)
    found, _ = streamed(tmp_path / "a.txt", split="train:1,validation:1")
    assert found == {}, "counts are counts of documents"
    short, said = streamed(write(tmp_path / "c.jsonl", ["short"]))
    assert short["train"] == ["short"] and any("1 records are too few" in line for line in said)


def test_one_document_beside_a_given_file_is_not_cut(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", ["a lamp " * 100])
    write(tmp_path / "test.jsonl", ["a lamp " * 100])
    found, said = streamed(tmp_path)
    assert found["train"] == found["test"] == ["a lamp " * 100]
    assert any("1 of 1 test records are in train too" in line and "train.jsonl:1: record 1 = " in line for line in said)
    found, (refusal,) = streamed(tmp_path, on_overlap="error")
    assert found == {} and "1 of 1 test records are in train too: " in refusal and "--rows.on_overlap" in refusal


def test_an_empty_document_may_be_an_error(tmp_path: Path) -> None:
    """Bad input 38."""
    file = write(tmp_path / "a.jsonl", ["one", " ", "two"])
    for split in (None, "train:2,validation:1"):
        _, said = streamed(file, on_empty="error", split=split)
        assert said == [f"{file}:2: record 2: empty text. Fix: fill it in, or --rows.on_empty skip"]


@pytest.mark.parametrize(
    ("files", "rows", "told"),
    [
        ({"validation.jsonl": ["a"]}, {}, "no train.* in the folder"),
        ({"train.jsonl": ["a"], "test.jsonl": ["b"]}, {"split": "train:1,test:1"}, "gives test, and so does a file"),
        ({"train.jsonl": ["a"] * 3}, {"split": "train:4"}, "asks for 4 records, there are 3"),
        ({"train.jsonl": [" "] * 3}, {}, "3 records read, 0 left; left out: 3 empty text"),
        ({"train.jsonl": ["a", "b"]}, {"split": "test:2"}, "leaves no document for train"),
        ({"train.jsonl": ["a", "b"]}, {"limit": 0}, "--rows.limit: must be an integer >= 1"),
    ],
)
def test_what_cannot_be_shared_out_is_refused(
    tmp_path: Path, files: dict[str, list[str]], rows: dict[str, Any], told: str
) -> None:
    for name, texts in files.items():
        write(tmp_path / name, texts)
    _, said = streamed(tmp_path, **rows)
    assert len(said) == 1 and told in said[0], said
