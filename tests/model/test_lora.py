"""Adapters: they begin as nothing, scale as the papers say, and merge without a trace."""

from __future__ import annotations

import math

import pytest
import torch
from tests.standins.models import difference, fill_lora, random_network, random_tokens, tiny_config

from finetwo.core.config import LoraConfig
from finetwo.core.errors import InputError
from finetwo.model.config import SIZES
from finetwo.model.linear import Linear
from finetwo.model.lora import LoraAdapter, find_targets, linears, merge_lora
from finetwo.model.network import Network

TOKENS = random_tokens(2, 9, 61)
SAME = 2e-6  # BLAS may round a product differently with where its operands lie in memory


@pytest.fixture
def network() -> Network:
    return random_network(tiny_config())


def counts(network: Network) -> tuple[int, int]:
    trainable = sum(p.numel() for p in network.parameters() if p.requires_grad)
    return trainable, sum(p.numel() for p in network.parameters()) - trainable


def test_the_published_shape_has_the_published_counts() -> None:
    with torch.device("meta"):
        network = Network(SIZES["gpt2"])
        assert network.add_lora(rank=8) == 24
        network.freeze_all_but_lora()
    assert counts(network) == (442_368, 124_439_808)


def test_default_targets(network: Network) -> None:
    assert network.add_lora(rank=2) == 6
    adapted = [n for n, m in linears(network).items() if m.adapter is not None]
    assert adapted == [f"transformer.h.{i}.attn.{n}" for i in range(3) for n in ("c_attn", "c_proj")]
    assert network.lora == LoraConfig(2, 4.0, 0.0, "attn.c_attn,attn.c_proj", False)


@pytest.mark.parametrize("targets", ["attn.c_attn", "all-linear"])
def test_a_fresh_adapter_changes_nothing(network: Network, targets: str) -> None:
    before = network(TOKENS)
    network.add_lora(rank=3, targets=targets)
    assert difference(network(TOKENS), before) < SAME
    assert network.adapter_state() and all(bool(t.any()) == ("lora_A" in n) for n, t in network.adapter_state().items())


def test_a_is_drawn_as_peft_draws_it() -> None:
    network = Network(tiny_config(n_embd=64, n_layer=4))
    network.add_lora(rank=16, targets="c_attn", seed=3)
    drawn = [t for n, t in network.adapter_state().items() if "lora_A" in n]
    values = torch.stack(drawn)
    assert float(values.abs().max()) <= 1 / math.sqrt(64) and abs(float(values.std()) * math.sqrt(3 * 64) - 1) < 0.05
    assert not torch.equal(drawn[0], drawn[1])
    again, other = Network(tiny_config(n_embd=64, n_layer=4)), Network(tiny_config(n_embd=64, n_layer=4))
    again.add_lora(rank=16, targets="c_attn", seed=3)
    other.add_lora(rank=16, targets="c_attn", seed=4)
    name = "transformer.h.0.attn.c_attn.adapter.lora_A.weight"
    assert torch.equal(again.adapter_state()[name], drawn[0])
    assert not torch.equal(other.adapter_state()[name], drawn[0])


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({"rank": 4}, 2.0),
        ({"rank": 4, "alpha": 4}, 1.0),
        ({"rank": 16, "alpha": 16}, 1.0),  # seed fault 0.21: no alpha/r made this 16
        ({"rank": 4, "alpha": 6, "rslora": True}, 3.0),
        ({"rank": 4, "alpha": 1, "rslora": False}, 0.25),
    ],
)
def test_scale(settings: dict[str, object], scale: float) -> None:
    linear = Linear(17, 19)
    with torch.no_grad():
        linear.weight.normal_()
        linear.bias.normal_()
    adapter = LoraAdapter(17, 19, LoraConfig(**settings))  # type: ignore[arg-type]
    with torch.no_grad():
        adapter.lora_A.weight.normal_()
        adapter.lora_B.weight.normal_()
    assert adapter.scale == pytest.approx(scale)
    x = torch.randn(3, 17)
    plain = linear(x)
    linear.adapter = adapter
    wanted = plain + scale * (x @ adapter.lora_A.weight.t()) @ adapter.lora_B.weight.t()
    assert difference(linear(x), wanted) < 1e-4
    assert difference(x @ adapter.delta(), wanted - plain) < 1e-4


@pytest.mark.parametrize("settings", [{}, {"targets": "all-linear", "rslora": True}, {"targets": "mlp.c_fc,c_proj"}])
def test_merged_equals_unmerged(network: Network, settings: dict[str, object]) -> None:
    plain = network(TOKENS)
    count = network.add_lora(rank=3, **settings)
    fill_lora(network)
    unmerged = network(TOKENS)
    assert difference(unmerged, plain) > 1e-2
    assert merge_lora(network) == count and not network.adapter_state()
    assert all(m.adapter is None for m in linears(network).values())
    assert difference(network(TOKENS), unmerged) < 1e-5
    assert merge_lora(network) == 0 and difference(network(TOKENS), unmerged) < 1e-5


def test_merging_in_bf16_sums_in_float32() -> None:
    linear = Linear(8, 8).to(torch.bfloat16)
    adapter = LoraAdapter(8, 8, LoraConfig(rank=2)).to(torch.bfloat16)
    with torch.no_grad():
        linear.weight.fill_(1.0)
        linear.bias.zero_()
        adapter.lora_A.weight.fill_(0.0625)
        adapter.lora_B.weight.fill_(0.03125)
    linear.adapter = adapter
    merge_lora(linear)
    assert linear.weight.dtype == torch.bfloat16
    assert torch.equal(linear.weight.float(), torch.full((8, 8), 1.0 + 2 * 2 * 0.0625 * 0.03125).bfloat16().float())


def test_only_the_adapter_learns(network: Network) -> None:
    network.add_lora(rank=2)
    network.freeze_all_but_lora()
    assert {n for n, p in network.named_parameters() if p.requires_grad} == set(network.adapter_state())
    before = {n: t.clone() for n, t in network.state().items()}
    fill_lora(network)
    network(TOKENS).sum().backward()
    assert all((p.grad is not None) == (".adapter." in n) for n, p in network.named_parameters())
    assert all(torch.equal(t, before[n]) for n, t in network.state().items())


def test_freezing_without_an_adapter_is_refused(network: Network) -> None:
    with pytest.raises(InputError, match=r"no adapter.*call add_lora"):
        network.freeze_all_but_lora()


def test_dropout_of_the_adapter(network: Network) -> None:
    network.add_lora(rank=3, dropout=0.5)
    fill_lora(network)
    calm = network(TOKENS)
    network.train()
    torch.manual_seed(0)
    assert difference(network(TOKENS), calm) > 1e-3
    network.eval()
    assert difference(network(TOKENS), calm) < SAME


@pytest.mark.parametrize(
    ("targets", "found"),
    [
        ("attn.c_attn", {"attn.c_attn"}),
        ("c_attn", {"attn.c_attn"}),
        ("c_proj", {"attn.c_proj", "mlp.c_proj"}),  # as PEFT reads it
        (" mlp.c_fc , attn.c_proj ", {"mlp.c_fc", "attn.c_proj"}),
        ("all-linear", {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"}),
    ],
)
def test_targets_by_name(network: Network, targets: str, found: set[str]) -> None:
    names = {n.split(".", 3)[3] for n in find_targets(network, targets)}
    assert names == found and len(find_targets(network, targets)) == 3 * len(found)


def test_a_target_may_be_one_linear(network: Network) -> None:
    assert list(find_targets(network, "transformer.h.1.mlp.c_fc")) == ["transformer.h.1.mlp.c_fc"]
    assert list(find_targets(network, "h.2.mlp.c_fc,transformer.h.0.mlp.c_fc")) == [
        "transformer.h.0.mlp.c_fc",
        "transformer.h.2.mlp.c_fc",
    ]


@pytest.mark.parametrize("targets", ["c_atn", "attn.c_attn,c_atn", "attn", "lm_head", "wte", ",", "h.7.attn.c_attn"])
def test_a_wrong_target_lists_the_right_ones(network: Network, targets: str) -> None:
    with pytest.raises(InputError) as e:
        network.add_lora(rank=2, targets=targets)
    assert "--lora.targets: no layer has this name" in str(e.value)
    assert "Fix: use attn.c_attn, attn.c_proj, mlp.c_fc, mlp.c_proj or all-linear" in str(e.value)
    assert not network.adapter_state() and network.lora is None


def test_a_second_adapter_and_a_rank_above_the_layer_are_refused(network: Network) -> None:
    with pytest.raises(InputError, match=r"--lora\.rank: larger than the layer transformer\.h\.0\.attn\.c_attn"):
        network.add_lora(rank=25)
    assert not network.adapter_state()
    network.add_lora(rank=2)
    with pytest.raises(InputError, match="the model already carries an adapter"):
        network.add_lora(rank=2)


@pytest.mark.parametrize("settings", [{"rank": 0}, {"rank": 100_000}, {"alpha": 0}, {"dropout": 1.5}, {"dropout": -1}])
def test_settings_out_of_range(network: Network, settings: dict[str, float]) -> None:
    with pytest.raises(InputError, match=rf"--lora\.{next(iter(settings))}"):
        network.add_lora(**settings)
