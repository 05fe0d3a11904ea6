"""Texts as one stream of tokens: the way back to files and lines, evenly spread passages, splits and records."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.standins.models import TEXT

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.insight import library as module
from finetwo.insight.library import Library, Reading, Share, evenly, open_library
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer


@pytest.fixture
def reading(tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reading:
    monkeypatch.chdir(tmp_path)
    return Reading(tiny_tokenizer, Template.named("plain"), RowsConfig())


def shelf(reading: Reading, *names: str, share: Share = "all") -> Library:
    return open_library(names, reading, Path("tokens") / str(len(list(Path().glob("tokens/*")))), share)


def rows(path: str, count: int, answer: str = "I say the number {i}, and no other one.") -> None:
    lines = [json.dumps({"prompt": f"Say {i}.", "completion": answer.format(i=i)}) + "\n" for i in range(count)]
    Path(path).write_text("".join(lines), encoding="utf-8")


def test_the_tokens_are_those_of_the_texts(reading: Reading) -> None:
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    Path("b.txt").write_text("Second, <|endoftext|> as a word.", encoding="utf-8")
    found = shelf(reading, "a.txt", "b.txt")
    eot, encode = reading.tokenizer.eot, reading.tokenizer.encode
    assert found.tokens.tolist() == [eot, *encode(TEXT), eot, *encode("Second, <|endoftext|> as a word."), eot]
    assert [found.text(int(b), int(e)) for b, e in zip(found.starts, found.ends, strict=True)] == [
        TEXT,
        "Second, <|endoftext|> as a word.",
    ]
    assert not found.records
    assert "".join(found.pieces()).split() == (TEXT + "\n\nSecond, <|endoftext|> as a word.").split()


def test_every_token_knows_its_place(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 5)
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    found = shelf(reading, "a.txt")
    for token in range(1, len(found.tokens) - 1, 7):
        before = reading.tokenizer.decode_bytes(int(t) for t in found.tokens[1:token])
        text = before.decode("utf-8", "ignore")
        place = found.where(token)
        assert (place.document, place.line) == ("a.txt", text.count("\n") + 1)
        assert place.character == len(text) + 1
    assert str(found.where(1)) == "a.txt, line 1, character 1"


def test_a_text_without_blanks_does_not_pile_up(reading: Reading, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK", 16)
    Path("a.txt").write_text("猫" * 400, encoding="utf-8")
    pieces = list(shelf(reading, "a.txt").pieces())
    assert max(map(len, pieces)) < 40
    assert "".join(pieces).strip() == "猫" * 400


@pytest.mark.parametrize(("total", "count"), [(10, 3), (10, 10), (10, 99), (1, 5), (0, 5), (1000, 7)])
def test_evenly(total: int, count: int) -> None:
    import numpy as np

    found = evenly(np.arange(total), count).tolist()
    assert len(found) == min(total, count)
    assert found == sorted(set(found))
    if found:
        assert (found[0], found[-1]) == (0, total - 1)
        gaps = np.diff(found)
        assert not len(gaps) or gaps.max() - gaps.min() <= 1


def test_passages_lie_apart_and_in_one_document(reading: Reading) -> None:
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    Path("b.txt").write_text(TEXT[:90], encoding="utf-8")
    found = shelf(reading, "a.txt", "b.txt")
    whole = found.scored(16, 10**6, 4, 128)
    covered = [t for begin, _, end in whole for t in range(begin, end)]
    assert len(covered) == len(set(covered))
    assert all(4 <= end - begin <= 16 and first == begin + 1 for begin, first, end in whole)
    assert all(found.document_of(begin) == found.document_of(end - 1) for begin, _, end in whole)
    left = sum(int(e - b) for b, e in zip(found.starts, found.ends, strict=True)) - len(covered)
    assert left < 2 * 4  # only rests below four tokens
    assert found.scored(16, 3, 4, 128)[0] == whole[0]
    assert len(found.scored(16, 3, 4, 128)) == 3


def test_answers_come_behind_their_prompts(reading: Reading) -> None:
    rows("data.jsonl", 6)
    rows("short.jsonl", 1, "no")
    found = shelf(reading, "data.jsonl", "short.jsonl")
    assert found.records
    scored = found.scored(12, 100, 2, 128)
    assert len(scored) == 6  # the answer of one word is too short
    for i, (begin, first, end) in enumerate(scored):
        assert found.text(begin, first).startswith(f"Say {i}.")
        assert (
            found.text(first, end).lstrip()
            == f"I say the number {i}, and no other one."[: len(found.text(first, end).lstrip())]
        )
        assert end - first <= 12
    for begin, first, end in found.scored(12, 100, 2, 14):  # the prompt gives way
        assert end - begin <= 14
        assert first > begin
    assert found.name(3) == "data.jsonl:4: record 4"


def test_the_seed_and_shares_of_the_training(reading: Reading) -> None:
    rows("data.jsonl", 40)
    split = RowsConfig(split="train:0.7,validation:0.3")
    for seed in (0, 5):
        asked = Reading(reading.tokenizer, reading.template, split, seed)
        parts = [{p[2] for p in shelf(asked, "data.jsonl", share=s).places} for s in ("train", "held_out", "all")]
        assert not parts[0] & parts[1]
        assert parts[0] | parts[1] == parts[2] == set(range(1, 41))
        assert len(parts[0]) > len(parts[1]) > 0


def test_a_folder_is_shared_out_as_in_training(reading: Reading) -> None:
    for name in ("emma", "pride", "persuasion"):
        (Path("novels") / f"{name}.txt").parent.mkdir(exist_ok=True)
        Path(f"novels/{name}.txt").write_text(f"{name} " * 30, encoding="utf-8")
    asked = Reading(reading.tokenizer, None, RowsConfig(hold_out="*persuasion*"))
    files = {s: [Path(p[0]).stem for p in shelf(asked, "novels", share=s).places] for s in ("train", "held_out", "all")}
    assert files == {"train": ["emma", "pride"], "held_out": ["persuasion"], "all": ["emma", "persuasion", "pride"]}
    Path("set").mkdir()
    for split in ("train", "test"):
        rows(f"set/{split}.jsonl", 3)
    found = {s: {Path(p[0]).stem for p in shelf(reading, "set", share=s).places} for s in ("train", "held_out", "all")}
    assert found == {"train": {"train"}, "held_out": {"test"}, "all": {"train", "test"}}


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("none.txt", None, "none.txt"),
        ("blank.txt", " \n", "0 records"),
        ("classes.csv", "premise,hypothesis,label\na b,c,x\nc d,e,y\n", "holds classes"),
        ("data.jsonl", '{"prompt": "a"\n', "data.jsonl"),
    ],
)
def test_what_cannot_be_read(name: str, text: str | None, part: str, reading: Reading) -> None:
    if text is not None:
        Path(name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=part):
        shelf(reading, name)


def test_a_split_of_plain_text_is_refused(reading: Reading) -> None:
    Path("a.txt").write_text(TEXT, encoding="utf-8")
    asked = Reading(reading.tokenizer, None, RowsConfig(split="train:0.9,validation:0.1"))
    with pytest.raises(InputError, match=r"--rows\.split: is for records"):
        shelf(asked, "a.txt", share="train")
