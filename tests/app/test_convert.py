"""`finetwo convert` as a person uses it."""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from finetwo.app.cli import main

SENTENCES = [{"sentence": f"It is a truth universally acknowledged, {n} é."} for n in range(12)]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def lines(path: Path) -> list[object]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    before = sorted(Path.cwd().rglob("*"))
    assert main(["convert", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert sorted(Path.cwd().rglob("*")) == before, "nothing is written"
    return err


def test_a_pickled_data_set_becomes_lines_that_train_reads(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "austen.pkl").write_bytes(pickle.dumps(SENTENCES))
    assert main(["convert", "austen.pkl", "austen.jsonl"]) == 0
    assert lines(here / "austen.jsonl") == SENTENCES
    assert "é" in (here / "austen.jsonl").read_text(encoding="utf-8")
    assert capsys.readouterr().err == "austen.jsonl: 12 records with the fields sentence\n"
    common = ["train", "austen.jsonl", "--max_steps", "1", "--max_length", "16", "--out", "run"]
    assert main([*common, "--rows.columns.text", "sentence"]) == 0


def test_a_hostile_pickle_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Bad:
        def __reduce__(self) -> object:
            return os.system, ("touch canary",)

    (here / "bad.pkl").write_bytes(pickle.dumps([SENTENCES[0], Bad()]))
    line = refused(capsys, "bad.pkl", "out.jsonl")
    assert "error: bad.pkl: refused: at byte" in line
    assert "posix system, which can run code. Fix: where you trust the file" in line
    (here / "late.pkl").write_bytes(pickle.dumps([*SENTENCES, {"sentence": 1, 2: 3}]))
    assert "record 13: the name of a field must be text" in refused(capsys, "late.pkl", "out.jsonl")


def test_records_that_torch_saved(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`train data.pt` names `convert` as the way out, so that has to be one."""
    for name in ("a.pt", "a.bin"):
        torch.save(SENTENCES, here / name)
        assert main(["train", name, "--max_steps", "1"]) == 2
        assert "finetwo convert" in capsys.readouterr().err
        assert main(["convert", name, f"{name}.jsonl"]) == 0
        assert lines(here / f"{name}.jsonl") == SENTENCES
    torch.save({"train": SENTENCES[:3], "test": SENTENCES[3:]}, here / "parts.pth")
    assert main(["convert", "parts.pth", "test.jsonl", "--part", "test"]) == 0
    assert lines(here / "test.jsonl") == SENTENCES[3:]
    capsys.readouterr()
    torch.save([{"x": torch.zeros(3)}], here / "tensors.pt")
    assert "which can run code. Fix: where you trust the file" in refused(capsys, "tensors.pt", "out.jsonl")


def test_archives_that_are_none_of_torch(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def pack(*names: str, how: int = zipfile.ZIP_STORED) -> None:
        with zipfile.ZipFile(here / "a.pt", "w", how) as archive:
            for name in names:
                archive.writestr(name, pickle.dumps(SENTENCES))

    for names, how in ((("x/y.pkl",), 0), (("x/data.pkl", "z/data.pkl"), 0), (("x/data.pkl",), 8)):
        pack(*names, how=how)
        assert "not as torch.save writes them: it must hold one data.pkl" in refused(capsys, "a.pt", "out.jsonl")
    pack("x/data.pkl")
    whole = (here / "a.pt").read_bytes()
    for cut in (4, 60, len(whole) // 2, len(whole) - 1):
        (here / "a.pt").write_bytes(whole[:cut])
        assert "not as torch.save writes them" in refused(capsys, "a.pt", "out.jsonl")


def test_what_is_not_for_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "a.pkl").write_bytes(pickle.dumps(SENTENCES))
    (here / "there.jsonl").write_text("mine")
    assert "exists already" in refused(capsys, "a.pkl", "there.jsonl")
    assert "must be called .jsonl" in refused(capsys, "a.pkl", "out.csv")
    assert "a file and the name of the new one are needed" in refused(capsys, "a.pkl")
    assert "no such file" in refused(capsys, "a.pkm", "out.jsonl")
    assert "no such file" in refused(capsys, "a.pkl", "nowhere/out.jsonl")
    for name in ("a.npy", "a.npz"):
        (here / name).write_bytes(b"PK\x03\x04")
        line = refused(capsys, name, "out.jsonl")
        assert "is not read here either. Fix: where you trust it, load it in Python (numpy.load" in line
    assert "is read as it is, or not at all. Fix: finetwo train there.jsonl" in refused(
        capsys, "there.jsonl", "out.jsonl"
    )
    (here / "none.pkl").write_bytes(pickle.dumps([]))
    assert "0 records" in refused(capsys, "none.pkl", "out.jsonl")
    assert "hub:OWNER/NAME" in refused(capsys, "hub:x", "out.jsonl")


def test_tables_and_saved_folders(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    datasets = pytest.importorskip("datasets")
    nan = float("nan")
    table = pa.table(
        {"text": ["a", "b"], "share": [0.5, nan], "day": pa.array([0, 1], pa.date32()), "deep": [[{"b": b"x"}]] * 2}
    )
    parquet.write_table(table, here / "a.parquet")
    assert main(["convert", "a.parquet", "a.jsonl"]) == 0
    assert lines(here / "a.jsonl") == [
        {"text": "a", "share": 0.5, "deep": [{}]},
        {"text": "b", "share": None, "deep": [{}]},
    ]
    said = capsys.readouterr().err
    assert "the column 'day' of type date32[day] has no JSON form and is left out" in said
    assert "the column 'deep.b' of type binary has no JSON form and is left out" in said
    assert "1 numbers that are NaN or infinite became null" in said
    data = datasets.Dataset.from_list(SENTENCES)
    datasets.DatasetDict(train=data, test=data.select([3])).save_to_disk(here / "saved")
    capsys.readouterr()
    assert "has several splits: train, test. Fix: --part train" in refused(capsys, "saved", "b.jsonl")
    assert "there is only train, test" in refused(capsys, "saved", "b.jsonl", "--part", "dev")
    assert main(["convert", "saved", "b.jsonl", "--part", "test"]) == 0
    assert lines(here / "b.jsonl") == [SENTENCES[3]]


def test_the_help_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "--help"]) == 0
    assert "unpickler that knows no names" in capsys.readouterr().out
