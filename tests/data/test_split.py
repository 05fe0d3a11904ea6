"""Splits by content and by counts, and the loading of whole data sets."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetwo.core.config import ColumnsConfig, RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.examples import Loaded, count_marks, load_rows, load_splits
from finetwo.data.split import SplitPlan, assign, parse_split, uniform

SHARED = Path(__file__).parents[2].parent / "shared" / "data"
TEN = {"train": 0.8, "validation": 0.1, "test": 0.1}


def records(count: int, start: int = 0) -> list[dict[str, object]]:
    return [{"prompt": f"question {i}", "completion": f"answer {i}"} for i in range(start, start + count)]


def sides(loaded: Loaded) -> dict[str, str]:
    return {e.fields["prompt"]: name for name, part in loaded.splits.items() for e in part}


def load(data: object, seed: int = 0, notes: list[str] | None = None, **rows: object) -> Loaded:
    return load_rows(data, RowsConfig(**rows), seed, (notes if notes is not None else []).append)  # type: ignore[arg-type]


def test_parse_split() -> None:
    assert parse_split("train:0.9,validation:0.1") == SplitPlan({"train": 0.9, "validation": 0.1}, {})
    assert parse_split(" train : 935, test:110,validation:55 ").counts == {"train": 935, "test": 110, "validation": 55}
    assert parse_split("test:1.0").fractions == {"test": 1.0}


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "the names are"),
        ("train", "the names are"),
        ("val:0.1,train:0.9", "the names are"),
        ("train:0.5,train:0.5", "given twice"),
        ("train:0.9,validation:0.2", "sum to 1.1, not 1"),
        ("train:0.9", "sum to 0.9, not 1"),
        ("train:0.9,validation:10", "mixed"),
        ("train:0", "neither a fraction"),
        ("train:-1", "neither a fraction"),
        ("train:nan", "neither a fraction"),
        ("train:1.5", "neither a fraction"),
        ("train:90%", "neither a fraction"),
        ("train:²", "neither a fraction"),
    ],
)
def test_parse_split_refuses(text: str, what: str) -> None:
    with pytest.raises(InputError, match=what):
        parse_split(text)


def test_assignment_is_fixed_for_all_versions() -> None:
    fields = {"prompt": "What is 2+2?", "input": "", "completion": "4"}
    assert uniform(fields, 0) == uniform({"completion": "4", "prompt": "What is 2+2?", "id": "7"}, 0)
    assert uniform(fields, 0) != uniform(fields, 1)
    got = [assign({"text": str(i)}, TEN, 0) for i in range(30)]
    assert "".join({"train": "t", "validation": "v", "test": "e"}[name] for name in got) == GOLDEN


GOLDEN = "ttettvtttvvtttvttttttvtettttvt"


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 60), st.integers(0, 40), st.integers(0, 2**32), st.randoms(use_true_random=False))
def test_appending_and_reordering_never_moves_a_record(old: int, new: int, seed: int, rng: random.Random) -> None:
    before = sides(load(records(old), seed))
    more = records(old + new) + records(5)
    rng.shuffle(more)
    loaded = load(more, seed)
    after = sides(loaded)
    assert {prompt: after[prompt] for prompt in before} == before
    assert loaded.counts["overlap"] == 0
    assert sum(len(part) for part in loaded.splits.values()) == len(more)


def test_fractions_come_out_about_right() -> None:
    loaded = load(records(4000), split="train:0.8,validation:0.1,test:0.1")
    assert 3100 < loaded.counts["train"] < 3300
    assert 330 < loaded.counts["validation"] < 470
    assert loaded.counts["train"] + loaded.counts["validation"] + loaded.counts["test"] == 4000


def test_counts_go_in_file_order() -> None:
    notes: list[str] = []
    loaded = load(records(12), split="train:6,test:3,validation:2", notes=notes)
    assert [e.number for e in loaded.splits["train"]] == [1, 2, 3, 4, 5, 6]
    assert [e.where for e in loaded.splits["test"]] == ["data[6]", "data[7]", "data[8]"]
    assert [e.number for e in loaded.splits["validation"]] == [10, 11]
    assert loaded.counts["left_out"] == 1
    assert "left out: 1 beyond the counts" in notes[-1]
    with pytest.raises(InputError, match="asks for 13 records, there are 12"):
        load(records(12), split="train:13")


def test_few_records_stay_in_train() -> None:
    notes: list[str] = []
    assert load(records(9), notes=notes).counts["train"] == 9
    assert any("too few" in note for note in notes)


def test_row_38_empty_records_are_counted_or_stop() -> None:
    data = [*records(3), {"prompt": " ", "completion": "x"}, {"prompt": "x", "completion": "\n"}]
    notes: list[str] = []
    counts = load(data, notes=notes).counts
    assert (counts["read"], counts["empty"], counts["empty_prompt"], counts["empty_completion"]) == (5, 2, 1, 1)
    assert "left out: 1 empty prompt, 1 empty completion" in notes[-1]
    with pytest.raises(InputError, match=r"data\[3\]: empty prompt \(field 'prompt'\).*--rows.on_empty skip"):
        load(data, on_empty="error")


def test_row_39_nothing_is_left() -> None:
    with pytest.raises(InputError, match="2 records read, 0 left; left out: 2 empty completion"):
        load([{"prompt": "a", "completion": ""}] * 2)


def test_row_53_overlap_is_said(tmp_path: Path) -> None:
    for name, part in (("train", records(20)), ("validation", records(5, 18)), ("test", records(2, 30))):
        (tmp_path / f"{name}.json").write_text(json.dumps(part))
    notes: list[str] = []
    loaded = load_splits(tmp_path, RowsConfig(), 0, notes.append)
    assert {name: len(part) for name, part in loaded.splits.items()} == {"train": 20, "validation": 5, "test": 2}
    assert loaded.counts["overlap"] == 2
    (warning,) = [note for note in notes if note.startswith("warning")]
    assert "2 of 5 validation records are in train too" in warning
    assert "train.json:1: record 19" in warning
    with pytest.raises(InputError, match=r"2 of 5 validation records are in train too: .*record 19 = .*on_overlap"):
        load_splits(tmp_path, RowsConfig(on_overlap="error"), 0, notes.append)
    with pytest.raises(InputError, match="gives validation, and so does a file"):
        load_splits(tmp_path, RowsConfig(split="train:0.9,validation:0.1"), 0, notes.append)
    (tmp_path / "validation.json").unlink()
    assert load_splits(tmp_path, RowsConfig(), 0, notes.append).counts["validation"] > 0
    (tmp_path / "train.json").unlink()
    with pytest.raises(InputError, match=r"no train\.\* in the folder"):
        load_splits(tmp_path, RowsConfig(), 0, notes.append)


def test_row_55_the_end_of_text_mark_is_counted() -> None:
    notes: list[str] = []
    loaded = load([*records(3), {"prompt": "a", "completion": "b<|endoftext|>c"}], notes=notes)
    assert loaded.counts["end_of_text"] == count_marks(loaded.splits["train"]) == 1
    assert "1 records contain <|endoftext|>; it is read as plain text" in notes[-1]


def test_a_folder_of_documents(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.txt").write_text(f"book {i}\n")
    loaded = load_splits(tmp_path, RowsConfig(), 0, lambda _: None)
    assert [e.fields["text"] for e in loaded.splits["train"]] == ["book 0\n", "book 1\n", "book 2\n"]
    assert loaded.columns.kind == "text"
    assert load_splits(tmp_path, RowsConfig(limit=2), 0, lambda _: None).counts["read"] == 2


def test_the_digest_follows_content_and_order_only(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("\n\n".join(json.dumps(r) for r in records(5)))
    same = load_splits(tmp_path / "a.jsonl", RowsConfig(), 0, lambda _: None).digest
    assert same == load(records(5)).digest
    assert same != load(records(5)[::-1]).digest
    assert same != load(records(4)).digest


def test_records_from_memory() -> None:
    table = SimpleNamespace(to_dict=lambda orient: records(3) if orient == "records" else None)
    assert load(table).digest == load(records(3)).digest == load(tuple(records(3))).digest
    given = load({"train": records(3), "validation": records(2, 5)})
    assert given.counts["validation"] == 2
    assert given.splits["validation"][1].where == "data['validation'][1]"
    nan = float("nan")
    assert load([{"prompt": "a", "completion": "b", "c": nan}], columns=ColumnsConfig(input="c")).counts["train"] == 1
    for bad, what in (
        ([], "0 records"),
        ("text", "must be a path"),
        (3, "must be a path"),
        ([1], r"data\[0\]: must be a dictionary"),
        ([{1: "a"}], "text keys"),
        ([*records(17), {"prompt": "a"}], r"data\[17\]: the field 'completion' \(completion\) is missing"),
        ([{"prompt": "\ud83d", "completion": "b"}], r"data\[0\]: field 'prompt' holds the lone surrogate"),
    ):
        with pytest.raises(InputError, match=what):
            load(bad)


def test_the_book_split_of_the_real_file() -> None:
    path = SHARED / "instruct" / "instruction-data.json"
    if not path.is_file():
        pytest.skip("shared data not present")
    counts = load_splits(path, RowsConfig(split="train:935,test:110,validation:55"), 0, lambda _: None).counts
    assert (counts["train"], counts["test"], counts["validation"]) == (935, 110, 55)
