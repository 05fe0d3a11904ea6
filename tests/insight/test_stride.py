"""The sliding window: equal to a plain loop over transformers' GPT-2, each token scored once."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.standins.models import TEXT, hf_twin, random_network, tiny_config

from finetwo.insight.stride import Strided, count_words, documents_of, strided, windows
from finetwo.model.network import Network
from finetwo.text.tokenizer import Tokenizer

WINDOW = 24


@pytest.fixture(scope="module")
def network(tiny_tokenizer: Tokenizer) -> Network:
    return random_network(tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=WINDOW))


@pytest.fixture(scope="module")
def ids(tiny_tokenizer: Tokenizer) -> np.ndarray:
    return np.array(tiny_tokenizer.encode(TEXT), dtype=np.uint16)


def plain(network: Network, ids: np.ndarray, window: int, stride: int) -> tuple[float, int]:
    """The loop of Hugging Face's documentation, one window at a time, its losses summed rather than averaged."""
    model, total, count, done = hf_twin(network), 0.0, 0, 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        tokens = torch.from_numpy(ids[None, begin:end].astype(np.int64))
        targets = tokens.clone()
        targets[:, : -(end - done)] = -100
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1].double()
        targets = targets[0, 1:]
        total += float(torch.nn.functional.cross_entropy(logits, targets, ignore_index=-100, reduction="sum"))
        count += int((targets != -100).sum())
        done = end
        if end == len(ids):
            break
    return total, count


@pytest.mark.parametrize("stride", [1, 7, 12, WINDOW - 1, WINDOW])
@pytest.mark.parametrize("batch", [1, 5])
def test_equals_the_plain_loop(
    network: Network, tiny_tokenizer: Tokenizer, ids: np.ndarray, stride: int, batch: int
) -> None:
    short = ids if stride > 1 else ids[:60]
    found = strided(network, [short], tiny_tokenizer, WINDOW, stride, batch)
    total, count = plain(network, short, WINDOW, stride)
    assert found.tokens == count
    assert found.loss == pytest.approx(total / count, abs=1e-5)
    assert found.perplexity == pytest.approx(math.exp(total / count), rel=1e-5)
    expected = len(short) - 1 if stride < WINDOW else len(short) - math.ceil(len(short) / WINDOW)
    assert count == expected == len(short) - found.unscored


def test_a_text_within_the_window_is_scored_at_once(
    network: Network, tiny_tokenizer: Tokenizer, ids: np.ndarray
) -> None:
    short = ids[:20]
    found = strided(network, [short], tiny_tokenizer, WINDOW, 3, 4)
    total, count = plain(network, short, WINDOW, WINDOW)
    assert (found.windows, found.tokens) == (1, count)
    assert found.nats == pytest.approx(total, abs=1e-4)


def test_documents_are_told_nothing_of_each_other(network: Network, tiny_tokenizer: Tokenizer, ids: np.ndarray) -> None:
    parts = [ids[:50], ids[50:53], ids[53:54], ids[54:]]
    found = strided(network, parts, tiny_tokenizer, WINDOW, 10, 3)
    sums = [plain(network, part, WINDOW, 10) for part in parts]
    assert found.tokens == sum(count for _, count in sums)
    assert found.nats == pytest.approx(sum(total for total, _ in sums), rel=1e-6)
    assert (found.documents, found.unscored) == (4, 4)


def test_bytes_and_words_are_those_of_the_text(network: Network, tiny_tokenizer: Tokenizer, ids: np.ndarray) -> None:
    found = strided(network, [ids], tiny_tokenizer, WINDOW, 12, 8)
    first = len(tiny_tokenizer.bytes_of(int(ids[0])))
    assert found.text_bytes == len(TEXT.encode()) - first
    assert found.bits_per_byte == pytest.approx(found.nats / math.log(2) / found.text_bytes)
    assert found.words == len(TEXT.split())
    assert found.word_perplexity == pytest.approx(math.exp(found.nats / found.words))


def test_the_mode_is_left_as_it_was_and_dropout_is_off(
    network: Network, tiny_tokenizer: Tokenizer, ids: np.ndarray
) -> None:
    network.transformer.dropout = 0.5
    try:
        network.train()
        found = strided(network, [ids], tiny_tokenizer, WINDOW, 12, 8)
        assert network.training
    finally:
        network.transformer.dropout = 0.0
        network.eval()
    assert found == strided(network, [ids], tiny_tokenizer, WINDOW, 12, 8)


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(2, 20), st.data())
def test_each_token_is_scored_once_with_enough_before_it(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    scored: list[int] = []
    for w in windows(length, window, stride):
        assert w.end - w.begin <= window
        for at in range(w.first, w.end):
            assert at - w.begin >= min(at, window - stride)
            scored.append(at)
    assert scored == sorted(set(scored))
    missing = set(range(length)) - set(scored)
    assert missing == ({0} & set(range(length)) if stride < window else set(range(0, length, window)))


def test_documents_lie_between_ends_of_text() -> None:
    stream = np.array([9, 1, 2, 9, 9, 3, 9], dtype=np.uint16)
    assert [d.tolist() for d in documents_of(stream, 9)] == [[1, 2], [3]]
    assert list(documents_of(np.array([9], dtype=np.uint16), 9)) == []


def test_blocks_hide_neither_ends_nor_words(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetwo.insight import stride

    ids = np.array([tiny_tokenizer.eot, *tiny_tokenizer.encode(TEXT), tiny_tokenizer.eot])
    for size in (1, 2, 7):
        monkeypatch.setattr(stride, "_BLOCK", size)
        (document,) = documents_of(ids, tiny_tokenizer.eot)
        assert len(document) == len(ids) - 2
        assert count_words(document, tiny_tokenizer) == len(TEXT.split())


def test_a_text_without_words_or_bytes_has_no_such_figure() -> None:
    assert Strided(nats=1.0, tokens=1).word_perplexity is None
    assert math.isnan(Strided(nats=1.0, tokens=1).bits_per_byte)
