"""The data doctor against data with planted faults: every kind, all found with their places, none invented."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from tests.insight.planted import Words, classes, instructions, write

from finetwo.core.config import RowsConfig
from finetwo.data.examples import Loaded, load_splits
from finetwo.insight.doctor import Diagnosis, cheap_findings, examine, left_out, with_left_out
from finetwo.insight.findings import KINDS, Finding
from finetwo.text.template import Template

ROWS = RowsConfig()


def loaded(path: Path, rows: RowsConfig = ROWS) -> Loaded:
    return load_splits(path, rows, 0, lambda _: None)


def looked(path: Path, rows: RowsConfig = ROWS, template: Template | None = None) -> Diagnosis:
    found = loaded(path, rows)
    return with_left_out(examine(found, template), path, rows, found)


def counts(diagnosis: Diagnosis) -> dict[str, int]:
    return {f.kind: f.count for f in diagnosis.findings}


def one(diagnosis: Diagnosis, kind: str) -> Finding:
    return next(f for f in diagnosis.findings if f.kind == kind)


def places(finding: Finding, base: Path) -> list[str]:
    return [s.where.replace(f"{base}/", "") for s in finding.spots]


def test_faults_of_every_kind_are_found_and_none_invented(tmp_path: Path) -> None:
    planted = instructions(tmp_path)
    found = looked(tmp_path)
    assert counts(found) == planted
    assert found.notes == []
    assert places(one(found, "duplicate"), tmp_path) == [
        "train.jsonl:37: record 37 = train.jsonl:1: record 1",
        "train.jsonl:38: record 38 = train.jsonl:1: record 1",
        "train.jsonl:39: record 39 = train.jsonl:2: record 2",
    ]
    assert places(one(found, "near duplicate"), tmp_path) == [
        "train.jsonl:34: record 34 ~ train.jsonl:31: record 31",
        "train.jsonl:35: record 35 ~ train.jsonl:33: record 33",
    ]
    assert places(one(found, "overlap"), tmp_path) == [
        "validation.jsonl:12: record 12 = train train.jsonl:3: record 3",
        "validation.jsonl:13: record 13 = train train.jsonl:4: record 4",
        "test.jsonl:12: record 12 = train train.jsonl:6: record 6",
        "test.jsonl:13: record 13 = validation validation.jsonl:1: record 1",
    ]
    (near,) = places(one(found, "near overlap"), tmp_path)
    assert near.startswith("validation.jsonl:11: record 11 ~ train train.jsonl:3")
    assert places(one(found, "empty answer"), tmp_path) == [f"train.jsonl:{n}: record {n}" for n in (40, 41)]
    assert places(one(found, "empty prompt"), tmp_path) == ["train.jsonl:42: record 42"]
    assert [s.text for s in one(found, "one-word answer").spots] == ["Yes.", r"  42 \n", "naïve"]
    assert "�" in one(found, "replacement character").spots[0].text
    assert r"\x07" in one(found, "control characters").spots[0].text  # spelled out, and not sent to a terminal


def test_classes_in_conflict_out_of_balance_and_missing(tmp_path: Path) -> None:
    planted = classes(tmp_path)
    found = looked(tmp_path)
    assert counts(found) == planted
    assert found.labels["train"] == {"awe": 4, "fear": 27, "joy": 41}
    assert found.labels["validation"] == {"awe": 1, "fear": 2, "joy": 2}
    conflict = one(found, "label conflict").spots
    assert [(" (joy) / " in s.where, s.where.endswith("(fear)")) for s in conflict] == [(True, True)] * 3
    assert one(found, "class imbalance").spots[0].where == "train: class awe"
    assert one(found, "class imbalance").spots[0].text == "4 records, the largest has 41"
    rows = [{"text": Words(2).text(5) + str(i), "label": "a" if i < 30 else "b"} for i in range(33)]
    even = write(tmp_path / "even.jsonl", rows)  # a tenth is no imbalance yet
    assert "class imbalance" not in counts(looked(even, RowsConfig(split="train:33")))


def test_a_conversation_is_looked_at_turn_by_turn(tmp_path: Path) -> None:
    words = Words(5)

    def talk(*turns: str) -> dict[str, object]:
        return {
            "messages": [{"role": "user" if i % 2 == 0 else "assistant", "content": t} for i, t in enumerate(turns)]
        }

    good = [talk(words.text(9), words.text(9), words.text(9), words.text(9)) for _ in range(12)]
    bad = [
        talk(words.text(9), words.text(9), words.text(9), "Yes"),
        talk(words.text(9), "same words", "same words", "same words"),
        talk(words.text(9), f"{words.text(5)} <|im_end|>"),
        good[3],
        talk(words.text(9), " ", words.text(9), words.text(9)),
    ]
    path = write(tmp_path / "talks.jsonl", [*good, *bad])  # type: ignore[arg-type]
    found = looked(path, RowsConfig(split="train:17"))
    wanted = {"one-word answer": 1, "answer equals prompt": 1, "template words": 1, "duplicate": 1, "empty answer": 1}
    assert counts(found) == wanted


def test_words_of_the_template_in_use_are_looked_for(tmp_path: Path) -> None:
    words = Words(6)
    rows = [words.record() for _ in range(12)]
    rows[4]["prompt"] = "Frage: " + rows[4]["prompt"]
    path = write(tmp_path / "d.jsonl", rows)
    assert counts(looked(path)) == {}
    found = looked(path, template=Template.parse("Frage: {prompt}\nAntwort: "))
    assert counts(found) == {"template words": 1}
    assert places(one(found, "template words"), tmp_path) == ["d.jsonl:5: record 5"]


def test_records_beyond_the_counts_are_not_called_empty(tmp_path: Path) -> None:
    words = Words(7)
    rows = [words.record() for _ in range(12)]
    rows[3]["completion"] = rows[11]["completion"] = ""
    path = write(tmp_path / "d.jsonl", rows)
    for split, wanted in (("train:8,validation:2", 1), ("train:9,validation:3", 2)):
        settings = RowsConfig(split=split)
        found = loaded(path, settings)
        assert Counter(kind for kind, _ in left_out(path, settings, found)) == {"empty answer": wanted}
        assert found.counts["empty"] == wanted


def test_hostile_and_huge_texts_are_shown_short_and_escaped(tmp_path: Path) -> None:
    words = Words(8)
    rows = [words.record() for _ in range(12)]
    rows[0]["completion"] = "x" * 300_000 + "\x1b]0;owned\x07" + "<br>" + "\u202e" + "y" * 300_000
    rows[1] = dict(rows[0])
    found = looked(write(tmp_path / "d.jsonl", rows), RowsConfig(split="train:12"))
    assert {"duplicate", "control characters", "html"} <= set(counts(found))
    for finding in found.findings:
        line = finding.line()
        assert line.isprintable() and len(line) < 3000
    assert r"\x1b]0;owned\x07" in one(found, "control characters").spots[0].text


def test_the_cheap_part_says_little_and_never_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    instructions(tmp_path)
    found = loaded(tmp_path)
    lines = cheap_findings(found, None)
    assert len(lines) == 6 and all(line.startswith("data: ") for line in lines)
    assert lines[0].startswith("data: duplicate: 3 records that repeat an earlier one of their split: ")
    assert "overlap" not in "".join(lines) and "finetwo plan" in lines[-1]
    words = Words(10)
    rows = [words.record() for _ in range(12)]
    assert cheap_findings(loaded(write(tmp_path / "clean.jsonl", rows)), None) == []
    monkeypatch.setattr("finetwo.insight.doctor._CHEAP", 5)
    assert cheap_findings(found, None) == []
    monkeypatch.setattr("finetwo.insight.doctor._CHEAP", 500)
    monkeypatch.setattr("finetwo.insight.doctor.examine", lambda *_, **__: 1 / 0)
    assert cheap_findings(found, None) == ["data: could not be looked over: ZeroDivisionError: division by zero"]


def test_every_kind_that_is_refused_is_an_issue_of_the_data() -> None:
    strict = {kind for kind, (_, refused) in KINDS.items() if refused}
    assert strict == {"empty answer", "duplicate", "overlap", "label conflict"}
