"""A model measured on a data file: the losses of training, answers and the sliding window on the asked part."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.standins.models import TEXT, random_network, tiny_config
from tests.train.support import records, write_jsonl

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model
from finetwo.insight.answers import AnswerOptions
from finetwo.insight.measure import MeasureOptions, measure
from finetwo.insight.stride import strided
from finetwo.text.tokenizer import Tokenizer, train_vocabulary

KEYS = {"loss", "loss_all", "tokens", "tokens_all", "bits_per_byte", "records", "perplexity", "perplexity_all"}


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Tokenizer) -> Model:
    return Model(random_network(tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64)), tiny_tokenizer)


def figures(model: Model, data: Path, **options: Any) -> dict[str, Any]:
    return measure(model, data, MeasureOptions(**options), lambda _: None)


def test_every_figure_has_its_protocol(model: Model, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", records(12))
    found = figures(model, data, answer_tokens=3, answers=AnswerOptions(("exact_match", "stop_rate", "bleu")))
    named = KEYS | {"exact_match", "stop_rate", "bleu"}
    assert found.keys() == named | {"protocol", "protocols", "intervals"}
    assert found["protocols"].keys() == named
    assert found["protocol"] == ("records of at most 64 tokens, part all, sum of losses / sum of tokens, float32")
    assert found["protocols"]["loss"] == f"answers and their ends, nats a token; {found['protocol']}"
    assert found["protocols"]["loss_all"] == f"all tokens, nats a token; {found['protocol']}"
    assert found["perplexity"] == pytest.approx(math.exp(found["loss"]))
    assert found["perplexity_all"] == pytest.approx(math.exp(found["loss_all"]))
    assert found["loss"] != found["loss_all"]
    assert found["records"] == 12
    assert found["intervals"].keys() == {"exact_match", "stop_rate", "bleu"}


def test_answers_are_of_the_asked_part(model: Model, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", records(12))
    path = tmp_path / "p.jsonl"
    rows = RowsConfig(split="train:5,validation:3,test:4")
    answers = AnswerOptions(("stop_rate",), predictions=path)
    found = figures(model, data, part="test", rows=rows, answer_tokens=2, answers=answers)
    assert found["records"] == 4
    assert "mean of 4 records" in found["protocols"]["stop_rate"]
    assert [line.count('"prompt"') for line in path.read_text().splitlines()] == [1] * 4
    assert "exact_match" not in found


def test_a_sliding_window_over_documents(model: Model, tmp_path: Path) -> None:
    texts = [TEXT, TEXT[100:300], "A line.\n" * 30]
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": text} for text in texts])
    found = figures(model, data, stride=20, max_length=48, batch_size=3)
    ids = [np.array(model.tokenizer.encode(text)) for text in texts]
    own = strided(model.network, ids, model.tokenizer, 48, 20, 1)
    assert found["loss"] == found["loss_all"] == pytest.approx(own.loss, abs=1e-6)
    assert found["bits_per_byte"] == pytest.approx(own.bits_per_byte, abs=1e-6)
    assert found["word_perplexity"] == pytest.approx(own.word_perplexity, rel=1e-5)
    assert (found["tokens"], found["records"], found["windows"]) == (own.tokens, 3, own.windows)
    assert found["words"] == sum(len(text.split()) for text in texts)
    assert found.keys() == KEYS | {"word_perplexity", "words", "windows", "protocol", "protocols", "intervals"}
    assert "window 48, stride 20, text as it stands, part all" in found["protocol"]
    assert "but for 3 without context" in found["protocol"]
    chunked = figures(model, data, max_length=48)
    assert chunked["protocol"].startswith("chunks of at most 48 tokens")
    assert chunked["loss"] != found["loss"]


def test_the_window_sees_the_asked_part_only(model: Model, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", [{"text": f"{TEXT} {i}" * (i + 1)} for i in range(6)])
    rows = RowsConfig(split="train:3,validation:1,test:2")
    found = figures(model, data, stride=32, part="test", rows=rows)
    assert found["records"] == 2
    assert found["words"] == sum(len((f"{TEXT} {i}" * (i + 1)).split()) for i in (4, 5))
    with pytest.raises(InputError, match="--part: this part"):
        figures(model, data, stride=32, part="test")


def test_wikitext_is_joined(model: Model, tmp_path: Path) -> None:
    data = tmp_path / "wiki.test.raw"
    data.write_text(" \n = A lamp = \n \n The lamp in the harbour went out . \n" * 9, encoding="utf-8")
    found = figures(model, data, stride=32, wikitext=True)
    joined = "\n\n".join(["", " = A lamp = \n", "", " The lamp in the harbour went out . \n"] * 9)
    assert found["tokens"] == len(model.tokenizer.encode(joined)) - 1
    assert "lines joined as Hugging Face's WikiText recipe does" in found["protocol"]
    assert "text as it stands" in figures(model, data, stride=32, rows=RowsConfig(format="txt"))["protocol"]


def test_options_of_other_data_are_refused(model: Model, tmp_path: Path) -> None:
    rows = write_jsonl(tmp_path / "d.jsonl", records(3))
    text = tmp_path / "t.txt"
    text.write_text(TEXT, encoding="utf-8")
    with pytest.raises(InputError, match="--stride: is for plain text"):
        figures(model, rows, stride=8)
    with pytest.raises(InputError, match=r"t\.txt: plain text has no prompts to answer"):
        figures(model, text, answer_tokens=4)
    with pytest.raises(InputError, match=r"--stride: must be from 1 to the window of 64 tokens \(got 65\)"):
        figures(model, text, stride=65)
    with pytest.raises(InputError, match="--max_length: must be from 2"):
        figures(model, text, stride=3, max_length=65)
    (tmp_path / "a.txt").write_text("a", encoding="utf-8")
    with pytest.raises(InputError, match="no token has one before it"):
        figures(model, tmp_path / "a.txt", stride=3)


def test_a_judge_is_tried_before_the_data_is_read(model: Model, tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("mine")
    said: list[str] = []
    data = write_jsonl(tmp_path / "d.jsonl", records(3))
    options = MeasureOptions(answer_tokens=1, answers=AnswerOptions(predictions=tmp_path / "p.jsonl"))
    with pytest.raises(InputError, match="--predictions: exists already"):
        measure(model, data, options, said.append)
    assert said == []


def classifier(tokenizer: Tokenizer, seed: int, **settings: Any) -> Model:
    """A random classifier of two classes that reads with `tokenizer`."""
    shape = tiny_config(vocab_size=tokenizer.vocab_size, labels=("no", "yes"), **({"n_positions": 64} | settings))
    return Model(random_network(shape, seed), tokenizer, task="classify")


def labelled(path: Path, count: int = 60) -> Path:
    """Texts of many lengths, some longer than the models read, with a class each."""
    rows = [{"text": f"{i}. {TEXT}"[: 9 + 7 * i], "label": ["no", "yes"][i % 3 > 0]} for i in range(count)]
    return write_jsonl(path, rows)


def test_two_classifiers_are_compared_each_by_its_own_tokenizer(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The other one was given the first one's tokens, whatever they meant to it, and as many as the first one reads."""
    data = labelled(tmp_path / "d.jsonl")
    model = classifier(tiny_tokenizer, 0)
    other = classifier(Tokenizer(train_vocabulary(iter([TEXT]), 300)), 1, n_positions=19)
    found = figures(model, data, against=other)
    rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
    right = [
        [said.label == row["label"] for said, row in zip(m.predict([r["text"] for r in rows]), rows, strict=True)]
        for m in (model, other)
    ]
    assert found["only_first_right"] == sum(a and not b for a, b in zip(*right, strict=True))
    assert found["only_second_right"] == sum(b and not a for a, b in zip(*right, strict=True))
    assert found["only_first_right"] + found["only_second_right"] > 5
    assert found["accuracy"] == pytest.approx(sum(right[0]) / len(rows))
    same = figures(model, data, against=model)
    assert (same["difference"], same["p_value"]) == (0, 1)


def test_what_cannot_be_compared_is_refused(model: Model, tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    data = labelled(tmp_path / "d.jsonl")
    first = classifier(tiny_tokenizer, 0)
    with pytest.raises(InputError, match=r"--against: its classes are not no, yes \(got a language model\)"):
        figures(first, data, against=model)
    with pytest.raises(InputError, match="--against: one is for classify, the other is not"):
        figures(first, data, against=replace(first, task="entail"))
    short = classifier(tiny_tokenizer, 1, n_positions=30)
    with pytest.raises(InputError, match="--against: the two leave out different records as too long"):
        figures(first, data, against=short, rows=RowsConfig(on_long="skip"))
