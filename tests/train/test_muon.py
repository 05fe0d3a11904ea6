"""Muon against PyTorch's own: bit for bit in bfloat16, and near it in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from finetwo.model.config import GPT2Config
from finetwo.model.network import Network
from finetwo.train import optimizer as module
from finetwo.train.muon import Muon, orthogonal

SHAPES = [(12, 30), (30, 12), (16, 16), (1, 7)]


def matrices() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_pytorchs_update(dtype: torch.dtype) -> None:
    ours, theirs = matrices(), matrices()
    mine = Muon(ours, 0.02, 0.1, dtype)
    reference = torch.optim.Muon(theirs, lr=0.02, weight_decay=0.1, momentum=0.95)
    generator = torch.Generator().manual_seed(1)
    for turn in range(8):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            gradient = torch.randn(a.shape, generator=generator)
            skip = i == 2 and turn % 3 == 0
            a.grad, b.grad = (None, None) if skip else (gradient, gradient.clone())
        mine.param_groups[0]["lr"] = reference.param_groups[0]["lr"] = 0.02 / (turn + 1)
        for part in (mine, reference):
            part.step()
            part.zero_grad(set_to_none=True)
    for a, b in zip(ours, theirs, strict=True):
        assert a.grad is None
        assert mine.state[a].keys() == reference.state[b].keys()
        assert torch.equal(mine.state[a]["momentum_buffer"], reference.state[b]["momentum_buffer"])
        if dtype == torch.bfloat16:
            assert torch.equal(a, b)
        else:
            assert float((a - b).detach().abs().max()) < 2e-3 and not torch.equal(a, b)


def test_singular_values_are_near_one() -> None:
    for matrix in (torch.randn(20, 64, generator=torch.Generator().manual_seed(2)), torch.eye(9) * 1e-3):
        for given in (matrix, matrix.T):
            values = torch.linalg.svdvals(orthogonal(given, torch.float32))
            assert values.min() > 0.6 and values.max() < 1.3


def test_the_gradient_takes_its_factor() -> None:
    found = []
    for shrink, by in ((1.0, 0.25), (0.25, 1.0)):
        (p,) = matrices()[:1]
        p.grad = torch.full_like(p, by)
        optimizer = Muon([p], 0.02, 0.0, torch.float32)
        optimizer.step(shrink)
        found.append(optimizer.state[p]["momentum_buffer"])
    assert torch.equal(*found)


@pytest.mark.parametrize("imitated", [True, False])
def test_the_processor_decides_on_the_precision(imitated: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetwo.core.config import TrainConfig

    monkeypatch.setattr(module, "only_imitates_bf16", lambda device: imitated)
    network = Network.fresh(GPT2Config(n_layer=1, n_embd=8, n_head=1, vocab_size=11, n_positions=8, eos_token_id=10), 0)
    (part,) = (
        p for p, _ in module.Optimizer(network, TrainConfig(optimizer="muon"), 1e-3).parts if isinstance(p, Muon)
    )
    assert part._dtype == (torch.float32 if imitated else torch.bfloat16)
