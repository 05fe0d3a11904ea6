"""Codes against their weights, the kernel against torch, and the stated error bounds on random networks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from tests.standins.models import fill_lora, normal, random_network, tiny_config

from finetwo.core.errors import InputError
from finetwo.model import fused, kernel
from finetwo.model.config import GPT2Config
from finetwo.model.fused import Fused, matrices, pack, usable
from finetwo.model.network import Network
from finetwo.model.quantised import KINDS, Codes, Kind, check_kind, quantise, rounded

ERROR = {"int8": 0.015, "int4": 0.11}
"""Bound of the error of a product, relative to its spread: codes of weights and of inputs together, normal numbers."""
needs_kernel = pytest.mark.skipif(fused.refused() is not None, reason=f"no kernel: {fused.refused()}")
SHAPES = {
    "plain": {},
    "odd": {"n_embd": 21, "n_head": 3, "n_inner": 50},
    "post_norm": {"post_norm": True},
    "inverse_layer": {"scale_attn_by_inverse_layer_idx": True},
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu"},
    "wide_heads": {"n_embd": 80, "n_head": 2},
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def quantised(kind: Kind, *, packed: bool, seed: int = 0, **settings: object) -> Network:
    network = random_network(tiny_config(**settings), seed)
    quantise(network, kind)
    if packed:
        for matrix in matrices(network):
            matrix.pack()
    return network


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (75, 72), (1, 1), (50, 256)])
def test_codes_are_near_their_weights(kind: Kind, outputs: int, inputs: int) -> None:
    weight = normal(outputs, inputs) * 0.1
    matrix = Codes.of(weight, kind)
    step = weight.abs().amax(1, keepdim=True) / 127
    if kind == "int8":
        assert bool(((matrix.weight() - weight).abs() <= step / 2 * 1.001).all())
    else:
        assert float((matrix.weight() - weight).abs().mean() / weight.abs().mean()) < 0.1
        assert matrix.bytes <= 18 * -(-inputs // 32) * outputs  # 4.5 bits a weight
    exact = Codes.of(torch.zeros(outputs, inputs), kind)
    assert torch.equal(exact.weight(), torch.zeros(outputs, inputs))


def test_int4_keeps_what_its_codes_can_say() -> None:
    weight = torch.arange(-8, 8).repeat(3, 4).float() * torch.tensor([[0.5], [0.25], [-2.0]])
    assert torch.equal(Codes.of(weight, "int4").weight(), weight)


def test_rounded_inputs() -> None:
    x = normal(5, 70)
    step = torch.nn.functional.pad(x, (0, 26)).view(5, 3, 32).abs().amax(-1) / 127
    assert bool(((rounded(x) - x).abs() <= step.repeat_interleave(32, 1)[:, :70] / 2 * 1.001).all())
    assert torch.equal(rounded(torch.zeros(2, 40)), torch.zeros(2, 40))
    assert bool(rounded(torch.tensor([[1.0, float("inf")]])).isnan().all())


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (75, 72), (1, 1), (130, 768)])
def test_kernel_equals_torch(kind: Kind, outputs: int, inputs: int) -> None:
    matrix = Codes.of(normal(outputs, inputs), kind)
    x, bias = normal(13, inputs, seed=1) * 3, normal(outputs, seed=2)
    plain, weight, expected = matrix.codes, matrix.weight(), matrix.multiply(x, bias)
    rows = matrix.rows(torch.tensor([[0, outputs - 1]])) if kind == "int8" else None
    matrix.pack()
    got = matrix.multiply(x, bias)
    torch.testing.assert_close(got, expected, atol=2e-6 * float(expected.abs().max()), rtol=0)
    assert torch.equal(matrix.plain(), plain) and torch.equal(matrix.weight(), weight)
    if rows is not None:
        assert torch.equal(matrix.rows(torch.tensor([[0, outputs - 1]])), rows)
    for count in range(1, 12):  # every number of rows has its own code
        assert torch.equal(matrix.multiply(x[:count], bias), got[:count])
    torch.set_num_threads(3)
    assert torch.equal(matrix.multiply(x, bias), got)
    assert matrix.multiply(x[:0], bias).shape == (0, outputs)


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("extreme", [0.0, 1e-38, 1e30, float("nan"), float("inf"), float("-inf")])
def test_extreme_inputs(kind: Kind, extreme: float) -> None:
    matrix = Codes.of(torch.full((20, 64), -1.0), kind)  # every product of two codes as large as can be
    x = torch.full((2, 64), -1.0)
    x[0, 5] = extreme
    expected = matrix.multiply(x)
    matrix.pack()
    got = matrix.multiply(x)
    assert torch.equal(got.isfinite(), expected.isfinite())
    assert torch.equal(got[1], torch.full((20,), got[1, 0].item())) and abs(float(got[1, 0]) - 64) < 0.1
    if expected.isfinite().all():
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_error_bound_of_a_product(kind: Kind) -> None:
    weight, x = normal(300, 768) * 0.02, normal(40, 768, seed=1)
    exact = x @ weight.t()
    assert float((Codes.of(weight, kind).multiply(x) - exact).std() / exact.std()) < ERROR[kind]


@needs_kernel
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_steps_equal_the_full_forward(kind: Kind, shape: str) -> None:
    network = quantised(kind, packed=False, **SHAPES[shape])
    tokens = torch.randint(0, 61, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        full = network(tokens)
        for matrix in matrices(network):
            matrix.pack()
        assert usable(network)
        mixed = network(tokens)  # the kernel for products, torch for the rest
    engine = Fused(network, 59, 3, 17)
    first = [engine.prompt(slot, row[:9].tolist()) for slot, row in enumerate(tokens)]
    rest = [engine.forward(tokens[:, i].tolist(), [i] * 3, range(3), range(3)) for i in range(9, 17)]
    steps = torch.stack([torch.cat(first), *rest], 1)  # (3, 9, 59)
    spread = float(full.std())
    for found in (steps, mixed[:, 8:, :59]):
        difference = (found - full[:, 8:, :59]).abs()
        assert float(difference.max()) < 0.15 * spread  # a number between two codes may go up here and down there
        assert float(difference.mean()) < 0.01 * spread
    # Within the kernel nothing depends on how tokens are put together: bit for bit.
    other = Fused(network, 59, 4, 30)
    assert torch.equal(other.prompt(2, tokens[1].tolist())[0], steps[1, -1])
    together = other.forward(
        [*tokens[0].tolist(), *tokens[2, :12].tolist()], [*range(17), *range(12)], [0] * 17 + [3] * 12, [16, 28, 8]
    )
    assert torch.equal(together, torch.stack([steps[0, -1], steps[2, 3], steps[0, 0]]))


@needs_kernel
def test_a_long_prompt_is_computed_in_parts() -> None:
    network = quantised("int8", packed=True, n_positions=200)
    tokens = torch.randint(0, 61, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    engine = Fused(network, 61, 2, 160)
    whole = engine.prompt(1, tokens)
    for place, token in enumerate(tokens):
        one = engine.forward([token], [place], [0], [0])
    assert torch.equal(one, whole)
    engine.copy(1, 0)
    again = [engine.forward([5], [150], [slot], [0]) for slot in (0, 1)]
    assert torch.equal(*again)


@needs_kernel
def test_damage_reaches_the_logits() -> None:
    network = quantised("int8", packed=True)
    with torch.no_grad():
        network.transformer.h[1].ln_2.weight[3] = float("nan")
    assert bool(Fused(network, 61, 1, 8).prompt(0, [1, 2, 3]).isnan().all())


def test_an_adapter_is_merged_and_classes_keep_their_head() -> None:
    network, twin = random_network(tiny_config()), random_network(tiny_config())
    for one in (network, twin):
        one.add_lora(rank=4, targets="all-linear")
        fill_lora(one, std=0.3)
    tokens = torch.arange(12).view(2, 6)
    with torch.no_grad():
        exact, bare = twin(tokens), random_network(tiny_config())(tokens)
        quantise(network, "int8")
        near = network(tokens)
    assert network.lora is None
    assert float((near - exact).std()) < 0.05 * float((bare - exact).std())
    classes = random_network(tiny_config())
    classes.add_classes(("a", "b"))
    quantise(classes, "int8")
    assert not usable(classes) and classes(tokens).shape == (2, 6, 2)


def test_copies_of_the_whole_weights_are_forgotten() -> None:
    network = random_network(tiny_config())
    with network.lowered():
        pass
    quantise(network, "int8")
    assert network._lowered is None


def test_refusals() -> None:
    with pytest.raises(InputError, match="must be int8 or int4"):
        check_kind("--quantize", "int3")
    network = quantised("int8", packed=False)
    with pytest.raises(InputError, match="quantised already"):
        quantise(network, "int4")
    with pytest.raises(InputError, match="quantised for inference"):
        network.add_lora(rank=2)


def test_without_a_kernel_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "refused", lambda: "no C compiler: cc was not found")
    network = quantised("int4", packed=False)
    assert pack(network) == "no compiled kernel, torch computes instead, slower: no C compiler: cc was not found"
    assert not usable(network)


@needs_kernel
def test_a_kernel_that_computes_otherwise_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = kernel.multiply
    monkeypatch.setattr(kernel, "multiply", lambda by, x: multiply(by, x) * 1.001)
    fused.refused.cache_clear()
    try:
        assert "differs from torch by 1.0e-03 of the largest number (float32)" in str(fused.refused())
    finally:
        fused.refused.cache_clear()


def test_parameters_of_the_published_shape() -> None:
    config = GPT2Config(n_layer=1)
    with torch.device("meta"):
        whole = sum(p.numel() for p in Network(config).parameters())
    network = Network.fresh(config, 0)
    quantise(network, "int8")
    assert sum(m.outputs * m.inputs for m in matrices(network)) + sum(p.numel() for p in network.parameters()) == whole
