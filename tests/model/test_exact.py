"""Every saving of a training step against the plain step: float32, loss and each gradient to 1e-5."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import torch
from tests.standins.models import difference, fill_lora, random_network, random_tokens, tiny_config
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetwo.model.attend import Causal, Packed
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


# --- shared beginnings --------------------------------------------------------------------------------------------

Rows = list[tuple[Tensor, Tensor]]


def family() -> Rows:
    """Sequences that share beginnings of several lengths, one of them whole, and one that shares nothing."""
    draw = [random_tokens(1, n, 61, seed=n)[0] for n in (5, 4, 3, 6, 2)]
    stem, fork, leaf = draw[0], torch.cat(draw[:2]), torch.cat(draw[:3])
    tokens = [stem, torch.cat((stem, draw[4])), fork, torch.cat((fork, draw[3])), torch.cat((leaf, draw[4])), draw[3]]
    tokens.append(torch.cat((leaf, draw[3])))
    rows = []
    for i, t in enumerate(tokens):
        targets = random_tokens(1, len(t), 61, seed=70 + i)[0]
        targets[: len(t) - 1 - i % 2] = -100
        rows.append((t, targets))
    return rows


def shared_row(rows: Rows) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens, positions and targets with each shared beginning once, laid out by hand: each behind its kin."""
    order = sorted(rows, key=lambda r: r[0].tolist())
    parts = []
    for i, (t, y) in enumerate(order):
        before, p = order[i - 1][0] if i else t[:0], 0
        while p < min(len(before), len(t)) and before[p] == t[p] and y[p] == -100:
            p += 1
        parts.append((t[p:], torch.arange(p, len(t)), y[p:]))
    return tuple(torch.cat(column)[None] for column in zip(*parts, strict=True))  # type: ignore[return-value]


def one_by_one(network: Network, rows: Rows) -> Tensor:
    return torch.stack([plain(network, t[None], y[None]) for t, y in rows]).sum()


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", KINDS)
def test_shared_beginnings_once_with_their_gradient(kind: str, recompute: bool) -> None:
    """With the last block at learned places and the head in chunks; and all of it computed again in backward."""
    network = network_of(kind)
    network.transformer.recompute = recompute
    classes = len(network.config.labels)
    rows = [(t, y % classes if classes else y) for t, y in family()]
    rows = [(t, y.masked_fill(torch.arange(len(y)) < len(y) - 1, -100) if classes else y) for t, y in rows]
    if classes:
        rows = [(t, torch.where(y >= 0, y, -100)) for t, y in rows]
    tokens, positions, targets = shared_row(rows)
    total, count = sum(len(t) for t, _ in rows), int((targets != -100).sum())
    assert tokens.numel() <= total - 35 and count == sum(int((y != -100).sum()) for _, y in rows)
    found = gradients(network, network.loss(tokens, positions, targets, Packed(positions)), count)
    assert_same(found, gradients(network, one_by_one(network, rows), count))


def test_a_shared_beginning_sees_the_sequence_before_it_only() -> None:
    """Two families in one row: a rest continues the nearest sequence, not the first of the row."""
    network = network_of("full")
    a, b, rest = (random_tokens(1, n, 61, seed=n)[0] for n in (6, 5, 3))
    tokens = torch.cat((a, b, rest))[None]
    positions = torch.cat((torch.arange(6), torch.arange(5), torch.arange(4, 7)))[None]
    logits = network(tokens, positions, Packed(positions))[0, -3:]
    alone = network(torch.cat((b[:4], rest))[None])[0, -3:]
    other = network(torch.cat((a[:4], rest))[None])[0, -3:]
    assert difference(logits, alone) < 1e-5 < 1e-2 < difference(logits, other)


# --- mixed precision ----------------------------------------------------------------------------------------------


def batch_of(network: Network, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    tokens = random_tokens(3, 11, 61, seed=seed)
    targets = random_tokens(3, 11, len(network.config.labels) or 61, seed=seed + 1)
    targets[:, :5] = -100
    return tokens, torch.arange(11).expand(3, 11), targets


@pytest.mark.parametrize(("low", "bound"), [(torch.bfloat16, 0.05), (torch.float16, 0.005)])
@pytest.mark.parametrize("kind", KINDS)
def test_mixed_precision_stays_by_float32(kind: str, low: torch.dtype, bound: float) -> None:
    """The stated bounds: 1 % of the loss, and each gradient within 5 % (float16: 0.5 %) of its own largest value."""
    network = network_of(kind)
    tokens, positions, targets = batch_of(network, 1)
    exact = gradients(network, network.loss(tokens, positions, targets, Causal()), 18)
    with network.lowered(low):
        loss = network.loss(tokens, positions, targets, Causal())
    found = gradients(network, loss, 18)
    assert found[1].keys() == exact[1].keys()
    assert 0 < abs(found[0] - exact[0]) < 0.01 * exact[0]
    for name, g in found[1].items():
        assert g.dtype == torch.float32
        assert difference(g, exact[1][name]) < bound * float(exact[1][name].abs().max()), name


def curve(kind: str, way: str, steps: int = 60) -> list[float]:
    """Losses of AdamW on one changing task: what follows is the token before, plus one."""
    network = network_of(kind)
    optimizer = torch.optim.AdamW([p for p in network.parameters() if p.requires_grad], lr=1e-3, fused=True)
    losses = []
    for step in range(steps):
        tokens = random_tokens(4, 12, 60, seed=step)
        targets = tokens + 1
        positions = torch.arange(12).expand(4, 12)
        if way == "autocast":
            with torch.autocast("cpu", torch.bfloat16):
                loss = plain(network, tokens, targets) / 48
        else:
            with network.lowered():
                loss = network.loss(tokens, positions, targets, Causal(), scale=1 / 48)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_mixed_precision_has_the_loss_curve_of_autocast(kind: str) -> None:
    ours, theirs = curve(kind, "ours"), curve(kind, "autocast")
    assert theirs[-1] < theirs[0] - 0.2, "something is learned"
    assert max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) < 0.03


def test_a_copy_is_never_older_than_its_weight() -> None:
    network = network_of("full")
    tokens, positions, targets = batch_of(network, 1)

    def low_loss() -> float:
        with network.lowered():
            return float(network.loss(tokens, positions, targets, Causal()).detach())

    first, weight = low_loss(), network.transformer.h[0].mlp.c_fc.weight
    kept = network.lowered()
    optimizer = torch.optim.AdamW([weight, network.transformer.wte.weight], lr=0.1, fused=True)
    for p in (weight, network.transformer.wte.weight):
        p.grad = torch.ones_like(p)
    optimizer.step()
    second = low_loss()
    network.raised()
    assert second == low_loss() != first and kept is not network.lowered()
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    third = low_loss()
    weight.requires_grad_(False)
    assert low_loss() == third != second
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    assert low_loss() == second


def test_a_copy_of_what_learned_and_was_frozen_then_is_made_anew() -> None:
    network = network_of("full")
    tokens, positions, targets = batch_of(network, 1)

    def low_loss() -> float:
        with torch.no_grad(), network.lowered():
            return float(network.loss(tokens, positions, targets, Causal()))

    low_loss()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1, fused=True)  # tells no version of its changes
    for p in network.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    network.requires_grad_(False)
    kept = low_loss()
    network.raised()
    assert kept == low_loss()


def test_an_inner_context_leaves_the_outer_one_in_force() -> None:
    network = network_of("full")
    tokens, positions, targets = batch_of(network, 1)
    with torch.no_grad(), network.lowered():
        first = network.loss(tokens, positions, targets, Causal())
        with network.lowered():
            pass
        assert torch.equal(network.loss(tokens, positions, targets, Causal()), first)
    assert network.head_read is network.head_weight


def test_outside_its_context_nothing_is_lowered() -> None:
    network = network_of("lora")
    tokens, positions, targets = batch_of(network, 1)
    before = network.loss(tokens, positions, targets, Causal())
    with pytest.raises(ZeroDivisionError), network.lowered():
        raise ZeroDivisionError
    assert torch.equal(network.loss(tokens, positions, targets, Causal()), before)
    assert network(tokens).dtype == torch.float32 and network.head_read is network.head_weight


# --- recomputing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", KINDS)
def test_blocks_computed_again_give_the_same_bits_and_keep_less(kind: str, low: bool) -> None:
    network = network_of(kind)
    network.transformer.dropout = 0.2
    tokens, positions, targets = batch_of(network, 1)
    found, kept = [], []
    for recompute in (False, True):
        network.transformer.recompute = recompute
        network.zero_grad()
        torch.manual_seed(0)
        sizes: list[int] = []

        def keep(t: Tensor, sizes: list[int] = sizes) -> Tensor:
            sizes.append(t.numel())
            return t

        precision = network.lowered() if low else contextlib.nullcontext()
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t), precision:
            loss = network.loss(tokens, positions, targets, Causal())
            at_forward = sum(sizes)
            loss.backward()
        kept.append(at_forward)
        found.append([loss.detach(), *(p.grad for p in network.parameters() if p.grad is not None)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert kept[1] < kept[0] / 3
