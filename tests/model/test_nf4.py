"""NF4 against its definition, against brute force, and against bitsandbytes where that is installed."""

from __future__ import annotations

from statistics import NormalDist

import pytest
import torch
from torch import Tensor

from finetwo.model.linear import Linear
from finetwo.model.nf4 import BLOCK, CODE, NF4Linear, encode


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 0.02


def stored(weight: Tensor) -> NF4Linear:
    linear = Linear(*weight.shape)
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.zero_()
    return NF4Linear.of(linear)


def relative(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def test_the_values_are_the_quantiles_of_the_paper() -> None:
    """Eight positive and seven negative quantiles of a normal distribution and 0, over the largest."""
    ppf, outermost = NormalDist().inv_cdf, 0.9677083

    def between(count: int) -> list[float]:
        step = (outermost - 0.5) / count
        return [ppf(outermost - i * step) for i in range(count)]

    values = sorted([*between(8), 0.0, *(-v for v in between(7))])
    assert [v / max(values) for v in values] == pytest.approx(CODE, abs=2e-7)


def test_each_number_gets_the_nearest_value() -> None:
    weight = normal(64, 48)
    codes, largest = encode(weight)
    blocks = weight.double().view(-1, BLOCK)
    assert torch.equal(largest, blocks.abs().amax(1).float())
    distance = (blocks / blocks.abs().amax(1, keepdim=True))[..., None] - torch.tensor(CODE).double()
    taken = distance.abs().gather(-1, codes.view(-1, BLOCK, 1).long()).squeeze(-1)
    assert float((taken - distance.abs().amin(-1)).max()) < 1e-6


def test_rounding_the_scales_as_well_costs_next_to_nothing() -> None:
    weight = normal(256, 256)
    codes, largest = encode(weight)
    once = (torch.tensor(CODE)[codes.long()].view(-1, BLOCK) * largest[:, None]).view(256, 256)
    linear = stored(weight)
    twice = linear.dequantised(torch.float32)
    assert relative(once, weight) == pytest.approx(0.092, abs=0.001)  # of a normal distribution, blocks of 64
    assert relative(twice, weight) < 1.005 * relative(once, weight)
    assert not torch.equal(once, twice)
    assert 4.125 < 8 * (linear.stored_bytes - 2048) / weight.numel() < 4.14


def test_an_odd_number_of_blocks_and_a_short_one() -> None:
    weight = normal(7, 13)
    assert relative(stored(weight).dequantised(torch.float32), weight) < 0.12


def test_as_bitsandbytes_has_it() -> None:
    functional = pytest.importorskip("bitsandbytes.functional")
    for shape in ((768, 2304), (100, 30), (7, 13)):
        weight = normal(*shape, seed=sum(shape))
        codes, largest = encode(weight)
        theirs, state = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4")
        size = (weight.numel() + 1) // 2
        assert torch.equal(theirs.view(-1)[:size], (codes[::2] << 4 | codes[1::2])[:size])
        assert torch.equal(state.absmax, largest)
        packed, nested = functional.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=True)
        back = functional.dequantize_4bit(packed, nested).view(*shape)
        ours = stored(weight).dequantised(torch.float32)
        assert relative(ours, weight) < 1.001 * relative(back, weight)
        assert relative(ours, back) < 0.01  # they differ in how the scales are rounded, and in nothing else
