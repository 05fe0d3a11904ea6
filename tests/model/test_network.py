"""Layouts, micro-batches, the meta device, dropout, fresh weights, and strict loading."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from tests.standins.models import difference, random_network, random_tokens, tiny_config
from torch import Tensor

from finetwo.core.errors import InputError
from finetwo.model.attend import Causal, Packed
from finetwo.model.config import SIZES, GPT2Config
from finetwo.model.network import Network

LENGTHS = (7, 1, 12, 4)
SAME = 2e-6  # BLAS may round a product differently with where its operands lie in memory


@pytest.fixture
def rows() -> list[tuple[Tensor, Tensor]]:
    """Sequences of unequal lengths, each with targets at other places, one of them with none at all."""
    found = []
    for i, n in enumerate(LENGTHS):
        tokens, targets = random_tokens(1, n, 61, seed=i)[0], random_tokens(1, n, 61, seed=50 + i)[0]
        targets[: n // 2 - i] = -100
        found.append((tokens, targets))
    found.append((random_tokens(1, 3, 61, seed=9)[0], torch.full((3,), -100)))
    return found


Gradients = dict[str, Tensor]


def packed(network: Network, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, int]:
    tokens, targets = (torch.cat([r[i] for r in rows])[None] for i in (0, 1))
    positions = torch.cat([torch.arange(len(r[0])) for r in rows])[None]
    return network.loss(tokens, positions, targets, Packed(positions)), int((targets != -100).sum())


def padded(network: Network, rows: list[tuple[Tensor, Tensor]], filler: int = 0) -> tuple[Tensor, int]:
    longest = max(len(r[0]) for r in rows)
    tokens = torch.full((len(rows), longest), filler)
    targets = torch.full((len(rows), longest), -100)
    for i, (a, b) in enumerate(rows):
        tokens[i, : len(a)], targets[i, : len(b)] = a, b
    positions = torch.arange(longest).expand(tokens.shape)
    return network.loss(tokens, positions, targets, Causal()), int((targets != -100).sum())


def packed_in_two_rows(network: Network, rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, int]:
    """Runs inside two rows of one length: 7 + 1 + 4 and 12."""
    order = [[rows[0], rows[1], rows[3]], [rows[2]]]
    tokens, targets = (torch.stack([torch.cat([r[i] for r in group]) for group in order]) for i in (0, 1))
    positions = torch.stack([torch.cat([torch.arange(len(r[0])) for r in group]) for group in order])
    return network.loss(tokens, positions, targets, Packed(positions)), int((targets != -100).sum())


def learn(network: Network, parts: list[tuple[Tensor, int]]) -> tuple[float, int, Gradients]:
    """Return loss and gradients of the parts together, normalised by their joint count, as the loop does it."""
    count = sum(n for _, n in parts)
    network.zero_grad()
    for total, _ in parts:
        (total / count).backward()
    loss = sum(float(t.detach()) for t, _ in parts) / count
    return loss, count, {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def close(a: tuple[float, int, Gradients], b: tuple[float, int, Gradients]) -> None:
    assert a[1] == b[1] and abs(a[0] - b[0]) < 1e-5
    assert a[2].keys() == b[2].keys()
    for name in a[2]:
        assert difference(a[2][name], b[2][name]) < 1e-5, name


@pytest.mark.parametrize("lora", [False, True])
def test_packed_padded_and_one_by_one_are_one(rows: list[tuple[Tensor, Tensor]], lora: bool) -> None:
    network = random_network(tiny_config())
    if lora:
        network.add_lora(rank=2, targets="all-linear")
        network.freeze_all_but_lora()
    alone = learn(network, [padded(network, [r]) for r in rows])
    assert alone[1] == sum(int((t != -100).sum()) for _, t in rows) > 10
    close(learn(network, [packed(network, rows)]), alone)
    close(learn(network, [padded(network, rows)]), alone)
    close(learn(network, [padded(network, rows, filler=60)]), alone)  # what stands in the padding is not seen
    close(learn(network, [packed_in_two_rows(network, rows)]), learn(network, [packed(network, rows[:4])]))


def test_micro_batches_are_one_batch(rows: list[tuple[Tensor, Tensor]]) -> None:
    network = random_network(tiny_config())
    whole = learn(network, [packed(network, rows)])
    for size in (1, 2, 3):  # 5 rows: the last window is short
        close(learn(network, [packed(network, rows[i : i + size]) for i in range(0, len(rows), size)]), whole)
    means = [float(t.detach()) / n for t, n in (packed(network, [r]) for r in rows) if n]
    assert abs(sum(means) / len(means) - whole[0]) > 1e-3  # the mean of means is another number


def test_a_batch_with_nothing_to_learn(rows: list[tuple[Tensor, Tensor]]) -> None:
    network = random_network(tiny_config())
    total, count = packed(network, [rows[4]])
    assert count == 0 and float(total.detach()) == 0.0
    total.backward()
    assert all(p.grad is None or not p.grad.any() for p in network.parameters())


def test_packed_logits_equal_each_run_alone(rows: list[tuple[Tensor, Tensor]]) -> None:
    network = random_network(tiny_config())
    tokens = torch.cat([r[0] for r in rows])[None]
    positions = torch.cat([torch.arange(len(r[0])) for r in rows])[None]
    together, at = network(tokens, positions, Packed(positions)), 0
    for row, _ in rows:
        assert difference(together[:, at : at + len(row)], network(row[None])) < 1e-5
        at += len(row)


# --- devices and modes --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("post_norm", [False, True])
def test_forward_on_the_meta_device(post_norm: bool) -> None:
    with torch.device("meta"):
        network = Network(GPT2Config(post_norm=post_norm))
        network.add_lora(rank=4, targets="all-linear")
    logits = network(torch.zeros((2, 1024), dtype=torch.long, device="meta"))
    assert logits.shape == (2, 1024, 50257) and logits.device.type == "meta"
    network.train()
    network.transformer.dropout = 0.1
    assert network(torch.zeros((1, 5), dtype=torch.long, device="meta")).shape == (1, 5, 50257)


def test_dropout_is_off_unless_set_and_training() -> None:
    network, tokens = random_network(tiny_config()), random_tokens(2, 9, 61)
    assert network.transformer.dropout == 0.0
    calm = network(tokens)
    network.train()
    assert difference(network(tokens), calm) < SAME
    network.transformer.dropout = 0.3
    torch.manual_seed(3)
    noisy = network(tokens)
    assert difference(noisy, calm) > 1e-2
    torch.manual_seed(3)
    assert difference(network(tokens), noisy) < SAME
    assert difference(network(tokens), noisy) > 1e-2
    network.eval()
    assert difference(network(tokens), calm) < SAME


@pytest.mark.parametrize("post_norm", [False, True])
def test_dropout_is_where_gpt2_has_it(post_norm: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = random_network(tiny_config(post_norm=post_norm)).train()
    network.transformer.dropout = 0.25
    calls: list[float] = []

    def fake(x: Tensor, p: float) -> Tensor:
        calls.append(p)
        return x

    class Spy(Causal):
        """Counts attention's own dropout."""

        def __call__(self, *args: Any) -> Tensor:
            calls.append(args[5])
            return super().__call__(*args)

    monkeypatch.setattr("finetwo.model.gpt2.dropout", fake)
    network(random_tokens(1, 4, 61), attend=Spy())
    assert calls == [0.25] * (1 + 3 * 3)  # embeddings; attention, its projection and the feed-forward of 3 layers


# --- sizes and fresh weights --------------------------------------------------------------------------------------

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "distilgpt2": 81_912_576,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameter_counts(name: str) -> None:
    with torch.device("meta"):
        network = Network(SIZES[name])
    assert sum(p.numel() for p in network.parameters()) == PUBLISHED[name] == SIZES[name].parameters
    assert SIZES.keys() == PUBLISHED.keys() | {"tiny"}


def test_parameter_count_of_odd_shapes() -> None:
    for settings in ({}, {"n_inner": 5}, {"vocab_size": 7, "n_layer": 1}):
        config = tiny_config(**settings)
        assert sum(p.numel() for p in Network(config).parameters()) == config.parameters


def test_fresh_weights_have_the_published_spread() -> None:
    network = Network.fresh(tiny_config(n_embd=64, n_layer=8, vocab_size=500, n_positions=200), seed=0)
    for name, p in network.state().items():
        if name.endswith("bias"):
            assert not p.any(), name
        elif "ln_" in name:
            assert (p == 1).all(), name
        else:
            wanted = 0.02 / math.sqrt(16) if name.endswith("c_proj.weight") else 0.02
            assert abs(float(p.std()) / wanted - 1) < 0.06 and abs(float(p.mean())) < wanted / 8, name


def test_fresh_weights_differ_by_layer_and_seed_only() -> None:
    config = tiny_config()
    first, again, other = (Network.fresh(config, seed).state() for seed in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    random = [n for n in first if n.endswith("weight") and ".ln_" not in n]
    assert len(random) == 2 + 4 * config.n_layer and all(not torch.equal(first[n], other[n]) for n in random)
    for n in random:
        if ".h.0." in n:
            assert not torch.equal(first[n], first[n.replace(".h.0.", ".h.1.")]), n
    wide = Network.fresh(tiny_config(initializer_range=0.1), 1).state()
    assert difference(wide["transformer.wte.weight"], 5 * first["transformer.wte.weight"]) < 1e-6


def test_initialising_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(1)
    torch.manual_seed(7)
    network = Network(tiny_config())
    before = torch.get_rng_state()
    network.transformer.initialise(0)
    network.add_lora(rank=2)
    assert torch.equal(torch.get_rng_state(), before) and wanted.numel() == 1


# --- names and strict loading -------------------------------------------------------------------------------------


def test_state_has_the_names_of_hugging_face(tiny_network: Network, tiny_hf: Any) -> None:
    theirs = {n: t for n, t in tiny_hf.state_dict().items() if n != "lm_head.weight"}
    assert {n: t.shape for n, t in tiny_network.state().items()} == {n: t.shape for n, t in theirs.items()}
    tiny_network.add_lora(rank=2)
    assert tiny_network.state().keys() == theirs.keys()
    assert "transformer.h.0.attn.c_attn.adapter.lora_A.weight" in tiny_network.adapter_state()


def state() -> dict[str, Tensor]:
    return {n: t.clone() for n, t in random_network(tiny_config(), seed=4).state().items()}


def test_loading_takes_old_and_bare_names() -> None:
    wanted, network = state(), Network(tiny_config())
    bare = {n.removeprefix("transformer."): t for n, t in wanted.items()}
    bare |= {"h.0.attn.bias": torch.ones(1, 1, 19, 19), "h.2.attn.masked_bias": torch.tensor(-1e4)}
    network.load_state(bare, "here")
    assert all(torch.equal(t, wanted[n]) for n, t in network.state().items())
    network.load_state(wanted | {"lm_head.weight": wanted["transformer.wte.weight"].clone()}, "here")
    network.load_state({n: t.bfloat16() for n, t in wanted.items()}, "here")
    assert network.state()["transformer.wte.weight"].dtype == torch.float32


def refusal(tensors: dict[str, Tensor]) -> str:
    network = random_network(tiny_config())
    before = {n: t.clone() for n, t in network.state().items()}
    with pytest.raises(InputError, match=r"^here: ") as e:
        network.load_state(tensors, "here")
    assert all(torch.equal(t, before[n]) for n, t in network.state().items())  # nothing was half loaded
    return str(e.value)


def test_missing_and_unknown_tensors_are_named() -> None:
    tensors = state()
    for i in range(3):
        del tensors[f"transformer.h.{i}.ln_1.bias"], tensors[f"transformer.h.{i}.ln_2.bias"]
    tensors["transformer.h.9.ln_1.bias"] = torch.zeros(24)
    said = refusal(tensors)
    assert "6 missing, 1 unknown" in said and "transformer.h.9.ln_1.bias" in said
    assert re.search(r"missing transformer\.h\.0\.ln_1\.bias, .*\.bias, .*\.bias \.\.\.; unknown", said)


def test_shapes_are_held() -> None:
    tensors = state()
    tensors["transformer.h.1.mlp.c_fc.weight"] = tensors["transformer.h.1.mlp.c_fc.weight"].t()
    assert "h.1.mlp.c_fc.weight must have shape [24, 96] (got [96, 24])" in refusal(tensors)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_counted(bad: float) -> None:
    tensors = state()
    tensors["transformer.wpe.weight"][3, :5] = bad
    assert "transformer.wpe.weight holds 5 values that are NaN or infinite" in refusal(tensors)


def test_integers_are_refused() -> None:
    tensors = state()
    tensors["transformer.ln_f.bias"] = torch.zeros(24, dtype=torch.int64)
    assert "transformer.ln_f.bias must hold floating-point numbers (got torch.int64)" in refusal(tensors)


def test_an_untied_head_is_refused() -> None:
    tensors = state()
    assert "the head is not tied" in refusal(tensors | {"lm_head.weight": tensors["transformer.wte.weight"] + 1e-3})
    assert "unknown score.weight" in refusal(tensors | {"score.weight": torch.zeros(3, 24)})


def test_one_tensor_under_two_names_is_refused() -> None:
    tensors = state()
    assert "transformer.wpe.weight stands twice" in refusal(tensors | {"wpe.weight": torch.zeros(19, 24)})
