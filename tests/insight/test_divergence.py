"""KL between two networks: against PyTorch's own, exactly zero for equal ones, and what is left out."""

from __future__ import annotations

import pytest
import torch
from tests.standins.models import fill_lora, random_network, random_tokens, tiny_config
from torch.nn.functional import kl_div

from finetwo.insight.divergence import Written, divergences
from finetwo.model.network import Network


def text(prompt: int, answer: int, seed: int = 1) -> Written:
    ids = random_tokens(1, prompt + answer, 60, seed)[0].tolist()
    return Written(ids[:prompt], ids[prompt:])


@pytest.fixture
def first() -> Network:
    return random_network(tiny_config())


@pytest.mark.parametrize("vocab", [61, 40])
def test_as_pytorch_says(first: Network, vocab: int) -> None:
    second = random_network(tiny_config(), seed=9)
    texts = [text(4, 7), text(1, 1, 2), text(10, 9, 3)]
    for one, (nats, tokens) in zip(texts, divergences(first, second, texts, vocab), strict=True):
        ids = torch.tensor([[*one.prompt, *one.answer]])
        with torch.no_grad():
            p, q = (n(ids)[0, len(one.prompt) - 1 : -1, :vocab].double().log_softmax(-1) for n in (first, second))
        assert nats == pytest.approx(float(kl_div(q, p, reduction="sum", log_target=True)), rel=1e-5)
        assert tokens == len(one.answer)
        assert nats > 0


def test_it_is_not_symmetric(first: Network) -> None:
    second = random_network(tiny_config(), seed=9)
    there, back = (divergences(*pair, [text(4, 7)], 61)[0][0] for pair in ((first, second), (second, first)))
    assert there != pytest.approx(back, rel=1e-3)


def test_long_answers_are_taken_in_pieces(first: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    second = random_network(tiny_config(), seed=9)
    whole = divergences(first, second, [text(3, 16)], 61)
    monkeypatch.setattr("finetwo.insight.divergence._ROWS", 5)
    assert divergences(first, second, [text(3, 16)], 61)[0] == (pytest.approx(whole[0][0], rel=1e-6), 16)


def test_an_untrained_adapter_has_exactly_zero(first: Network) -> None:
    tuned = random_network(tiny_config())
    tuned.add_lora(rank=4)
    texts = [text(4, 7), text(2, 9, 5)]
    assert divergences(first, tuned, texts, 61) == [(0.0, 7), (0.0, 9)]
    assert divergences(first, first, texts, 61) == [(0.0, 7), (0.0, 9)]
    fill_lora(tuned)
    assert divergences(first, tuned, texts, 61)[0][0] > 1e-6


def test_what_cannot_be_compared_is_left_out(first: Network) -> None:
    short = random_network(tiny_config(n_positions=12))
    empty = Written([1, 2], [])
    assert divergences(first, short, [text(6, 7), text(6, 8), empty], 61)[1:] == [(0.0, 0), (0.0, 0)]
    assert divergences(first, short, [text(6, 7)], 61)[0][1] == 7  # 13 tokens, of which 12 are read
