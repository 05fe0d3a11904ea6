"""Float32 weights in the compiled kernel: against float64, the same bits in any company, weights where they lie."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Iterator

import pytest
import torch
from tests.standins.models import fill_lora, normal, random_network, tiny_config

from finetwo.model import fused, kernel
from finetwo.model.fused import Fused, usable
from finetwo.model.network import Network

pytestmark = pytest.mark.skipif(fused.refused() is not None, reason=f"no kernel: {fused.refused()}")
SHAPES = {
    "plain": {},
    "odd": {"n_embd": 21, "n_head": 3, "n_inner": 50},
    "post_norm": {"post_norm": True},
    "inverse_layer": {"scale_attn_by_inverse_layer_idx": True},
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu"},
    "wide": {"n_embd": 416, "n_head": 4, "n_layer": 1},
}


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def adapted(**settings: object) -> Network:
    network = random_network(tiny_config(**settings))
    network.add_lora(rank=3, targets="c_attn,mlp.c_proj")
    fill_lora(network, std=0.3)
    return network


@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (75, 72), (1, 1), (5, 200), (130, 768), (1000, 70)])
@pytest.mark.parametrize("what", ["linear", "adapted", "table"])
def test_products(what: str, outputs: int, inputs: int) -> None:
    weight, x, bias = normal(inputs, outputs), normal(81, inputs, seed=1), normal(outputs, seed=2)
    down, up, lines = normal(5, inputs, seed=3), normal(5, outputs, seed=4), weight.t().contiguous()
    exact = x.double() @ weight.double()
    if what == "table":
        by = kernel.table(lines, outputs)
    else:
        exact += bias
        by = kernel.floats(weight, bias, (down, up) if what == "adapted" else None)
        if what == "adapted":
            exact += x.double() @ down.double().t() @ up.double()
    assert by.codes == (lines if what == "table" else weight).data_ptr()  # no copy
    torch.set_num_threads(1)
    got = kernel.multiply(by, x)
    assert float((got - exact).abs().max()) < 2e-6 * float(exact.abs().max())
    for count in [*range(1, 12), 16, 33, 64, 65]:  # every number of rows has its own code
        assert torch.equal(kernel.multiply(by, x[:count].contiguous()), got[:count])
        assert torch.equal(kernel.multiply(by, x[81 - count :].contiguous()), got[81 - count :])
    for number in (2, 3, 7):
        torch.set_num_threads(number)
        assert torch.equal(kernel.multiply(by, x), got)
    assert kernel.multiply(by, x[:0]).shape == (0, outputs)


GUARDED = """
import ctypes, mmap, torch
from finetwo.model import kernel
page = mmap.PAGESIZE
block = mmap.mmap(-1, 17 * page)
start = ctypes.addressof(ctypes.c_char.from_buffer(block))
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(start + 16 * page), page, 0) == 0  # nobody may read it
room = torch.frombuffer(block, dtype=torch.float32)[: 4 * page]
for outputs, inputs in ((50, 3), (17, 70), (48, 16), (3, 21), (1, 1)):
    flat, x = room[4 * page - outputs * inputs :], torch.ones(9, inputs)
    for by in (kernel.floats(flat.view(inputs, outputs), None), kernel.table(flat.view(outputs, inputs), outputs)):
        assert torch.equal(kernel.multiply(by, x), torch.zeros(9, outputs))
print("read", flush=True)
import os; os._exit(0)
"""


def test_nothing_behind_the_weights_is_read() -> None:
    done = subprocess.run([sys.executable, "-c", GUARDED], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "read\n"), done.stderr


@pytest.mark.parametrize("shape", [*SHAPES, "lora"])
def test_steps_equal_the_full_forward(shape: str) -> None:
    network = adapted() if shape == "lora" else random_network(tiny_config(**SHAPES[shape]))
    assert usable(network)
    tokens = torch.randint(0, 61, (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        full = network(tokens)[:, 8:, :59]
        exact = copy.deepcopy(network).double()(tokens)[:, 8:, :59]
    engine = Fused(network, 59, 3, 17)
    first = [engine.prompt(slot, row[:9].tolist()) for slot, row in enumerate(tokens)]
    rest = [engine.forward(tokens[:, i].tolist(), [i] * 3, range(3), range(3)) for i in range(9, 17)]
    steps = torch.stack([torch.cat(first), *rest], 1)  # (3, 9, 59)
    largest = float(exact.abs().max())
    assert float((steps - exact).abs().max()) < 1e-5 * largest
    assert float((steps - full).abs().max()) < 1e-5 * largest
    # Nothing depends on how tokens are put together: bit for bit.
    other = Fused(network, 59, 4, 30)
    assert torch.equal(other.prompt(2, tokens[1].tolist())[0], steps[1, -1])
    together = other.forward(
        [*tokens[0].tolist(), *tokens[2, :12].tolist()], [*range(17), *range(12)], [0] * 17 + [3] * 12, [16, 28, 8]
    )
    assert torch.equal(together, torch.stack([steps[0, -1], steps[2, 3], steps[0, 0]]))


def test_a_long_prompt_is_computed_in_parts() -> None:
    network = random_network(tiny_config(n_positions=200))
    tokens = torch.randint(0, 61, (150,), generator=torch.Generator().manual_seed(1)).tolist()
    engine = Fused(network, 61, 2, 160)
    whole = engine.prompt(1, tokens)
    with torch.no_grad():
        full = network(torch.tensor([tokens]))[:, -1]
    assert float((whole - full).abs().max()) < 1e-5 * float(full.abs().max())
    for place, token in enumerate(tokens):
        one = engine.forward([token], [place], [0], [0])
    assert torch.equal(one, whole)
    engine.copy(1, 0)
    again = [engine.forward([5], [150], [slot], [0]) for slot in (0, 1)]
    assert torch.equal(*again)


def test_damage_reaches_the_logits_of_its_row_alone() -> None:
    network = random_network(tiny_config())
    engine = Fused(network, 61, 2, 8)
    whole = engine.forward([1, 2], [0, 0], [0, 1], [0, 1])
    with torch.no_grad():
        network.transformer.wte.weight[1, 3] = float("nan")
    hurt = engine.forward([1, 2], [0, 0], [0, 1], [0, 1])
    assert bool(hurt[0].isnan().all()) and torch.equal(hurt[1, 2:], whole[1, 2:])
    with torch.no_grad():
        network.transformer.h[1].ln_2.weight[3] = float("nan")
    assert bool(engine.forward([1, 2], [1, 1], [0, 1], [0, 1]).isnan().all())


@pytest.mark.parametrize("activation", ["relu", "gelu", "gelu_new"])
def test_no_activation_hides_what_is_no_number(activation: str) -> None:
    network = random_network(tiny_config(activation_function=activation))
    with torch.inference_mode():
        network.transformer.h[1].mlp.c_fc.bias[1] = float("nan")
        assert bool(Fused(network, 61, 1, 16).prompt(0, [1, 2, 3]).isnan().all())


def test_classes_and_other_precisions_are_not_for_the_kernel() -> None:
    classes = random_network(tiny_config())
    classes.add_classes(("a", "b"))
    assert not usable(classes)
    network = adapted()
    assert usable(network)
    network.transformer.h[0].mlp.c_fc.to(torch.float64)
    assert not usable(network)


def test_a_kernel_whose_bits_depend_on_company_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    multiply = kernel.multiply
    monkeypatch.setattr(kernel, "multiply", lambda by, x: multiply(by, x) * (1 + 3e-7 * (x.shape[0] == 1)))
    fused.refused.cache_clear()
    try:
        assert "other bits in company than alone" in str(fused.refused())
    finally:
        fused.refused.cache_clear()
