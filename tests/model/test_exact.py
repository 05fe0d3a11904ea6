"""Every saving of a training step against the plain step: float32, loss and each gradient to 1e-5."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.standins.models import difference, fill_lora, random_network, random_tokens, tiny_config
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetwo.model.attend import Causal
from finetwo.model.network import Network

LEARNED = {"few": 0.2, "most": 0.9, "every": 2.0}
"""Share of the places that carry a target."""
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "post-norm": {"post_norm": True},
    "lora": {"lora": True},
    "classes": {"labels": ("a", "b", "c")},
}


def network_of(kind: str) -> Network:
    """A tiny network of one of the `KINDS`, ready to learn."""
    settings = dict(KINDS[kind])
    lora = settings.pop("lora", False)
    network = random_network(tiny_config(**settings)).train()
    if lora:
        network.add_lora(rank=2, targets="all-linear")
        fill_lora(network)
        network.freeze_all_but_lora()
    return network


def plain(network: Network, tokens: Tensor, targets: Tensor) -> Tensor:
    """The loss without any saving: every hidden state, every logit, one cross-entropy."""
    return cross_entropy(network(tokens).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)


def gradients(network: Network, loss: Tensor, count: int) -> tuple[float, dict[str, Tensor]]:
    """The mean loss over `count` targets, and every gradient of it."""
    network.zero_grad()
    (loss / count).backward()
    found = {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}
    return float(loss.detach()) / count, found


def assert_same(a: tuple[float, dict[str, Tensor]], b: tuple[float, dict[str, Tensor]]) -> None:
    assert abs(a[0] - b[0]) < 1e-5
    assert a[1].keys() == b[1].keys()
    for name in a[1]:
        assert difference(a[1][name], b[1][name]) < 1e-5, name


@pytest.mark.parametrize("share", LEARNED.values(), ids=LEARNED)
@pytest.mark.parametrize("kind", KINDS)
def test_the_last_block_only_where_something_is_learned(kind: str, share: float) -> None:
    network = network_of(kind)
    tokens = random_tokens(3, 11, 61, seed=1)
    targets = random_tokens(3, 11, len(network.config.labels) or 61, seed=2)
    targets[torch.rand(targets.shape, generator=torch.Generator().manual_seed(3)) > share] = -100
    count = int((targets != -100).sum())
    positions = torch.arange(11).expand(3, 11)
    seen: list[int] = []
    hook = network.transformer.h[-1].mlp.register_forward_pre_hook(lambda _, x: seen.append(x[0].numel() // 24))
    found = gradients(network, network.loss(tokens, positions, targets, Causal()), count)
    hook.remove()
    assert seen == [count], "the last feed-forward runs at the kept places only"
    assert_same(found, gradients(network, plain(network, tokens, targets), count))
