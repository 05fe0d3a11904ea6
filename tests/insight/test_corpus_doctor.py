"""The doctor of plain texts: planted faults in documents that come in pieces, found with line and place."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest
from tests.insight.planted import Words

from finetwo.data.documents import Part
from finetwo.insight.corpus_doctor import examine_texts
from finetwo.insight.doctor import Diagnosis
from finetwo.insight.findings import Finding


def pieces(text: str, size: int) -> list[str]:
    return [text[i : i + size] for i in range(0, len(text), size)] or [""]


def documents() -> list[tuple[str, str]]:
    """(split, text): clean ones, and planted faults."""
    words = Words(2)
    clean = [("train", words.text(60)) for _ in range(12)] + [("validation", words.text(60)) for _ in range(4)]
    near = words.some(50)
    planted = [
        ("train", " ".join(near)),
        ("train", " ".join([*near[:-1], "other"])),  # 0.96
        ("validation", " ".join(["first", *near[1:]])),  # near overlap
        ("train", clean[0][1]),
        ("train", clean[0][1]),
        ("validation", clean[1][1]),
        ("train", f"{words.text(30)}\n{words.text(30)}\nan <img src='{'x' * 90}'> here\n{words.text(9)}"),
        ("validation", f"\n\n{words.text(30)} cafÃ© and ### Response:\n\x01"),
    ]
    return clean + planted


def look(texts: list[tuple[str, str]], size: int) -> Diagnosis:
    def read() -> Iterator[Part]:
        for i, (split, text) in enumerate(texts, 1):
            yield Part(split, pieces(text, size), f"f.txt: record {i}")

    return examine_texts(read)[0]


def one(diagnosis: Diagnosis, kind: str) -> Finding:
    return next(f for f in diagnosis.findings if f.kind == kind)


@pytest.mark.parametrize("size", [7, 64, 10_000])
def test_planted_faults_are_found_however_the_text_is_cut(size: int) -> None:
    found = look(documents(), size)
    assert {f.kind: f.count for f in found.findings} == {
        "duplicate": 2,
        "near duplicate": 1,
        "overlap": 1,
        "near overlap": 1,
        "template words": 1,
        "mojibake": 1,
        "control characters": 1,
        "html": 1,
    }
    assert [s.where for s in one(found, "duplicate").spots] == [
        "f.txt: record 20 = f.txt: record 1",
        "f.txt: record 21 = f.txt: record 1",
    ]
    assert one(found, "overlap").spots[0].where == "f.txt: record 22 = train f.txt: record 2"
    assert one(found, "near duplicate").spots[0].where == "f.txt: record 18 ~ f.txt: record 17"
    assert one(found, "near overlap").spots[0].where.startswith("f.txt: record 19 ~ train f.txt: record 1")
    assert one(found, "html").spots[0].where == "f.txt: record 23, line 3 of the text"
    assert one(found, "mojibake").spots[0].where == "f.txt: record 24, line 3 of the text"
    assert one(found, "control characters").spots[0].where == "f.txt: record 24, line 4 of the text"


def test_clean_texts_have_no_finding_and_lengths_are_counted() -> None:
    words = Words(4)
    texts = [words.text(random.Random(i).randint(3, 900)) for i in range(40)]
    diagnosis, lengths = examine_texts(
        lambda: (Part("train" if i % 4 else "test", pieces(t, 100), f"{i}") for i, t in enumerate(texts))
    )
    assert diagnosis.findings == [] and diagnosis.notes == []
    assert {s: c.total() for s, c in lengths.items()} == {"train": 30, "test": 10}
    for split, part in lengths.items():
        for n, count in part.items():
            mine = [t for i, t in enumerate(texts) if ("train" if i % 4 else "test") == split]
            assert count == sum(len(t).bit_length() == n for t in mine)


def test_too_many_texts_to_compare_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetwo.insight.corpus_doctor._BUDGET", 60)
    found = look(documents(), 10_000)
    assert any("only a part was compared" in note for note in found.notes)
    assert {f.kind: f.count for f in found.findings}["duplicate"] == 2
