"""Losses of passages: against transformers, whatever stands beside them, and behind a prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from tests.standins.models import random_network, random_tokens, tiny_config

from finetwo.insight.passages import passage_losses
from finetwo.model.network import Network


@pytest.fixture(scope="module")
def network() -> Network:
    return random_network(tiny_config())


def rows(lengths: list[int]) -> list[np.ndarray[Any, Any]]:
    return [random_tokens(1, n, 60, seed=n)[0].numpy() if n else np.zeros(0, dtype=np.int64) for n in lengths]


def test_as_transformers_says(tiny_network: Network, tiny_hf: Any) -> None:
    passages = [random_tokens(1, n, 400, seed=n)[0] for n in (19, 2, 7)]
    nats, counts = passage_losses(tiny_network, [(p.numpy(), 1) for p in passages])
    for passage, found, count in zip(passages, nats, counts, strict=True):
        with torch.no_grad():
            mean = tiny_hf(passage[None], labels=passage[None]).loss
        assert count == len(passage) - 1
        assert found == pytest.approx(float(mean) * int(count), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 2, 8])
def test_company_changes_nothing(network: Network, batch_size: int) -> None:
    passages = rows([5, 19, 2, 11, 3])
    nats, counts = passage_losses(network, [(p, 1) for p in passages], batch_size)
    alone = [passage_losses(network, [(p, 1)])[0][0] for p in passages]
    assert nats == pytest.approx(alone, rel=1e-5)
    assert counts.tolist() == [4, 18, 1, 10, 2]


def test_a_prompt_is_read_and_not_scored(network: Network) -> None:
    (passage,) = rows([12])
    whole, head, tail = (passage_losses(network, [one])[0][0] for one in ((passage, 1), (passage[:5], 1), (passage, 5)))
    assert whole == pytest.approx(head + tail, rel=1e-5)
    other = passage.copy()
    other[0] = (other[0] + 1) % 60
    assert passage_losses(network, [(other, 5)])[0][0] != pytest.approx(tail, rel=1e-5)
    assert passage_losses(network, [(passage, 5)])[1][0] == 7


def test_nothing_to_score(network: Network) -> None:
    passages = rows([1, 0, 4])
    nats, counts = passage_losses(network, [(p, 1) for p in passages])
    assert counts.tolist() == [0, 0, 3]
    assert nats[:2].tolist() == [0.0, 0.0]
    assert passage_losses(network, [])[1].tolist() == []


def test_dropout_is_off_and_the_mode_kept(network: Network) -> None:
    (passage,) = rows([9])
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    try:
        assert passage_losses(network, [(passage, 1)])[0] == passage_losses(network, [(passage, 1)])[0]
        assert network.training
    finally:
        network.eval()
