"""The numeric proof passes for what training computes and fails for each way in which a mask can be wrong."""

from __future__ import annotations

import pytest
import torch
from tests.standins.models import fill_lora, random_network, tiny_config

from finetwo.data.sequences import IGNORE
from finetwo.insight.proof import Sample, prove, sample_of
from finetwo.model.attend import Attend
from finetwo.model.gpt2 import pick
from finetwo.model.loss import kept, summed_loss
from finetwo.model.network import Network

ROW = ([5, 9, 3, 14, 7, 2, 11], [IGNORE, IGNORE, IGNORE, 7, 2, 11, 60])
SHORT = ([8, 4, 1, 30], [IGNORE, IGNORE, 30, 60])


def sample() -> Sample:
    """Two records of unequal length; the last tokens are learned."""
    return sample_of([(t, y, [v != IGNORE for v in y], [True] * len(t)) for t, y in (ROW, SHORT)])


@pytest.fixture
def network() -> Network:
    return random_network(tiny_config())


def test_a_right_mask_passes_and_leaves_everything_as_it_was(network: Network) -> None:
    network.train()
    network.transformer.dropout = 0.5
    before = {n: p.clone() for n, p in network.named_parameters()}
    found = prove(network, sample())
    assert found["ok"], found
    assert found["records"] == 2 and found["loss"] > 0
    assert found["outside_gradient"] == 0.0 and found["control_change"] > 1e-4
    assert network.training
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in network.named_parameters())


def test_a_learned_prompt_fails(network: Network) -> None:
    given = sample()
    targets = given.targets.clone()
    targets[0, 0] = 9
    found = prove(network, Sample(given.tokens, targets, given.may, given.real))
    assert not found["ok"]
    assert found["loss_change"] > 1e-3 and found["gradient_change"] > 1e-3 and found["outside_gradient"] > 0


def test_learned_padding_fails(network: Network) -> None:
    given = sample()
    targets = given.targets.clone()
    targets[1, 5] = 0
    found = prove(network, Sample(given.tokens, targets, given.may, given.real))
    assert not found["ok"] and found["outside_gradient"] > 0


def test_an_answer_that_is_not_learned_fails(network: Network) -> None:
    given = sample()
    targets = given.targets.clone()
    targets[0, 6] = IGNORE  # its end
    found = prove(network, Sample(given.tokens, targets, given.may, given.real))
    assert not found["ok"] and found["loss_change"] > 1e-3 and found["outside_gradient"] == 0.0


def test_nothing_learned_fails(network: Network) -> None:
    given = sample()
    nothing = torch.full_like(given.targets, IGNORE)
    assert not prove(network, Sample(given.tokens, nothing, torch.zeros_like(given.may), given.real))["ok"]


def test_a_loss_that_looks_outside_of_the_mask_fails(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = network.loss

    def smeared(tokens: torch.Tensor, *rest: object) -> torch.Tensor:
        return honest(tokens, *rest) + 1e-3 * network.hidden(tokens).sum()  # type: ignore[arg-type]

    monkeypatch.setattr(network, "loss", smeared)
    found = prove(network, sample())
    assert not found["ok"] and found["gradient_change"] > 1e-4


def test_the_least_gradient_outside_of_the_mask_fails(network: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    def leaking(tokens: torch.Tensor, positions: torch.Tensor, targets: torch.Tensor, attend: Attend) -> torch.Tensor:
        hidden = network.hidden(tokens, positions, attend)
        keep = kept(targets)
        own = summed_loss(pick(hidden, keep), targets.reshape(-1)[keep], network.head_weight)
        return own + 1e-9 * hidden[0, 0].sum()

    monkeypatch.setattr(network, "loss", leaking)
    found = prove(network, sample())
    assert found["loss_change"] < 1e-5 and found["gradient_change"] < 1e-5
    assert 0 < found["outside_gradient"] < 1e-6 and not found["ok"]


@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_a_classifier_passes_and_a_class_elsewhere_fails(network: Network, pooling: str) -> None:
    network.add_classes(("a", "b", "c"), pooling, 0)  # type: ignore[arg-type]
    rows = [([5, 9, 3, 14], [IGNORE] * 3 + [2]), ([8, 4], [IGNORE, 0])]
    given = sample_of([(t, y, [v != IGNORE for v in y], [True] * len(t)) for t, y in rows])
    assert prove(network, given)["ok"]
    targets = given.targets.clone()
    targets[0, 1] = 1
    assert not prove(network, Sample(given.tokens, targets, given.may, given.real))["ok"]


def test_an_adapter_passes(network: Network) -> None:
    network.add_lora(rank=2)
    fill_lora(network)
    network.freeze_all_but_lora()
    found = prove(network, sample())
    assert found["ok"] and found["gradient_change"] < 1e-5


def test_rows_are_cut_and_padded() -> None:
    found = sample_of([([1] * 9, [2] * 9, [True] * 9, [True] * 9), ([3], [4], [True], [True])], limit=5)
    assert found.tokens.shape == (2, 6)
    assert found.targets.tolist() == [[2] * 5 + [IGNORE], [4] + [IGNORE] * 5]
    assert found.real.sum(dim=1).tolist() == [5, 1]
