"""The compiled passes of a step in bfloat16: each against PyTorch in float32, and a step without them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.standins.models import calm_network, unequal_batch
from torch import Tensor
from torch.nn.functional import cross_entropy, layer_norm, scaled_dot_product_attention
from torch.nn.functional import gelu as wanted_gelu

from finetwo.data.batch import Batch
from finetwo.model import native_attend, native_passes, passes
from finetwo.model.attend import Packed, Runs
from finetwo.model.native_attend import Native
from finetwo.model.network import Network
from finetwo.train.evaluate import place
from finetwo.train.step import backward

CPU = torch.device("cpu")
pytestmark = pytest.mark.skipif(native_passes.library() is None, reason="no compiler, or no AVX512-BF16 here")
NEAR = 6e-3
"""Of the length of what is compared: some roundings to bfloat16 (8 bits)."""
ROWS = {
    "one": [[0]],
    "even": [[*range(64)], [*range(64)]],
    "ragged": [[*range(7), 0, *range(50), *range(129), 0, 1]],
    "shared": [[*range(30), *range(12, 45), *range(3, 20), 0, *range(90), *range(89, 91), *range(50, 60)]],
    "long": [[*range(403)]],
}


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def off(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found.detach().float() - wanted.detach().float()).norm() / wanted.detach().float().norm())


def test_they_are_used_here() -> None:
    assert passes.kernels(CPU) is native_passes
    assert Native.usable(CPU, 64) and not Native.usable(CPU, 24) and not Native.usable(CPU, 512)


@pytest.mark.parametrize("width", [16, 64, 80])
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
def test_attention_and_its_gradients_are_those_of_packed_rows(rows: list[list[int]], width: int) -> None:
    positions = torch.tensor(rows)
    b, t = positions.shape
    given = drawn(b, t, 3, 2, width).bfloat16()
    up = drawn(b, 2, t, width, seed=1).bfloat16()
    low, full = given.clone().requires_grad_(), given.float().requires_grad_()
    found = Native(positions)(0, *low.permute(2, 0, 3, 1, 4), 0.3, 0.0)  # type: ignore[call-arg, arg-type]
    wanted = Packed(positions)(0, *full.permute(2, 0, 3, 1, 4), 0.3, 0.0)  # type: ignore[call-arg, arg-type]
    found.backward(up)
    wanted.backward(up.float())
    assert low.grad is not None and full.grad is not None
    assert off(found, wanted) < NEAR
    for part in range(3 if t > 1 else 0):
        assert off(low.grad[:, :, part], full.grad[:, :, part]) < NEAR
    assert off(low.grad[:, :, 2], full.grad[:, :, 2]) < NEAR


def test_what_is_dropped_forward_is_dropped_backward() -> None:
    """Values that are a unit matrix show the weights, and so what was dropped: the rest is plain arithmetic."""
    t, rate, positions = 32, 0.3, torch.arange(32)[None]
    q, k = drawn(1, 3, t, 32).bfloat16(), drawn(1, 3, t, 32, seed=1).bfloat16()
    v, up = drawn(1, 3, t, 32, seed=2).bfloat16(), drawn(1, 3, t, 32, seed=3).bfloat16()
    attend, unit = Native(positions), torch.eye(t).bfloat16().expand(1, 3, t, t)
    torch.manual_seed(5)
    shown = attend(0, q, k, unit, 0.2, rate).float()
    plain = attend(0, q, k, unit, 0.2, 0.0).float()
    kept = shown > 0
    seen = torch.ones(t, t).tril().bool().expand(1, 3, t, t)
    assert abs(float(kept[seen].float().mean()) - (1 - rate)) < 0.05
    assert off(shown, torch.where(kept, plain / (1 - rate), 0.0)) < NEAR
    assert not torch.equal(kept[0, 0], kept[0, 1])
    low, full = [[x.to(d).clone().requires_grad_() for x in (q, k, v)] for d in (torch.bfloat16, torch.float32)]
    torch.manual_seed(5)
    attend(0, *low, 0.2, rate).backward(up)  # type: ignore[call-arg, arg-type]
    scores = (full[0] @ full[1].transpose(2, 3) * 0.2).masked_fill(~seen, -torch.inf).softmax(3)
    (torch.where(kept, scores / (1 - rate), 0.0) @ full[2]).backward(up.float())
    for a, b in zip(low, full, strict=True):
        assert a.grad is not None and b.grad is not None and off(a.grad, b.grad) < NEAR


def test_another_precision_goes_another_way() -> None:
    positions = torch.tensor(ROWS["shared"])
    q, k, v = drawn(3, 1, 2, positions.numel(), 16)
    assert torch.equal(Native(positions)(0, q, k, v, 0.3, 0.0), Packed(positions)(0, q, k, v, 0.3, 0.0))


@pytest.mark.parametrize("count", [1, 16, 40, 1000])
def test_gelu(count: int) -> None:
    x = (drawn(count) * 4).bfloat16().requires_grad_()
    full = x.detach().float().requires_grad_()
    found, wanted = passes.gelu(x), wanted_gelu(full, approximate="tanh")
    assert found.grad_fn is not None and "Gelu" in type(found.grad_fn).__name__
    found.sum().backward()
    wanted.sum().backward()
    assert x.grad is not None and full.grad is not None
    assert off(found, wanted) < NEAR and off(x.grad, full.grad) < NEAR


@pytest.mark.parametrize("classes", [3, 64, 1001])
def test_cross_entropy(classes: int) -> None:
    logits, targets = (drawn(6, classes) * 9).bfloat16(), torch.arange(6) % classes
    weights = torch.linspace(0.5, 2.0, 6)
    leaf = logits.float().requires_grad_()
    wanted = cross_entropy(leaf, targets, reduction="none") * weights
    (wanted.sum() * 3).backward()
    untouched = logits.clone()
    losses = native_passes.cross_entropy_(untouched, targets, classes, weights, 3.0, gradient=False)
    assert torch.equal(untouched, logits)
    assert torch.allclose(losses, wanted.detach(), rtol=1e-5, atol=1e-5)
    assert torch.equal(native_passes.cross_entropy_(logits, targets, classes, weights, 3.0, gradient=True), losses)
    assert leaf.grad is not None and off(logits, leaf.grad) < NEAR


@pytest.mark.parametrize("low", [True, False], ids=["bfloat16", "float32"])
@pytest.mark.parametrize("shape", [(1, 8), (7, 24), (50, 70)])
def test_add_norm(shape: tuple[int, int], low: bool) -> None:
    width = shape[1]
    x, delta = drawn(*shape), drawn(*shape, seed=1).to(torch.bfloat16 if low else torch.float32)
    given = [x, delta, drawn(width, seed=2), drawn(width, seed=3)]
    ups = [drawn(*shape, seed=4), drawn(*shape, seed=5)]
    ours, plain = [[t.clone().requires_grad_() for t in given] for _ in range(2)]
    total, y = passes.AddNorm.apply(*ours, 1e-5, torch.bfloat16)  # type: ignore[no-untyped-call]
    (total * ups[0]).sum().add((y.float() * ups[1]).sum()).backward()
    wanted = plain[0] + plain[1]
    normed = layer_norm(wanted, (width,), plain[2], plain[3], 1e-5)
    (wanted * ups[0]).sum().add((normed * ups[1]).sum()).backward()
    assert off(total, wanted) < 1e-6 and off(y, normed) < NEAR
    for a, b in zip(ours, plain, strict=True):
        assert a.grad is not None and b.grad is not None and off(a.grad, b.grad) < NEAR


def test_dropout_drops_the_same_backward_and_is_drawn_from_the_one_generator() -> None:
    x = torch.ones(3, 9001, dtype=torch.bfloat16, requires_grad=True)
    torch.manual_seed(1)
    y = passes.dropout(x, 0.25)
    y.backward(torch.ones_like(y))
    assert x.grad is not None and torch.equal(x.grad, y.detach())
    assert abs(float((y == 0).float().mean()) - 0.25) < 0.01
    assert abs(float(y.detach().float().mean()) - 1.0) < 0.02
    again = passes.dropout(x, 0.25)
    assert not torch.equal(again, y)
    torch.manual_seed(1)
    assert torch.equal(passes.dropout(x, 0.25), y)


def test_a_product_is_widened_and_added_as_it_is() -> None:
    from finetwo.model.mixed import summed_product

    a, b = drawn(5000, 9).bfloat16(), drawn(9, 7, seed=1).bfloat16()
    plain = (a @ b).float()
    assert torch.equal(summed_product(a, b, torch.float32), plain)
    assert torch.equal(summed_product(a, b, torch.float32, plain.clone()), plain + plain)


@pytest.mark.parametrize("target", [-100, -1, 50, 64, 10**12])
def test_a_target_that_is_no_class_is_refused(target: int) -> None:
    logits = drawn(2, 64).bfloat16()
    with pytest.raises(IndexError, match="50 classes"):
        native_passes.cross_entropy_(logits, torch.tensor([3, target]), 50, None, 1.0, gradient=True)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e9, 1e12, 1e30])
def test_large_logits_and_scores_are_told_apart(size: float) -> None:
    """Before a run diverges its logits grow; a loss that hides it, or a gradient of anything, would not be noticed."""
    logits = (size + drawn(6, 70) * size * 0.01).bfloat16()
    targets = torch.arange(6)
    leaf = logits.double().requires_grad_()
    wanted = cross_entropy(leaf, targets, reduction="none")
    wanted.sum().backward()
    assert leaf.grad is not None
    losses = native_passes.cross_entropy_(logits, targets, 70, None, 1.0, gradient=True)
    assert off(losses, wanted) < 1e-5 and off(logits, leaf.grad) < NEAR
    k = torch.full((1, 1, 40, 16), size**0.5) * (1 + 0.02 * drawn(1, 1, 40, 1))
    q, k, v = torch.full_like(k, size**0.5).bfloat16(), k.bfloat16(), drawn(1, 1, 40, 16, seed=1).bfloat16()
    seen = Native(torch.arange(40)[None])(0, q, k, v, 1.0, 0.0)
    assert off(seen, scaled_dot_product_attention(q.float(), k.float(), v.float(), is_causal=True, scale=1.0)) < NEAR


@pytest.mark.parametrize("shape", [(1, 3), (50, 128), (300, 333)])
def test_rows_are_summed_in_float32(shape: tuple[int, int]) -> None:
    x = (drawn(*shape) + 3).bfloat16()
    assert off(native_passes.sum_rows(x), x.double().sum(0)) < 1e-6


def test_what_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    passes.kernels.cache_clear()
    monkeypatch.setattr(native_passes, "gelu", lambda x: x * 0.5)
    assert passes.kernels(CPU) is None
    passes.kernels.cache_clear()


def test_attention_that_computes_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    native_attend._proven.cache_clear()
    monkeypatch.setattr(native_attend, "scaled_dot_product_attention", plain_but(0.02))
    assert not Native.usable(CPU, 64)
    monkeypatch.undo()
    native_attend._proven.cache_clear()
    assert Native.usable(CPU, 64)


def plain_but(share: float) -> Any:
    """Attention that sees a little of what comes behind."""

    def attention(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor, scale: float) -> Tensor:
        every = v.mean(2, keepdim=True) * share * 5
        return scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, scale=scale) + every

    return attention


# --- a whole step ----------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {"full": {}, "lora": {"lora": True}, "post-norm": {"post_norm": True}}


def network_of(kind: str) -> Network:
    return calm_network(**KINDS[kind])


def step(network: Network, batch: Batch, precision: str) -> tuple[float, dict[str, Tensor]]:
    network.zero_grad()
    loss = float(backward(network, [batch], precision, batch.learned))
    return loss, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("lay", [(True, False), (True, True), (False, False)], ids=["packed", "shared", "padded"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_step_is_as_near_to_float32_as_without_them(
    kind: str, lay: tuple[bool, bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    network, batch = network_of(kind), unequal_batch(lay[0], share=lay[1])
    wanted, ours = step(network, batch, "float32"), step(network, batch, "bf16")
    assert isinstance(place(batch, network, "bf16").attend, Native)
    assert not isinstance(place(batch, network, "float32").attend, Native)
    without(monkeypatch)
    assert not isinstance(place(batch, network, "bf16").attend, Native)
    plain = step(network, batch, "bf16")
    assert ours[0] == pytest.approx(wanted[0], rel=2e-3) and ours[1].keys() == wanted[1].keys()
    for name, gradient in wanted[1].items():
        assert off(ours[1][name], gradient) < 1.3 * off(plain[1][name], gradient) + 2e-3, name


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that has none, attention in bfloat16 as well; what caches hold is stood in for."""
    monkeypatch.setattr("finetwo.model.attend._slow_in_16_bits", lambda length: False)
    monkeypatch.setattr(native_attend, "_proven", lambda: False)
    for module in ("passes", "norm", "loss", "mixed"):
        monkeypatch.setattr(f"finetwo.model.{module}.kernels", lambda *_: None)


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_recomputing_gives_the_same_bits_with_dropout(kind: str) -> None:
    network, batch = network_of(kind), unequal_batch(True)
    network.transformer.dropout = 0.1
    torch.manual_seed(2)
    wanted = step(network, batch, "bf16")
    network.transformer.recompute = True
    torch.manual_seed(2)
    found = step(network, batch, "bf16")
    assert found[0] == wanted[0] and all(torch.equal(found[1][n], g) for n, g in wanted[1].items())


def test_what_is_no_number_is_not_lost() -> None:
    """A training step is refused when its loss is none: nothing on the way may hide that."""
    logits = torch.zeros(3, 50, dtype=torch.bfloat16)
    logits[1, 7] = float("nan")
    losses = native_passes.cross_entropy_(logits, torch.tensor([1, 2, 3]), 50, None, 1.0, gradient=True)
    assert losses.isfinite().tolist() == [True, False, True] and not bool(logits[1].isfinite().any())
    for which in range(3):
        qkv = torch.zeros(3, 1, 2, 20, 16, dtype=torch.bfloat16)
        qkv[which, :, :, 5] = float("nan")
        seen = Native(torch.arange(20)[None])(0, qkv[0], qkv[1], qkv[2], 0.25, 0.0)
        assert not bool(seen[0, :, 5].isfinite().any())
        assert which == 2 or bool(seen[0, :, :5].isfinite().all())  # a weight of 0 times none is none
    assert bool(native_passes.gelu(torch.full((20,), float("nan"), dtype=torch.bfloat16)).isnan().all())


def test_who_asks_first_does_not_matter() -> None:
    """The proofs take gradients, which an answer that is being generated does without."""
    with torch.inference_mode():
        assert passes.kernels.__wrapped__(torch.device("cpu")) is passes.kernels(torch.device("cpu"))
        assert native_attend._proven.__wrapped__()


@pytest.mark.parametrize("precision", ["bf16", "bf16-true"])
def test_blocks_that_are_recomputed_may_ask_first(precision: str) -> None:
    """Nothing may be saved between what a block saves: it is not there when the block is computed again."""
    network, batch = network_of("full"), unequal_batch(True)
    if precision == "bf16-true":
        network.to(torch.bfloat16)
    network.transformer.recompute = True
    passes.kernels.cache_clear()
    native_attend._proven.cache_clear()
    assert step(network, batch, precision)[0] > 0.0


def test_runs_of_a_group_lie_together() -> None:
    positions = torch.tensor(ROWS["shared"])
    tables, runs = native_attend._Tables(positions), Runs(positions.numpy())
    assert tables.group.tolist() == [0, 3, 4, 7]
    assert int(tables.offset[-1] + runs.first[-1] + runs.size[-1]) == tables.keys.size
