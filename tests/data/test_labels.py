"""Classes: their names and order, records without one, and what cannot be a class (row 54)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from finetwo.core.config import ColumnsConfig, RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.examples import Loaded, load_rows, load_splits
from finetwo.data.labels import class_weights, given_labels, label_index

Labels = list[Any]


def table(labels: Labels) -> list[dict[str, Any]]:
    return [{"text": f"the lamp {i}", "label": label} for i, label in enumerate(labels)]


def load(values: Labels, notes: list[str] | None = None, **rows: Any) -> Loaded:
    """Load records in memory with these classes, all of them for training."""
    settings = {"split": f"train:{len(values)}"} | rows
    return load_rows(table(values), RowsConfig(**settings), 0, (notes if notes is not None else []).append, "classify")


def write(path: Path, labels: Labels) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in table(labels)), encoding="utf-8")
    return path


def classes(loaded: Loaded) -> Counter[str]:
    return Counter(e.fields["label"] for e in loaded.splits["train"])


# --- names and their order --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["spam", "ham", " spam "], ("ham", "spam")),
        (["Spam", "spam", "ham"], ("Spam", "ham", "spam")),
        ([2, 10, 1], ("1", "2", "10")),
        (["2", "10", "1"], ("1", "2", "10")),
        ([-1, 1, 0], ("-1", "0", "1")),
        ([True, False], ("False", "True")),
        ([1.0, 2.0, float("nan")], ("1", "2")),
        (["1", "x", "2"], ("1", "2", "x")),
        (["neg", "pos", "", None], ("neg", "pos")),
        (["猫", "été"], ("été", "猫")),
    ],
    ids=str,
)
def test_names_and_order(labels: Labels, names: tuple[str, ...]) -> None:
    assert load(labels).labels == names


def test_a_table_of_pandas() -> None:
    frame = pd.DataFrame(table([0, 1, None, 1]))
    assert frame["label"].dtype == float
    loaded = load_rows(frame, RowsConfig(split="train:4"), 0, lambda _: None)
    assert loaded.labels == ("0", "1") and loaded.counts["unlabelled"] == 1
    frame["label"] = frame["label"].astype("Int64")  # with NA instead of NaN
    assert load_rows(frame, RowsConfig(split="train:4"), 0, lambda _: None).labels == ("0", "1")
    frame["label"] = pd.Series(["b", "a", None, "a"], dtype="category")
    assert load_rows(frame, RowsConfig(split="train:4"), 0, lambda _: None).labels == ("a", "b")


def test_given_names_map_whole_numbers() -> None:
    given = "entailment,not_entailment"
    assert load([0, 1, 1], labels=given).labels == ("entailment", "not_entailment")
    assert load([1.0, 0.0], labels=given).labels == ("entailment", "not_entailment")
    assert load(["not_entailment", 0], labels=given).labels == ("entailment", "not_entailment")
    assert load(["b", "a"], labels="b, a").labels == ("b", "a")
    told = load([1, 0, 1.0, "entailment"], labels=given).splits["train"]
    assert [example.fields["label"] for example in told] == [
        "not_entailment",
        "entailment",
        "not_entailment",
        "entailment",
    ]
    assert label_index("2", ("2", "3"), "f") == 0  # where numbers are names, they are no places
    with pytest.raises(InputError, match=r"name the numbers, in their own order: --rows\.labels"):
        label_index("0", ("entailment", "not_entailment"), "f")


@pytest.mark.parametrize("given", ["a", "a,a", "a,,b", "", " , "])
def test_names_that_cannot_be(given: str) -> None:
    with pytest.raises(InputError, match=r"^--rows.labels: must be different names"):
        given_labels(RowsConfig(labels=given))


# --- records without a class ------------------------------------------------------------------------------------------


def test_records_without_a_class_are_counted() -> None:
    notes: list[str] = []
    loaded = load(["a", "b", None, "a", ""], notes)
    assert classes(loaded) == {"a": 2, "b": 1} and loaded.counts["unlabelled"] == 2
    assert any(line.endswith("train 3; left out: 2 without a class") for line in notes)
    with pytest.raises(InputError, match=r"^data\[2\]: no class \(label\)"):
        load(["a", "b", None, "a"], on_empty="error")


@pytest.mark.parametrize("mark", [-1, "-1", "-"])
def test_a_rare_mark_is_a_class_that_is_not_told(mark: object) -> None:
    """GLUE's -1 and SNLI's -; a file of its own, as GLUE's test, does not count either."""
    loaded = load([0, 1] * 20 + [mark])
    assert loaded.labels == ("0", "1") and loaded.counts["unlabelled"] == 1
    with pytest.raises(InputError, match=r"data\[40\]: no class"):
        load([0, 1] * 20 + [mark], on_empty="error")


def test_a_frequent_minus_one_is_a_class_and_said_so() -> None:
    notes: list[str] = []
    assert load([-1, 1] * 10, notes).labels == ("-1", "1")
    assert "labels: -1 is taken for a class, as 10 of 20 records bear it" in notes
    assert load([-1, 0] * 10, labels="no,yes").counts["unlabelled"] == 10  # given names decide
    assert load([-1] + [1] * 99, labels="-1,1").counts["unlabelled"] == 0


def test_withheld_classes_in_a_file_of_their_own(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", [0, 1] * 6)
    write(tmp_path / "validation.jsonl", [1, 0])
    write(tmp_path / "test.jsonl", [-1] * 5)
    loaded = load_splits(tmp_path, RowsConfig(), 0, lambda _: None)
    assert loaded.labels == ("0", "1") and loaded.counts["test"] == 0 and loaded.counts["unlabelled"] == 5


# --- row 54 and its neighbours ----------------------------------------------------------------------------------------


def refused(tmp_path: Path, train: Labels, validation: Labels, **rows: Any) -> str:
    write(tmp_path / "train.jsonl", train)
    write(tmp_path / "validation.jsonl", validation)
    with pytest.raises(InputError) as caught:
        load_splits(tmp_path, RowsConfig(**rows), 0, lambda _: None)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(tmp_path), "DIR")


def test_row_54_a_class_that_train_lacks(tmp_path: Path) -> None:
    message = refused(tmp_path, ["joy", "fear"], ["joy", "fear", "angre"])
    assert message.startswith("DIR/validation.jsonl:3: record 3: the class is not among fear, joy (got angre). Fix:")
    assert "among 0, 1 (got 2)" in refused(tmp_path, [0, 1], [1, 2])


def test_row_54_numbers_are_no_places_among_names_that_nobody_gave(tmp_path: Path) -> None:
    """With the names only found in train, in the order of letters, 1 would mean whatever comes second."""
    assert "validation.jsonl:2: record 2: the class is not among ham, spam (got 1)" in refused(
        tmp_path, ["spam", "ham"], ["ham", 1]
    )


def test_row_54_a_number_beyond_the_names(tmp_path: Path) -> None:
    message = refused(tmp_path, [0, 1, 2], [0], labels="no,yes")
    assert message.startswith("DIR/train.jsonl:3: record 3: the class is not among no, yes (got 2)")
    assert "--rows.labels" in message
    assert "record 2: the class is not among no, yes (got maybe)" in refused(
        tmp_path, [0, 1], [0, "maybe"], labels="no,yes"
    )


def test_row_54_one_class_only() -> None:
    for labels in (["a"] * 12, [1] * 12, ["a", None, "a"]):
        with pytest.raises(InputError, match=r"^data: one class only: there is nothing to tell apart \(got "):
            load(labels)
    with pytest.raises(InputError, match=r"^data: no record has a class\. Fix: is the label column"):
        load([None] * 12)


def test_a_number_that_is_no_whole_one_is_named() -> None:
    with pytest.raises(InputError, match=r"data\[1\]: the field 'label' \(label\) is no class \(got a number: 0.5\)"):
        load([1.0, 0.5])
    with pytest.raises(InputError, match=r"data\[0\]: .* is no class \(got a list: \['a'\]\)"):
        load([["a"], ["b"]])


def test_very_many_classes_are_a_wrong_column(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"more than 10,000 classes \(got 10,001\).*--rows.columns.label NAME"):
        load([f"id-{i}" for i in range(10_001)])


def test_a_class_that_falls_to_validation_alone_is_still_one() -> None:
    """A rare class whose records are all held out by the split: the head has a row for it."""
    labels = ["a", "b"] * 40 + ["rare"]
    for seed in range(40):
        loaded = load_rows(table(labels), RowsConfig(), seed, lambda _: None)
        assert loaded.labels == ("a", "b", "rare")
        if any(e.fields["label"] == "rare" for e in loaded.splits["validation"]):
            return
    raise AssertionError("no seed held it out")


def test_text_with_a_class_is_still_plain_text_when_asked_for() -> None:
    loaded = load_rows(table([0, 1, 1]), RowsConfig(split="train:3"), 0, lambda _: None, "text")
    assert loaded.labels == () and loaded.columns.label is None and loaded.counts["train"] == 3


def test_mapped_columns_of_a_pair() -> None:
    rows = [{"a": f"one {i}", "b": f"two {i}", "c": i % 2} for i in range(4)]
    config = RowsConfig(columns=ColumnsConfig(first="a", second="b", label="c"), split="train:4")
    loaded = load_rows(rows, config, 0, lambda _: None)
    assert loaded.labels == ("0", "1")
    assert loaded.splits["train"][1].fields == {"first": "one 1", "second": "two 1", "label": "1"}


# --- weights ----------------------------------------------------------------------------------------------------------


def test_class_weights() -> None:
    labels, counts = ("a", "b", "c"), {"a": 10, "b": 5, "c": 85}
    assert class_weights("none", labels, counts) is None
    balanced = class_weights(" balanced ", labels, counts)
    from sklearn.utils.class_weight import compute_class_weight

    y = [name for name in labels for _ in range(counts[name])]
    assert balanced == pytest.approx(list(compute_class_weight("balanced", classes=np.asarray(labels), y=y)))
    assert class_weights("b:2.5, c:0.1", labels, counts) == [1.0, 2.5, 0.1]
    assert class_weights("x:y:2", ("x:y", "z"), {}) == [2.0, 1.0]
    with pytest.raises(InputError, match=r"train has no record of the class \(got c\)"):
        class_weights("balanced", labels, counts | {"c": 0})


@pytest.mark.parametrize("setting", ["a", "d:2", "a:0", "a:-1", "a:nan", "a:inf", "a:x", "", "a:1,,b:2", "Balanced"])
def test_class_weights_that_cannot_be(setting: str) -> None:
    with pytest.raises(InputError, match=r"^--class_weights: not a class and a weight above 0"):
        class_weights(setting, ("a", "b"), {"a": 1, "b": 1})


def test_the_real_sets(shared_data: Path) -> None:
    """Emotion as it lies (text;label in .txt), and RTE with its withheld test classes."""
    emotion = RowsConfig(format="csv", delimiter=";")
    loaded = load_splits(shared_data / "classify/emotion/val.txt", emotion, 0, lambda _: None)
    assert loaded.labels == ("anger", "fear", "joy", "love", "sadness", "surprise")
    assert loaded.counts["read"] == 2000
    loaded = load_splits(shared_data / "entail/rte/dev.tsv", RowsConfig(), 0, lambda _: None)
    assert loaded.columns.kind == "entail" and loaded.labels == ("0", "1") and loaded.counts["read"] == 277


def test_the_classes_of_a_model_are_all_there_are() -> None:
    """The remedy was to list the class in --rows.labels, which no model learns by."""
    with pytest.raises(
        InputError, match=r"not among no, yes \(got maybe\). Fix: correct it, or leave such records out"
    ):
        load_rows(table(["yes", "maybe"]), RowsConfig(), 0, lambda _: None, "classify", ("no", "yes"))


def test_a_test_set_whose_classes_are_withheld_is_for_predict() -> None:
    with pytest.raises(
        InputError, match=r"left out: 3 without a class. Fix: give records with a class; finetwo predict"
    ):
        load_rows(table([-1, -1, -1]), RowsConfig(), 0, lambda _: None, "classify", ("no", "yes"))
