"""Which files of a folder are which split; a split is whole or refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetwo.core.errors import InputError
from finetwo.data.folders import find_files, is_data_file, split_of


def make(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x")
    return folder


def found(folder: Path) -> dict[str, list[str]]:
    return {split: [str(f.relative_to(folder)) for f in files] for split, files in find_files(folder).items()}


def refused(folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        find_files(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_layout_of_a_hub(tmp_path: Path) -> None:
    parts = ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"]
    make(tmp_path, "README.md", ".gitattributes", *parts, "data/validation-00000-of-00001-0a1b2c.parquet")
    assert found(tmp_path) == {"train": parts, "validation": ["data/validation-00000-of-00001-0a1b2c.parquet"]}
    assert found(tmp_path / "data")["train"] == [part.removeprefix("data/") for part in parts]


def test_files_for_each_split_also_parquet_and_txt(tmp_path: Path) -> None:
    a = make(tmp_path / "a", "train.parquet", "val.arrow", "test.jsonl.gz", "dataset_infos.json")
    assert found(a) == {"train": ["train.parquet"], "validation": ["val.arrow"], "test": ["test.jsonl.gz"]}
    b = make(tmp_path / "b", "train.txt", "val.txt", "test.txt")
    assert found(b) == {"train": ["train.txt"], "validation": ["val.txt"], "test": ["test.txt"]}


def test_folders_for_each_split(tmp_path: Path) -> None:
    make(tmp_path, "train/b.txt", "train/a.txt", "dev/c.txt", "test/notes.pdf", "train/deeper/d.txt")
    assert found(tmp_path) == {"train": ["train/a.txt", "train/b.txt"], "validation": ["dev/c.txt"]}
    make(tmp_path, "val/d.txt")
    assert "two folders for validation: dev and val" in refused(tmp_path)


def test_a_split_is_whole_or_refused(tmp_path: Path) -> None:
    folder = make(tmp_path / "a", "train-00000-of-00003.parquet", "train-00002-of-00003.parquet")
    assert "part 00001 of 00003 is missing" in refused(folder)
    folder = make(tmp_path / "b", "train-00000-of-00001.parquet", "train-00000-of-00001-0a.parquet")
    assert "a part is there twice" in refused(folder)
    folder = make(tmp_path / "c", "train-00000-of-00001.parquet", "train.jsonl")
    assert "two files for train: train-00000-of-00001.parquet and train.jsonl" in refused(folder)
    folder = make(tmp_path / "d", "val-00000-of-00001.csv", "validation-00000-of-00001.csv")
    assert "two files for validation" in refused(folder)
    assert "looked for train.*" in refused(make(tmp_path / "e", "notes.pdf"))
    inside = refused(make(tmp_path / "authors", "anna/a.txt", "berta/b.txt"))
    assert "(got anna, berta)" in inside and f"a pattern in quotes: '{tmp_path}/authors/*/*.txt'" in inside
    assert "finetwo convert FILE OUT.jsonl" in refused(make(tmp_path / "f", "data.pkl"))


def saved(folder: Path, *names: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": name} for name in names]}))
    return folder


def test_folders_that_datasets_saved(tmp_path: Path) -> None:
    folder = make(saved(tmp_path / "a", "y.arrow", "x.arrow"), "x.arrow", "y.arrow", "cache-1.arrow")
    assert found(folder) == {"train": ["y.arrow", "x.arrow"]}
    make(saved(tmp_path / "b" / "train", "x.arrow"), "x.arrow")
    (tmp_path / "b" / "dataset_dict.json").write_text('{"splits": ["train", "extra"]}')
    assert found(tmp_path / "b") == {"train": ["train/x.arrow"]}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["x.arrow"], "names a data file that is missing"),
        (["../x.arrow"], "must be a plain name"),
        (["/etc/passwd"], "must be a plain name"),
        ([7], "must be a plain name"),
        ([""], "must be a plain name"),
    ],
)
def test_a_saved_folder_cannot_lead_elsewhere(names: list[object], said: str, tmp_path: Path) -> None:
    (tmp_path / "x.arrow").write_text("x")
    assert said in refused(saved(tmp_path / "a", *names))


def test_bad_lists_of_splits(tmp_path: Path) -> None:
    for content, said in (
        ('{"splits": "train"}', "must hold a list of splits"),
        ('{"splits": ["a", "b"]}', "no split called train"),
        ('{"splits": ["val", "dev"]}', "two splits for validation"),
        ("{", "not valid JSON"),
    ):
        make(saved(tmp_path / "val", "x.arrow"), "x.arrow")
        (tmp_path / "dataset_dict.json").write_text(content)
        assert said in refused(tmp_path)
    (tmp_path / "val" / "state.json").write_text('{"epoch": 1}')
    make(tmp_path / "val", "train.csv")
    assert found(tmp_path / "val") == {"train": ["train.csv"]}


def test_what_is_not_there_may_be_on_a_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "a data set of the Hugging Face hub is named hub:dair-ai/emotion" in refused(Path("dair-ai/emotion"))
    assert "hub:" not in refused(tmp_path / "emotion")
    for address in ("https://example.org/data.jsonl", "file:///etc/passwd", "http://127.0.0.1/x", "hf://datasets/a/b"):
        line = refused(Path(address))
        assert "a web address is not read, only files are. Fix: download it first" in line
    assert "named hub:a/b" in refused(Path("https://huggingface.co/datasets/a/b/viewer"))


def test_words() -> None:
    assert [split_of(w) for w in ("Train", "dev", "VAL", "testing")] == ["train", "validation", "validation", None]
    names = ("a.jsonl.gz", "a.parquet", "a.md", "a.pkl", "a.parquet.gz", "a")
    assert [is_data_file(n) for n in names] == [True, True, False, False, False, False]
