"""One suite for every kind of storage: what a linear with a stored weight must keep, whatever the form."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from tests.standins.models import difference, fill_lora, random_network, random_tokens, tiny_config

from finetwo.core.errors import InputError
from finetwo.model import int8_base
from finetwo.model.linear import Linear
from finetwo.model.lora import linears, merge_lora
from finetwo.model.mixed import Lowered
from finetwo.model.network import Network, Stored
from finetwo.model.stored import StoredLinear, bits, count_parameters, floats, stored_linears, weight_bytes
from finetwo.model.storing import KINDS, store_blocks

TOKENS = random_tokens(2, 9, 61)
EVERY = pytest.mark.parametrize("kind", KINDS)
ROUND_TRIP = {"nf4": 0.094, "int8": 0.008}
"""Relative error of a normal matrix: 16 values in blocks of 64 cost 9.2 %, 255 values an output 0.7 %."""


def random_linear(inputs: int, outputs: int, seed: int = 0) -> Linear:
    generator = torch.Generator().manual_seed(seed)
    linear = Linear(inputs, outputs)
    with torch.no_grad():
        linear.weight.normal_(0.0, 0.02, generator=generator)
        linear.bias.normal_(0.0, 0.1, generator=generator)
    return linear


def stored(kind: str, inputs: int = 96, outputs: int = 80) -> tuple[Linear, StoredLinear]:
    plain = random_linear(inputs, outputs)
    return plain, KINDS[kind].of(copy.deepcopy(plain))


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).detach().norm() / wanted.detach().norm())


@pytest.fixture
def network() -> Network:
    return random_network(tiny_config())


@EVERY
@pytest.mark.parametrize("shape", [(96, 80), (7, 9), (1, 1), (64, 300)], ids=str)
def test_a_weight_comes_back_within_the_stated_error(kind: str, shape: tuple[int, int]) -> None:
    plain, linear = stored(kind, *shape)
    back = linear.dequantised(torch.float32)
    assert back.shape == shape and back.dtype == torch.float32
    if min(shape) > 9:
        assert relative(back, plain.weight) < ROUND_TRIP[kind]
    assert torch.equal(linear.weight, back) and not linear.weight.requires_grad
    assert linear.dequantised(torch.bfloat16).dtype == torch.bfloat16


@EVERY
def test_zeros_stay_zeros_and_a_large_number_does_not_spoil_the_rest(kind: str) -> None:
    plain = random_linear(128, 128)
    with torch.no_grad():
        plain.weight[3] = 0.0
        plain.weight[70, 5] = 50.0
    back = KINDS[kind].of(copy.deepcopy(plain)).dequantised(torch.float32)
    assert not back[3].any()
    assert back[70, 5] == pytest.approx(50.0, rel=0.01)
    rest = torch.ones(128, 128, dtype=torch.bool)
    rest[70, :], rest[:, 5] = False, False
    assert relative(back[rest], plain.weight[rest]) < 1.3 * ROUND_TRIP[kind]


@EVERY
@pytest.mark.parametrize("value", [0.0, 0.25])
def test_a_constant_matrix_is_finite(kind: str, value: float) -> None:
    plain = Linear(64, 64)
    with torch.no_grad():
        plain.weight.fill_(value)
        plain.bias.zero_()
    back = KINDS[kind].of(plain).dequantised(torch.float32)
    assert difference(back, torch.full((64, 64), value)) < 1e-6


@pytest.fixture
def _inputs_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where integer products are fast, int8 rounds the inputs too (see test_int8_base); not here."""
    monkeypatch.setattr(int8_base, "integer_products_are_fast", lambda x: False)


@EVERY
@pytest.mark.usefixtures("_inputs_in_full")
def test_the_product_is_that_of_the_stored_weight(kind: str) -> None:
    _, linear = stored(kind)
    x = torch.randn(2, 5, 96, generator=torch.Generator().manual_seed(1))
    wanted = x.double() @ linear.dequantised(torch.float32).double() + linear.bias.double()
    assert difference(linear(x), wanted) < 1e-5


@EVERY
def test_the_input_learns_through_the_stored_weight_and_the_weight_does_not(kind: str) -> None:
    _, linear = stored(kind)
    x = torch.randn(6, 96, generator=torch.Generator().manual_seed(1), requires_grad=True)
    upstream = torch.randn(6, 80, generator=torch.Generator().manual_seed(2))
    (linear(x) * upstream).sum().backward()
    assert x.grad is not None
    assert difference(x.grad, upstream @ linear.dequantised(torch.float32).t()) < 1e-6
    assert not any(p.requires_grad for p in linear.parameters())


@EVERY
def test_mixed_precision_computes_in_bf16_and_keeps_no_copy(kind: str) -> None:
    _, linear = stored(kind)
    x = torch.randn(6, 96, generator=torch.Generator().manual_seed(1), requires_grad=True)
    full = linear(x)
    with Lowered(linear, None, torch.bfloat16):
        half = linear(x)
        assert linear.lowered == torch.bfloat16 and linear.copies is None
    assert linear.lowered is None
    assert half.dtype == torch.bfloat16 and 0 < difference(half, full) < 0.02
    half.float().sum().backward()
    assert x.grad is not None and x.grad.dtype == torch.float32
    assert linear.to(torch.bfloat16)(x.detach().bfloat16()).dtype == torch.bfloat16


@EVERY
def test_no_full_weight_outlives_a_product(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the passes nothing of the size of the weight is alive: a planted copy in the graph makes this fail."""
    _, linear = stored(kind)
    made: list[weakref.ref[torch.Tensor]] = []
    real = type(linear).dequantised

    def watched(self: StoredLinear, dtype: torch.dtype) -> torch.Tensor:
        weight = real(self, dtype)
        made.append(weakref.ref(weight))
        return weight

    monkeypatch.setattr(type(linear), "dequantised", watched)
    saved: list[int] = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        saved.append(tensor.numel())
        return tensor

    x = torch.randn(6, 96, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        y = linear(x)
    gc.collect()
    assert all(ref() is None for ref in made)
    assert all(size < 96 * 80 for size in saved)
    y.sum().backward()
    assert made and x.grad is not None


@EVERY
def test_casting_and_moving_round_nothing(kind: str) -> None:
    """`network.to(bf16)` casts every float buffer: scales are kept as bits, out of its reach."""
    _, linear = stored(kind)
    before = linear.dequantised(torch.float32)
    linear.to(torch.bfloat16)
    assert linear.bias.dtype == torch.bfloat16
    assert torch.equal(linear.dequantised(torch.float32), before)
    assert torch.equal(floats(bits(torch.tensor([0.1, -3e-30]))), torch.tensor([0.1, -3e-30]))


@EVERY
def test_only_the_matrices_of_the_blocks_change(network: Network, kind: str) -> None:
    before = {n: p.clone() for n, p in network.named_parameters()}
    assert store_blocks(network, kind) == 12
    after = dict(network.named_parameters())
    gone = set(before) - set(after)
    assert gone == {f"{n}.weight" for n in stored_linears(network)} and len(gone) == 12
    assert all(torch.equal(after[n], before[n]) for n in after)
    assert list(linears(network)) == list(stored_linears(network))
    assert count_parameters(network) == sum(p.numel() for p in before.values())
    assert weight_bytes(network) < 4 * count_parameters(network)
    assert {n: t.shape for n, t in network.state().items()} == {n: p.shape for n, p in before.items()}


@EVERY
@pytest.mark.usefixtures("_inputs_in_full")
def test_the_adapter_does_not_care_how_the_weight_is_stored(network: Network, kind: str) -> None:
    """Stored after or before the adapter is placed, logits and gradients are those of the dequantised network."""
    other = copy.deepcopy(network)
    network.add_lora(rank=3, targets="all-linear")
    store_blocks(network, kind)
    store_blocks(other, kind)
    other.add_lora(rank=3, targets="all-linear")
    plain = Network(network.config)
    plain.load_state(other.state(), "test")
    plain.add_lora(rank=3, targets="all-linear")
    found = []
    for each in (network, other, plain):
        fill_lora(each)
        each.freeze_all_but_lora()
        each.eval()
        logits = each(TOKENS)
        logits.logsumexp(-1).sum().backward()
        grads = {n: p.grad for n, p in each.named_parameters() if p.grad is not None}
        assert set(grads) == set(each.adapter_state())
        found.append((logits, grads))
    for logits, grads in found[:2]:
        assert difference(logits, found[2][0]) < 1e-4
        assert all(difference(g, found[2][1][n]) < 1e-4 * max(1.0, float(g.abs().max())) for n, g in grads.items())


@EVERY
def test_merging_into_and_loading_into_it_is_refused(network: Network, kind: str) -> None:
    network.add_lora(rank=2)
    state = {n: t.clone() for n, t in network.state().items()}
    store_blocks(network, kind)
    with pytest.raises(InputError, match=rf"stored as {kind}; an adapter is merged into full-precision"):
        merge_lora(network)
    network.stored = Stored(kind, "0" * 64)
    with pytest.raises(InputError, match=rf"stored as {kind} and takes no weights"):
        network.load_state(state, "weights")
    with pytest.raises(InputError, match=rf"stored as {kind} already"):
        store_blocks(network, kind)


def test_an_unknown_kind_is_refused(network: Network) -> None:
    with pytest.raises(InputError, match=r"--quantize: no such kind of storage \(got int3\)\. Fix: use nf4, int8"):
        store_blocks(network, "int3")
