"""What is updated by what: decay, epsilon, Muon, freezing, and the state that a checkpoint carries."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.standins.models import random_network, tiny_config

from finetwo.core.config import LoraConfig, TrainConfig
from finetwo.core.errors import InputError
from finetwo.model.network import Network
from finetwo.train.optimizer import Optimizer, freeze, trainable
from finetwo.train.step import gradient_norm, shrinking


def network() -> Network:
    return random_network(tiny_config(n_embd=16, n_layer=2, n_head=2))


def snapshot(net: Network) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in net.named_parameters()}


def set_gradients(net: Network, seed: int | None) -> None:
    """Random gradients, or zero ones."""
    generator = torch.Generator().manual_seed(seed or 0)
    for p in net.parameters():
        if p.requires_grad:
            noise = torch.empty_like(p).normal_(generator=generator)
            p.grad = noise if seed is not None else torch.zeros_like(p)


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_decay_shrinks_matrices_only(kind: Any) -> None:
    """With zero gradients what is left of the update is the decay: p *= 1 - rate * decay."""
    net = network()
    before = snapshot(net)
    set_gradients(net, None)
    Optimizer(net, TrainConfig(weight_decay=0.5, optimizer=kind, muon_lr=0.1), 0.1).step(1.0)
    for name, p in net.named_parameters():
        wanted = before[name] * 0.95 if p.ndim >= 2 else before[name]
        assert torch.allclose(p, wanted, atol=1e-6), name
        assert p.ndim < 2 or not torch.equal(p, before[name])


def test_adam_eps_reaches_the_update() -> None:
    """The first AdamW update is g / (|g| + eps): near the rate for a small epsilon, near g / eps for a large one."""
    moved = {}
    for eps in (1e-8, 1e3):
        net = network()
        before = snapshot(net)
        set_gradients(net, 1)
        gradients = {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}
        Optimizer(net, TrainConfig(weight_decay=0.0, adam_eps=eps), 1.0).step(1.0)
        moved[eps] = {n: before[n] - p.detach() for n, p in net.named_parameters()}
    for name, gradient in gradients.items():
        assert torch.allclose(moved[1e-8][name], gradient.sign(), atol=1e-3), name
        assert torch.allclose(moved[1e3][name], gradient / (gradient.abs() + 1e3), atol=1e-6), name


def test_the_factor_scales_the_peak_rate_and_does_not_pile_up() -> None:
    net = network()
    optimizer = Optimizer(net, TrainConfig(optimizer="muon", muon_lr=0.02), 1e-3)
    for share in (0.5, 0.25):
        set_gradients(net, 1)
        optimizer.step(share)
    rates = {type(part).__name__: {g["lr"] for g in part.param_groups} for part, _ in optimizer.parts}
    assert rates == {"AdamW": {0.00025}, "Muon": {0.005}}


def test_muon_takes_the_block_matrices_and_adamw_the_rest() -> None:
    net = network()
    optimizer = Optimizer(net, TrainConfig(optimizer="muon"), 1e-3)
    set_gradients(net, 1)
    optimizer.step(1.0)
    slots: dict[str, set[str]] = {}
    for key in optimizer.tensors():
        name, slot = key.rsplit("|", 1)
        slots.setdefault(name, set()).add(slot)
    for name, p in net.named_parameters():
        muon = p.ndim == 2 and ".h." in name
        assert slots[name] == ({"momentum_buffer"} if muon else {"exp_avg", "exp_avg_sq", "step"}), name


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("limit", [0.5, 1e9, 0.0])
def test_clipping_inside_the_update_is_clipping_before_it(kind: Any, limit: float) -> None:
    """Against torch's own clipping, over steps whose gradients are shrunk and one that would be left alone."""
    ours, theirs = network(), network()
    first, second = (Optimizer(net, TrainConfig(optimizer=kind, adam_eps=1e-2), 1e-2) for net in (ours, theirs))
    for seed in (1, 2, 3):
        for net in (ours, theirs):
            set_gradients(net, seed)
        norm = float(gradient_norm(ours.parameters()))
        wanted = float(torch.nn.utils.clip_grad_norm_(theirs.parameters(), limit or float("inf")))
        assert norm == pytest.approx(wanted, rel=1e-6) and norm > 10
        first.step(1.0, shrinking(norm, limit))
        second.step(1.0)
    for name, p in theirs.named_parameters():
        assert torch.allclose(p, ours.get_parameter(name), atol=1e-6), name


def test_gradients_are_forgotten_after_a_step() -> None:
    net = network()
    optimizer = Optimizer(net, TrainConfig(), 1e-3)
    set_gradients(net, 1)
    optimizer.step(1.0)
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_state_goes_out_and_in_to_the_same_update(kind: Any) -> None:
    """A copy that takes the state goes on with the same bits; one that does not, does not."""
    config = TrainConfig(optimizer=kind)
    first = network()
    optimizer = Optimizer(first, config, 1e-2)
    for seed in (1, 2, 3):
        set_gradients(first, seed)
        optimizer.step(1.0)
    state = {k: v.clone() for k, v in optimizer.tensors().items()}
    copies = []
    for load in (True, False):
        copy = network()
        copy.load_state(first.state(), "test")
        other = Optimizer(copy, config, 1e-2)
        if load:
            other.load_tensors(state, "test")
        set_gradients(copy, 4)
        other.step(0.5)
        copies.append(snapshot(copy))
    set_gradients(first, 4)
    optimizer.step(0.5)
    wanted = snapshot(first)
    assert all(torch.equal(wanted[n], copies[0][n]) for n in wanted)
    assert not all(torch.equal(wanted[n], copies[1][n]) for n in wanted)


def test_state_of_a_foreign_parameter_is_refused() -> None:
    with pytest.raises(InputError, match=r"not trained here.*transformer\.h\.9"):
        Optimizer(network(), TrainConfig(), 1e-3).load_tensors({"transformer.h.9|exp_avg": torch.zeros(1)}, "somewhere")


def test_freeze_by_part_and_by_prefix() -> None:
    net = network()
    count = freeze(net, "wte, h.0")
    held = {n for n, p in net.named_parameters() if not p.requires_grad}
    assert held == {n for n, _ in net.named_parameters() if ".wte." in n or ".h.0." in n}
    assert count == sum(p.numel() for n, p in net.named_parameters() if n in held)
    assert set(trainable(net)) == {n for n, _ in net.named_parameters()} - held


def test_freeze_refuses_an_unknown_name_and_lists_names() -> None:
    with pytest.raises(InputError, match=r"no parameter has this name \(got wtte\).*wte"):
        freeze(network(), "wtte")
    with pytest.raises(InputError, match="no parameter has this name"):
        freeze(network(), "wte,")


def test_nothing_left_to_train_is_refused() -> None:
    net = network()
    freeze(net, "transformer")
    with pytest.raises(InputError, match="nothing is left to train"):
        Optimizer(net, TrainConfig(freeze="transformer"), 1e-3)


def test_only_the_adapter_learns_under_lora() -> None:
    net = network()
    net.add_lora(LoraConfig(rank=2))
    net.freeze_all_but_lora()
    assert set(trainable(net)) == {n for n, _ in net.named_parameters() if ".adapter." in n}
    assert len(trainable(net)) == 8


def test_parameter_summary_of_the_published_shape() -> None:
    """The issue's figures: LoRA of rank 8 on the 124M shape, counted without allocating it."""
    from finetwo.model.config import SIZES

    with torch.device("meta"):
        net = Network(SIZES["gpt2"])
        net.add_lora(LoraConfig(rank=8))
    net.freeze_all_but_lora()
    learn = sum(p.numel() for p in trainable(net).values())
    assert (learn, sum(p.numel() for p in net.parameters()) - learn) == (442_368, 124_439_808)
