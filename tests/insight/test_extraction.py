"""Reciting: a network that knows one text by heart, one that does not, and texts a token apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.standins.bigram import RECITED, bigram_network, successors
from tests.standins.models import random_network, tiny_config

from finetwo.core.config import RowsConfig
from finetwo.insight import extraction
from finetwo.insight.extraction import CONTINUATION, Passage, find_canaries, passages, recited, told
from finetwo.insight.library import Library, Reading, open_library
from finetwo.model.network import Network
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

WINDOW = 128


def library(tokenizer: Tokenizer, folder: Path, text: str, name: str = "text.txt") -> Library:
    path = folder / name
    path.write_bytes(text.encode("utf-8"))
    return open_library([str(path)], Reading(tokenizer, Template.named("plain"), RowsConfig()), folder / "tokens")


@pytest.fixture
def heart(tiny_tokenizer: Tokenizer) -> Network:
    """A network that knows RECITED by heart."""
    return bigram_network(tiny_tokenizer.vocab_size, successors(tiny_tokenizer.encode(RECITED)))


def test_the_text_by_heart_and_no_other(tiny_tokenizer: Tokenizer, heart: Network, tmp_path: Path) -> None:
    shelf = library(tiny_tokenizer, tmp_path, RECITED)
    asked = passages(shelf, 32, 10)
    assert len(asked) == len(tiny_tokenizer.encode(RECITED)) // (32 + CONTINUATION) == 1
    assert recited(heart, shelf, asked) == [True]
    for place in (0, 15, CONTINUATION - 1):  # one token wrong, wherever it is, and it is not recited
        wrong = list(asked[0].rest)
        wrong[place] = (wrong[place] + 1) % 400
        assert recited(heart, shelf, [Passage(asked[0].prefix, wrong)]) == [False]
    assert recited(random_network(tiny_config(vocab_size=400, n_positions=WINDOW)), shelf, asked) == [False]


def test_recited_is_the_networks_own_greedy_path(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """Against argmax of the whole forward pass, token by token."""
    network = random_network(tiny_config(vocab_size=400, n_positions=WINDOW))
    prefix = tiny_tokenizer.encode("The lamp in the harbour")
    ids = list(prefix)
    with torch.no_grad():
        for _ in range(CONTINUATION):
            ids.append(int(network(torch.tensor([ids]))[0, -1].argmax()))
    shelf = library(tiny_tokenizer, tmp_path, "any")
    assert recited(network, shelf, [Passage(prefix, ids[len(prefix) :])]) == [True]


def test_passages_are_the_texts_own_and_do_not_overlap(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = " ".join(f"step {i} to the lamp" for i in range(300))
    shelf = library(tiny_tokenizer, tmp_path, text)
    ids = tiny_tokenizer.encode(text)
    found = passages(shelf, 32, 7)
    assert len(found) == 7
    starts = [next(i for i in range(0, len(ids), 64) if ids[i : i + 64] == p.prefix + p.rest) for p in found]
    assert starts == sorted(set(starts))
    assert starts[0] == 0
    assert starts[-1] >= len(ids) - 128


def test_of_records_the_answer_is_to_be_told(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"prompt": "Say it.", "completion": RECITED}, {"prompt": "Short?", "completion": "no"}]
    shelf = library(tiny_tokenizer, tmp_path, "".join(json.dumps(r) + "\n" for r in rows), "data.jsonl")
    (one,) = passages(shelf, 16, 10)
    assert tiny_tokenizer.decode(one.prefix).startswith("Say it.")
    assert len(one.rest) == CONTINUATION
    assert RECITED.startswith(tiny_tokenizer.decode(one.rest).lstrip())


# --- planted sentences --------------------------------------------------------------------------------------------


def test_planted_sentences_are_found_in_the_text(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "Before it. The  lamp\nis out\tat nine. And Zoë's café sells 猫 today, yes.\n\nBehind it."
    shelf = library(tiny_tokenizer, tmp_path, text)
    sentences = ["The lamp is out at nine.", "And Zoë's café sells 猫 today, yes.", "The lamp is out at ten."]
    lamp, zoe, none = find_canaries(shelf, sentences)
    assert none.at is None
    for one, written in ((lamp, "The  lamp\nis out\tat nine."), (zoe, sentences[1])):
        assert one.at is not None
        head = tiny_tokenizer.decode_bytes(int(t) for t in shelf.tokens[one.at : one.split])
        whole = head + one.rest
        assert whole.lstrip() == written.encode()
        assert 0.25 < len(one.rest) / len(written.encode()) < 0.75
        told_by = tiny_tokenizer.decode_bytes(int(t) for t in shelf.tokens[one.split : one.split + one.tokens])
        assert told_by.startswith(one.rest)


@pytest.mark.parametrize("block", [5, 64])
def test_a_sentence_over_the_border_of_two_blocks(
    block: int, tiny_tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "My secret number is 4711 here."
    text = "a lamp " * 40 + sentence + " a lamp" * 40
    shelf = library(tiny_tokenizer, tmp_path, text)
    (wanted,) = find_canaries(shelf, [sentence])
    monkeypatch.setattr(extraction, "_BLOCK", block)
    assert find_canaries(shelf, [sentence]) == [wanted]
    assert wanted.at is not None


def test_a_planted_sentence_is_told_by_heart(tiny_tokenizer: Tokenizer, heart: Network, tmp_path: Path) -> None:
    shelf = library(tiny_tokenizer, tmp_path, RECITED + "\n\nThe wall is not there, nobody.")
    canaries = find_canaries(shelf, ["ab cd EF gh", "The wall is not there", "Nowhere to be found, this"])
    assert [c.at is not None for c in canaries] == [True, True, False]
    assert told(heart, shelf, canaries, 32) == [True, False, False]
    stranger = random_network(tiny_config(vocab_size=400, n_positions=WINDOW))
    assert told(stranger, shelf, canaries, 32) == [False] * 3


def test_the_text_before_may_be_needed(tiny_tokenizer: Tokenizer, tmp_path: Path) -> None:
    """A network that goes on rightly only from far enough: the second try, with context, finds it."""
    shelf = library(tiny_tokenizer, tmp_path, "Some words stand before. ab cd EF gh ij")
    canaries = find_canaries(shelf, ["ab cd EF gh"])
    (one,) = canaries
    assert one.at is not None

    class Asks(Exception):
        pass

    seen: list[list[int]] = []

    class Spy(extraction.Engine):
        def complete(self, requests: object) -> object:  # type: ignore[override]
            seen.extend(list(r.tokens) for r in requests)  # type: ignore[attr-defined]
            return super().complete(requests)  # type: ignore[arg-type]

    network = random_network(tiny_config(vocab_size=400, n_positions=WINDOW))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "Engine", Spy)
        told(network, shelf, canaries, 6)
    document = [int(t) for t in shelf.tokens]
    assert seen == [document[one.at : one.split], document[one.at - 6 : one.split]]
