"""Batches laid out in few shapes: the loss and the gradients are those of the batch; here on the CPU, unrecorded."""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import numpy as np
import pytest
import torch
from tests.standins.models import difference, fill_lora, random_network, tiny_config
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from finetwo.data.batch import Batch, layout
from finetwo.data.sequences import Sequence
from finetwo.model import attend
from finetwo.model.network import Network
from finetwo.train import replayed
from finetwo.train.laid import lay
from finetwo.train.replayed import Replayed
from finetwo.train.step import backward

KINDS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora": True}, "classes": {"labels": ("a", "b", "c")}}


def plain_flash(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, most: tuple[int, int], dropout: float, scale: float
) -> Tensor:
    """What flash attention computes, sequence by sequence: the last query sees the last key."""
    assert all(int(e.diff().max()) <= m for e, m in zip(ends, most, strict=True))
    found = []
    for a, b, c, d in zip(ends[0][:-1], ends[0][1:], ends[1][:-1], ends[1][1:], strict=True):
        if a == b:
            continue
        mine, theirs = (x.transpose(0, 1) for x in (q[a:b], k[c:d]))
        mask = torch.ones(b - a, d - c, dtype=torch.bool).tril(int((d - c) - (b - a)))
        seen = scaled_dot_product_attention(mine, theirs, v[c:d].transpose(0, 1), attn_mask=mask, scale=scale)
        found.append(seen.transpose(0, 1))
    return torch.cat(found)


@pytest.fixture(autouse=True)
def _on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attend, "_flash", plain_flash)
    monkeypatch.setattr(replayed, "lowered", lambda precision, network: contextlib.nullcontext())


def network_of(kind: str) -> Network:
    settings = dict(KINDS[kind])
    lora = settings.pop("lora", False)
    network = random_network(tiny_config(n_positions=40, **settings)).train()
    if lora:
        network.add_lora(rank=2, targets="all-linear")
        fill_lora(network)
        network.freeze_all_but_lora()
    return network


def batches_of(network: Network, *, share: bool, seed: int = 0, packing: bool | None = True) -> list[Batch]:
    """Two micro-batches of sequences of unequal lengths; most begin alike."""
    generator, few = torch.Generator().manual_seed(seed), bool(network.config.labels)
    made = []
    for length in (30, 3, 17, 21, 9, 12, 5):
        tokens = torch.randint(0, 60, (length,), generator=generator).int().numpy()
        targets = torch.randint(0, 60, (length,), generator=generator).int().numpy()
        if length > 8:
            tokens[:6] = range(6)
        targets[: length - 1 if few else length // 2 + 1] = -100
        targets[-1] = length % 3 if few else 7
        made.append(Sequence(tokens, targets))
    return [layout(part, packing, share=share) for part in (made[:4], made[4:])]


def taken(network: Network, by: Any) -> tuple[float, dict[str, Tensor]]:
    network.zero_grad()
    loss = float(by())
    return loss, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
@pytest.mark.parametrize("share", [False, True], ids=["each", "shared"])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_the_batch(kind: str, share: bool, packing: bool) -> None:
    network = network_of(kind)
    batches = batches_of(network, share=share, packing=packing)
    assert any(b.shared for b in batches) == (share and packing)
    weights = [0.5, 2.0, 1.0] if kind == "classes" else None
    mass = sum(b.learned if weights is None else b.weight(weights) for b in batches)
    given = None if weights is None else torch.tensor(weights)
    wanted = taken(network, lambda: backward(network, batches, "float32", mass, given, 4.0))
    steps = Replayed(network, "float32", record=False)
    for _ in range(2):
        found = taken(network, lambda: steps(batches, mass, weights, 4.0))
        assert found[0] == pytest.approx(wanted[0], abs=1e-5)
        assert found[1].keys() == wanted[1].keys()
        for name, gradient in wanted[1].items():
            assert difference(found[1][name], gradient) < 4e-5, name


def test_dense_rows_learn_everywhere() -> None:
    network = network_of("full")
    rows = torch.randint(0, 60, (2, 3, 16), generator=torch.Generator().manual_seed(1)).int().numpy()
    batch = layout([Sequence(a, b) for a, b in zip(*rows, strict=True)], None)
    assert lay(batch, 40, 1.0).shape.learned == 0 and not batch.packed
    wanted = taken(network, lambda: backward(network, [batch], "float32", 48))
    found = taken(network, lambda: Replayed(network, "float32", record=False)([batch], 48, None, 1.0))
    assert found[0] == pytest.approx(wanted[0], abs=1e-5)
    assert all(difference(found[1][n], g) < 1e-5 for n, g in wanted[1].items())


def test_there_are_few_shapes_and_little_filling() -> None:
    rng, shapes, more = np.random.default_rng(0), set(), []
    for _ in range(200):
        sizes = rng.integers(40, 110, 64)
        made = [Sequence(rng.integers(0, 60, n).astype(np.int32), np.full(n, 1, dtype=np.int32)) for n in sizes]
        for s in made:
            s.tokens[:20], s.targets[: len(s) - 12] = range(20), -100
        batch = layout(made, True, share=True)
        laid = lay(batch, 1024, 1.0)
        shapes.add(laid.shape)
        more.append(laid.shape.columns / batch.tokens.size - 1)
    assert len(shapes) <= 16 and max(more) < 0.09 and np.mean(more) < 0.05


def test_the_same_lengths_are_the_same_shape() -> None:
    network = network_of("full")
    one, two = (batches_of(network, share=True, seed=n) for n in (0, 1))
    first, second = (lay(b[0], 40, 1.0) for b in (one, two))
    assert first.shape == second.shape and len(first.numbers) == sum(first.shape.sizes())
    assert not np.array_equal(first.numbers, second.numbers)


def test_nothing_is_changed_by_what_fills_up() -> None:
    """Other filling tokens give the same loss: nobody sees them."""
    network = network_of("full")
    batch = batches_of(network, share=True)[0]
    laid = lay(batch, 40, 1.0)
    size = laid.shape.columns
    assert size > batch.tokens.shape[1]
    steps, other = Replayed(network, "float32", record=False), copy.deepcopy(laid)
    other.numbers[batch.tokens.shape[1] : size] = 33
    found = []
    for each in (laid, other):
        network.zero_grad()
        steps._total.zero_()
        steps._add(each)
        found.append((steps._total.clone(), *(p.grad for p in network.parameters())))
    for a, b in zip(*found, strict=True):
        assert difference(a, b) < 1e-6


def test_what_cannot_be_recorded_is_computed_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Any] = []

    def refuse(self: Replayed, shape: Any, *given: Tensor) -> None:
        tries.append(shape)
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(Replayed, "_recorded", refuse)
    network = network_of("full")
    steps = Replayed(network, "float32", record=True)
    for seed, share in ((0, True), (1, True), (0, False), (2, False), (0, True)):
        batches = batches_of(network, share=share, seed=seed)
        mass = sum(b.learned for b in batches)
        wanted = taken(network, lambda b=batches, m=mass: backward(network, b, "float32", m))
        found = taken(network, lambda b=batches, m=mass: steps(b, m, None, 1.0))
        assert found[0] == pytest.approx(wanted[0], abs=1e-5)
        assert all(difference(found[1][n], g) < 2e-5 for n, g in wanted[1].items())
    assert len(tries) == len(set(tries)) == 2, "each shape once, and after two it is given up"
