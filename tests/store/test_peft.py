"""Adapters to and from PEFT, with the same logits; and broken ones (row 74)."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.standins.models import difference, fill_lora, random_tokens
from torch import Tensor

from finetwo.core.errors import InputError
from finetwo.model.lora import linears, merge_lora
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.store.peft import load_adapter, read_adapter_config, save_adapter, saved_parameters
from finetwo.store.tensors import read_header, read_tensors, write_tensors
from finetwo.text.tokenizer import Tokenizer

TOKENS = random_tokens(2, 13, 400)
FILES = {
    "adapter_config.json",
    "adapter_model.safetensors",
    "finetwo.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}


@pytest.fixture
def adapter(tmp_path: Path, tiny_network: Network, tiny_tokenizer: Tokenizer) -> Path:
    """A saved adapter of rank 3 on the tiny network; the network itself gets it in its own tests."""
    tiny_network.add_lora(rank=3)
    fill_lora(tiny_network)
    save_adapter(tmp_path / "adapter", tiny_network, tiny_tokenizer, Extras(base="somewhere"))
    return tmp_path / "adapter"


@pytest.fixture
def bare(tiny_hf: Any, tiny_network: Network) -> Network:
    """The tiny network again, without an adapter."""
    other = Network(tiny_network.config)
    other.load_state({n: t for n, t in tiny_hf.state_dict().items() if n != "lm_head.weight"}, "fixture")
    return other.eval()


# --- out to PEFT --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"targets": "all-linear", "alpha": 5.0},
        {"targets": "mlp.c_proj", "rslora": True},
        {"targets": "c_proj", "dropout": 0.25},
        {"targets": "transformer.h.1.attn.c_attn,transformer.h.2.mlp.c_fc", "alpha": 0.75},
    ],
    ids=["default", "all-linear", "rslora", "short name", "single linears"],
)
def test_our_adapter_loads_in_peft(
    tmp_path: Path, tiny_network: Network, tiny_hf: Any, tiny_tokenizer: Tokenizer, settings: dict[str, Any]
) -> None:
    from peft import PeftModel

    plain = tiny_hf(TOKENS).logits
    count = tiny_network.add_lora(rank=3, **settings)
    fill_lora(tiny_network)
    save_adapter(tmp_path, tiny_network, tiny_tokenizer, Extras(base="base"))
    theirs = PeftModel.from_pretrained(tiny_hf, str(tmp_path)).eval()
    logits = theirs(TOKENS).logits
    assert difference(logits, plain) > 1e-2
    assert difference(logits, tiny_network(TOKENS)) < 1e-5
    placed = [n for n, _ in theirs.named_parameters() if "lora_B" in n]
    assert len(placed) == count
    assert theirs.peft_config["default"].lora_dropout == settings.get("dropout", 0.0)


def test_the_folder(adapter: Path) -> None:
    assert {p.name for p in adapter.iterdir()} == FILES
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert config["fan_in_fan_out"] is True and config["base_model_name_or_path"] == "somewhere"
    assert config["target_modules"] == ["attn.c_attn", "attn.c_proj"]
    assert (config["r"], config["lora_alpha"], config["task_type"]) == (3, 6, "CAUSAL_LM")
    entries = read_header(adapter / "adapter_model.safetensors").entries
    assert len(entries) == 12
    assert entries["base_model.model.transformer.h.0.attn.c_attn.lora_A.weight"].shape == (3, 24)
    assert entries["base_model.model.transformer.h.0.attn.c_attn.lora_B.weight"].shape == (72, 3)
    assert saved_parameters(adapter) == 3 * (3 * (24 + 72) + 3 * (24 + 24))


def test_save_load_save_gives_the_same_bytes(
    adapter: Path, bare: Network, tiny_tokenizer: Tokenizer, tmp_path: Path
) -> None:
    load_adapter(adapter, bare)
    save_adapter(tmp_path / "again", bare, tiny_tokenizer, Extras(base="somewhere"))
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (adapter / name).read_bytes(), name


def test_a_network_without_an_adapter(tmp_path: Path, tiny_network: Network, tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match=r"--to adapter: the model has no adapter.*--to hf"):
        save_adapter(tmp_path / "none", tiny_network, tiny_tokenizer, Extras())
    assert not (tmp_path / "none").exists()


# --- in from PEFT -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["c_attn"]},
        {"target_modules": "all-linear", "lora_alpha": 5},
        {"target_modules": ["attn.c_proj", "c_fc"], "use_rslora": True},
        {"target_modules": ["c_proj"], "layers_to_transform": [1]},
        {"target_modules": ["c_attn"], "lora_dropout": 0.5, "init_lora_weights": "gaussian"},
        {"target_modules": ["c_attn"], "init_lora_weights": False},
        {"target_modules": r".*\.[02]\.mlp\.c_fc"},
        {"target_modules": ["c_attn"], "task_type": None},
    ],
    ids=["list", "all-linear", "rslora", "one layer", "dropout", "random start", "pattern", "no task"],
)
def test_an_adapter_of_peft_loads_here(tmp_path: Path, bare: Network, tiny_hf: Any, settings: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(tiny_hf, LoraConfig(**{"r": 4, "task_type": "CAUSAL_LM", **settings})).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, p in theirs.named_parameters():
            if "lora_B" in name:
                p.normal_(0, 0.1, generator=generator)
    theirs.save_pretrained(str(tmp_path))
    wanted, plain = theirs(TOKENS).logits, bare(TOKENS)
    load_adapter(tmp_path, bare)
    assert difference(wanted, plain) > 1e-2
    assert difference(bare(TOKENS), wanted) < 1e-5  # in eval mode: the adapter's dropout is off
    assert bare.lora is not None and bare.lora.rank == 4
    merge_lora(bare)
    assert difference(bare(TOKENS), wanted) < 1e-5


def test_there_and_back(adapter: Path, tiny_network: Network, tiny_hf: Any, bare: Network, tmp_path: Path) -> None:
    from peft import PeftModel

    PeftModel.from_pretrained(tiny_hf, str(adapter)).save_pretrained(str(tmp_path / "theirs"))
    load_adapter(tmp_path / "theirs", bare)
    assert bare.adapter_state().keys() == tiny_network.adapter_state().keys()
    assert all(torch.equal(t, tiny_network.adapter_state()[n]) for n, t in bare.adapter_state().items())


def test_old_tensor_names(adapter: Path, bare: Network, tiny_network: Network) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = read_tensors(path)
    write_tensors(path, {n.replace(".weight", ".default.weight"): t for n, t in tensors.items()})
    load_adapter(adapter, bare)
    assert difference(bare(TOKENS), tiny_network(TOKENS)) < 1e-6


# --- row 74 and its neighbours ------------------------------------------------------------------------------------


def refusal(folder: Path, network: Network) -> str:
    with pytest.raises(InputError) as e:
        load_adapter(folder, network)
    assert all(m.adapter is None for m in linears(network).values()) and network.lora is None
    assert "\n" not in str(e.value)
    return str(e.value)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type must be LORA (got IA3)"),
        ({"use_dora": True}, "use_dora is not supported"),
        ({"bias": "all"}, "bias is not supported (got all)"),
        ({"lora_bias": True}, "lora_bias is not supported"),
        ({"modules_to_save": ["lm_head", "embed_tokens"]}, "modules_to_save is not supported"),
        ({"rank_pattern": {"c_attn": 4}}, "rank_pattern is not supported"),
        ({"alpha_pattern": {"c_attn": 4}}, "alpha_pattern is not supported"),
        ({"trainable_token_indices": [5]}, "trainable_token_indices is not supported"),
        ({"target_parameters": ["wte.weight"]}, "target_parameters is not supported"),
        ({"layer_replication": [[0, 2]]}, "layer_replication is not supported"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights is not supported (got pissa)"),
        ({"init_lora_weights": "olora"}, "init_lora_weights is not supported (got olora)"),
        ({"use_rslora": "yes"}, "use_rslora must be true or false"),
        ({"r": 0}, "r must be an integer from 1 to 1024"),
        ({"r": 10**6}, "r must be an integer from 1 to 1024 (got 1000000)"),
        ({"r": "8"}, "r must be an integer"),
        ({"lora_alpha": math.inf}, "is not JSON"),
        ({"lora_alpha": 0}, "lora_alpha must be a number above 0"),
        ({"lora_alpha": "16"}, "lora_alpha must be a number"),
        ({"lora_dropout": "no"}, "lora_dropout must be a number"),
        ({"lora_dropout": 1.5}, "lora_dropout must be a number"),
        ({"base_model_name_or_path": 5}, "base_model_name_or_path must be text"),
    ],
)
def test_74_settings(adapter: Path, bare: Network, changes: dict[str, Any], said: str) -> None:
    edit(adapter, **changes)
    assert "adapter_config.json" in refusal(adapter, bare) and said in refusal(adapter, bare)


@pytest.mark.parametrize("content", ["[]", "null", "{", ""])
def test_74_config_that_is_no_object(adapter: Path, bare: Network, content: str) -> None:
    (adapter / "adapter_config.json").write_text(content)
    assert "adapter_config.json" in refusal(adapter, bare)


NAME = "base_model.model.transformer.h.1.attn.c_attn.lora_{}.weight"
A, B = NAME.format("A"), NAME.format("B")


def moved(tensors: dict[str, Tensor], old: str, new: str) -> None:
    for name in [n for n in tensors if old in n]:
        tensors[name.replace(old, new)] = tensors.pop(name)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop(B), "transformer.h.1.attn.c_attn.lora_B is missing"),
        (lambda t: t.pop(A), "transformer.h.1.attn.c_attn.lora_A is missing"),
        (lambda t: t.clear(), "0 layers of the adapter are not in this base"),
        (lambda t: moved(t, ".h.2.", ".h.7."), "2 layers of the adapter are not in this base (got transformer.h.7."),
        (lambda t: t.update({NAME.format("C"): t[A]}), "not a tensor of a LoRA adapter"),
        (lambda t: t.update({"base_model.model.lm_head.weight": t[A]}), "not a tensor of a LoRA adapter"),
        (lambda t: t.update({A: t[A].t()}), "c_attn.lora_A must have shape [3, 24] (got [24, 3])"),
        (lambda t: t.update({B: t[B].t()}), "c_attn.lora_B must have shape [72, 3] (got [3, 72])"),
        (lambda t: t.update({A: torch.zeros(4, 24)}), "c_attn.lora_A must have shape [3, 24] (got [4, 24])"),
        (lambda t: t.update({A: torch.zeros(3, 768)}), "c_attn.lora_A must have shape [3, 24] (got [3, 768])"),
        (lambda t: t[A].fill_(math.nan), "c_attn.lora_A holds NaN or infinite values"),
        (lambda t: t[B][0].fill_(math.inf), "c_attn.lora_B holds NaN or infinite values"),
        (lambda t: t.update({A: t[A].int()}), "c_attn.lora_A must hold floating-point numbers (got int32)"),
    ],
    ids=[
        *("no B", "no A", "empty", "no such layer", "third matrix", "head", "A turned", "B turned", "other rank"),
        *("other base", "nan", "inf", "integers"),
    ],
)
def test_74_tensors(adapter: Path, bare: Network, change: Callable[[dict[str, Tensor]], object], said: str) -> None:
    path = adapter / "adapter_model.safetensors"
    tensors = read_tensors(path)
    change(tensors)
    write_tensors(path, tensors)
    assert "adapter_model.safetensors" in refusal(adapter, bare) and said in refusal(adapter, bare)


def test_74_rank_of_another_adapter(adapter: Path, bare: Network) -> None:
    edit(adapter, r=8)
    assert "must have shape [8, 24] (got [3, 24])" in refusal(adapter, bare)


def test_74_already_in_place(adapter: Path, tiny_network: Network) -> None:
    with pytest.raises(InputError, match="the model already carries an adapter"):
        load_adapter(adapter, tiny_network)


def test_missing_and_legacy_weights(adapter: Path, bare: Network) -> None:
    (adapter / "adapter_model.safetensors").unlink()
    assert "adapter_model.safetensors is missing" in refusal(adapter, bare)
    (adapter / "adapter_model.bin").write_bytes(b"\x80\x02")
    assert "a legacy adapter_model.bin can run code when opened and is refused" in refusal(adapter, bare)
    (adapter / "adapter_config.json").unlink()
    assert "adapter_config.json: no such file" in refusal(adapter, bare)


def test_settings_of_peft_that_mean_off_are_taken(adapter: Path, bare: Network) -> None:
    from peft import LoraConfig

    written = {k: v for k, v in LoraConfig(r=3, lora_alpha=6).to_dict().items() if k not in ("task_type", "peft_type")}
    edit(adapter, **written, added_by_a_later_peft=None)
    assert read_adapter_config(adapter)["r"] == 3
    load_adapter(adapter, bare)


def test_a_pissa_adapter_would_give_other_logits(
    tmp_path: Path, tiny_hf: Any, bare: Network, tiny_tokenizer: Tokenizer
) -> None:
    """Why such adapters are refused: PEFT takes the adapter's start out of the base's weights."""
    from peft import LoraConfig, get_peft_model

    save_model(tmp_path / "base", bare, tiny_tokenizer, Extras())
    theirs = get_peft_model(tiny_hf, LoraConfig(r=4, init_lora_weights="pissa")).eval()
    theirs.save_pretrained(str(tmp_path / "pissa"))
    changed = theirs.base_model.model.transformer.h[0].attn.c_attn.base_layer.weight
    assert difference(changed, bare.state()["transformer.h.0.attn.c_attn.weight"]) > 1e-2
    assert "init_lora_weights is not supported (got pissa)" in refusal(tmp_path / "pissa", bare)


def test_an_adapter_made_on_the_bare_trunk_loads_here(tmp_path: Path, tiny_hf: Any, bare: Network) -> None:
    from peft import LoraConfig, get_peft_model

    theirs = get_peft_model(tiny_hf.transformer, LoraConfig(r=4, target_modules=["c_attn"], init_lora_weights=False))
    theirs.eval().save_pretrained(str(tmp_path))
    load_adapter(tmp_path, bare)
    positions = torch.arange(TOKENS.shape[1]).expand(TOKENS.shape)
    assert difference(bare.hidden(TOKENS, positions), theirs(TOKENS).last_hidden_state) < 1e-5
