"""int8 weights: how far a weight may be off, and the product with 8-bit inputs, which only some processors do fast."""

from __future__ import annotations

import pytest
import torch
from tests.standins.models import difference
from torch import Tensor

from finetwo.model import int8_base
from finetwo.model.int8_base import Int8Linear
from finetwo.model.linear import Linear


def linear_of(weight: Tensor) -> Int8Linear:
    linear = Linear(*weight.shape)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.zero_()
    return Int8Linear.of(linear)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_weight_is_off_by_at_most_half_a_step() -> None:
    weight = drawn(96, 80) * torch.linspace(1e-6, 3.0, 80)
    step = weight.abs().amax(0) / 127
    off = (linear_of(weight).dequantised(torch.float32) - weight).abs()
    assert bool((off <= step * 0.50001).all())


@pytest.mark.parametrize("shift", [0.0, 1.0, -40.0])
def test_the_product_with_8_bit_inputs_is_near(shift: float) -> None:
    """Rows of any range and sign: an input is off by half a step of its row at most, the sum by what that gives."""
    linear = linear_of(drawn(96, 80) * 0.02)
    x = drawn(50, 96, seed=1) * torch.logspace(-3, 2, 50)[:, None] + shift
    exact = x @ linear.dequantised(torch.float32)  # not `product`, which is the integers' where they are fast
    span = x.amax(1).clamp(min=0) - x.amin(1).clamp(max=0)
    bound = 0.51 * span / 255 * linear.dequantised(torch.float32).abs().sum(0).max() + 1e-5 * exact.abs().amax(1)
    found = linear.integer_product(x)
    assert bool(((found - exact).abs().amax(1) <= bound).all())
    assert difference(found, exact) > 0


def test_extreme_codes_do_not_overflow() -> None:
    """Without VNNI some kernels saturate at 16 bits: sums of 127 x 127 would show it."""
    weight = torch.ones(512, 16)
    weight[:, 1::2] = -1.0
    linear = linear_of(weight)
    x = torch.ones(4, 512)
    x[1], x[3] = -1.0, 0.0
    found = linear.integer_product(x)
    assert difference(found, x @ weight) < 0.51 / 255 * 512
    assert not found[3].any()


@pytest.mark.parametrize("fast", [True, False])
def test_the_processor_decides(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: fast, raising=False)
    linear, x = linear_of(drawn(32, 16)), drawn(5, 32)
    assert int8_base.integer_products_are_fast(x) is fast
    assert not int8_base.integer_products_are_fast(x.bfloat16())
    assert torch.equal(linear.product(x), linear.integer_product(x)) is fast
    monkeypatch.delattr(torch.cpu, "_is_vnni_supported")
    assert not int8_base.integer_products_are_fast(x)


def test_the_gradient_is_that_of_the_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(int8_base, "integer_products_are_fast", lambda x: True)
    linear, x = linear_of(drawn(32, 16)), drawn(5, 32).requires_grad_()
    linear(x).sum().backward()
    assert x.grad is not None
    assert difference(x.grad, torch.ones(5, 16) @ linear.dequantised(torch.float32).t()) < 1e-6
