"""Model folders, in and out, against transformers; and every way in which one can be broken (rows K63 to K72)."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.standins.models import difference, hf_twin, random_network, random_tokens, tiny_config

from finetwo.core.errors import FineTwoError, InputError
from finetwo.model.config import GPT2Config
from finetwo.model.lora import merge_lora
from finetwo.model.network import Network
from finetwo.store.folder import (
    Extras,
    load_network,
    load_tokenizer,
    read_extras,
    read_weights,
    save_model,
    state_digest,
)
from finetwo.store.tensors import read_tensors, write_tensors
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer, train_vocabulary

FILES = {
    "config.json",
    "finetwo.json",
    "generation_config.json",
    "merges.txt",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
}
TOKENS = random_tokens(2, 13, 400)


def from_pretrained(folder: Path, **settings: Any) -> tuple[Any, dict[str, Any]]:
    from transformers import GPT2LMHeadModel

    model, info = GPT2LMHeadModel.from_pretrained(folder, output_loading_info=True, **settings)
    return model.eval(), info


# --- out to transformers ------------------------------------------------------------------------------------------


def test_a_saved_folder_loads_in_transformers(tiny_folder: Path, tiny_network: Network) -> None:
    assert {p.name for p in tiny_folder.iterdir()} == FILES
    theirs, info = from_pretrained(tiny_folder)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"], info
    assert difference(theirs(TOKENS).logits, tiny_network(TOKENS)) < 1e-5
    assert theirs.dtype == torch.float32 and theirs.config.vocab_size == 400
    assert theirs.generation_config.eos_token_id == theirs.config.eos_token_id == 399


def test_transformers_generates_with_model_and_tokenizer(tiny_folder: Path, tiny_network: Network) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_folder), AutoTokenizer.from_pretrained(tiny_folder)
    given = tokenizer("The lamp", return_tensors="pt")
    got = model.generate(**given, max_new_tokens=4, do_sample=False, pad_token_id=399)[0]
    row = given["input_ids"]
    while row.shape[1] < got.shape[0]:
        row = torch.cat([row, tiny_network(row)[:, -1].argmax(-1)[:, None]], 1)
    assert got.tolist() == row[0].tolist()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(tmp_path: Path, tiny_network: Network, tiny_tokenizer: Tokenizer, dtype: torch.dtype) -> None:
    save_model(tmp_path, tiny_network, tiny_tokenizer, Extras(), dtype)
    theirs, _ = from_pretrained(tmp_path)
    assert theirs.dtype == dtype
    for name, tensor in read_weights(tmp_path).items():
        assert torch.equal(tensor, tiny_network.state()[name].to(dtype))
    loaded = load_network(tmp_path)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert difference(theirs.float()(TOKENS).logits, loaded(TOKENS)) < 1e-5


@pytest.mark.parametrize("settings", [{"n_inner": 29, "activation_function": "relu"}, {"scale_attn_weights": False}])
def test_other_shapes_travel(tmp_path: Path, tiny_tokenizer: Tokenizer, settings: dict[str, Any]) -> None:
    network = random_network(tiny_config(vocab_size=401, **settings))  # one id more than the tokenizer has
    save_model(tmp_path, network, tiny_tokenizer, Extras())
    assert difference(from_pretrained(tmp_path)[0](TOKENS).logits, network(TOKENS)) < 1e-5
    assert difference(load_network(tmp_path)(TOKENS), network(TOKENS)) < 1e-6


def test_a_merged_adapter_loads_in_transformers_alone(
    tmp_path: Path, tiny_network: Network, tiny_tokenizer: Tokenizer
) -> None:
    from tests.standins.models import fill_lora

    plain = tiny_network(TOKENS)
    tiny_network.add_lora(rank=3, targets="all-linear")
    fill_lora(tiny_network)
    tuned = tiny_network(TOKENS)
    assert difference(tuned, plain) > 1e-2
    merge_lora(tiny_network)
    save_model(tmp_path, tiny_network, tiny_tokenizer, Extras())
    theirs, info = from_pretrained(tmp_path)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert difference(theirs(TOKENS).logits, tuned) < 1e-5


def test_save_load_save_gives_the_same_bytes(tiny_folder: Path, tmp_path: Path) -> None:
    network = load_network(tiny_folder)
    tokenizer = load_tokenizer(tiny_folder, network.config)
    save_model(tmp_path / "again", network, tokenizer, read_extras(tiny_folder))
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (tiny_folder / name).read_bytes(), name


def test_loading_gives_back_the_same_numbers(tiny_folder: Path, tiny_network: Network) -> None:
    loaded = load_network(tiny_folder)
    assert loaded.config == tiny_network.config and not loaded.training
    assert all(p.requires_grad and p.is_leaf for p in loaded.parameters())
    assert all(torch.equal(t, tiny_network.state()[n]) for n, t in loaded.state().items())
    assert state_digest(loaded.state()) == state_digest(tiny_network.state())


# --- in from transformers -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("shard", ["50GB", "40KB"])
def test_what_transformers_saves_is_read(tmp_path: Path, tiny_hf: Any, tiny_network: Network, shard: str) -> None:
    tiny_hf.save_pretrained(tmp_path, max_shard_size=shard)
    assert (tmp_path / "model.safetensors").is_file() == (shard == "50GB")
    assert len(list(tmp_path.glob("model*.safetensors"))) == 1 if shard == "50GB" else 3
    loaded = load_network(tmp_path)
    assert loaded.config == tiny_network.config
    assert difference(loaded(TOKENS), tiny_hf(TOKENS).logits) < 1e-5


def test_bare_names_and_mask_buffers_are_read(tmp_path: Path, tiny_hf: Any) -> None:
    """The layout of the published gpt2: no prefix, and the causal mask as a tensor."""
    tiny_hf.save_pretrained(tmp_path)
    state = {n.removeprefix("transformer."): t.clone() for n, t in tiny_hf.transformer.state_dict().items()}
    state |= {f"h.{i}.attn.bias": torch.tril(torch.ones(1, 1, 19, 19)) for i in range(3)}
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    assert difference(load_network(tmp_path)(TOKENS), tiny_hf(TOKENS).logits) < 1e-5


def test_digests_are_of_the_content(tiny_network: Network) -> None:
    state = tiny_network.state()
    digest = state_digest(state)
    assert state_digest(dict(reversed(state.items()))) == digest
    changed = {n: t.clone() for n, t in state.items()}
    changed["transformer.ln_f.bias"][3] += 1e-6
    assert state_digest(changed) != digest
    renamed = dict(state)
    renamed["x"] = renamed.pop("transformer.ln_f.bias")
    assert state_digest(renamed) != digest
    assert state_digest({"a": torch.zeros(2, 3)}) != state_digest({"a": torch.zeros(3, 2)})


# --- extras -------------------------------------------------------------------------------------------------------


def test_extras_travel(tmp_path: Path, tiny_network: Network, tiny_tokenizer: Tokenizer) -> None:
    extras = Extras("instruct", Template.parse("Q {prompt}\nA "), "tiny", "0" * 64, {"seen": 3})
    save_model(tmp_path, tiny_network, tiny_tokenizer, extras)
    assert read_extras(tmp_path) == extras
    (tmp_path / "finetwo.json").unlink()
    assert read_extras(tmp_path) == Extras(generation={"seen": 3})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[]", "format must be 1 (got list)"),
        ('{"format": 2}', "format must be 1 (got 2)"),
        ('{"format": 1, "task": 5}', "task must be text or null (got 5)"),
        ('{"format": 1, "base": []}', "base must be text or null"),
        ('{"format": 1, "template": {"name": "x"}}', "a template must be an object"),
        ('{"format": 1', "not valid JSON"),
    ],
)
def test_damaged_extras(tmp_path: Path, content: str, said: str) -> None:
    (tmp_path / "finetwo.json").write_text(content)
    with pytest.raises(InputError) as e:
        read_extras(tmp_path)
    assert "finetwo.json" in e.value.where and said in str(e.value)


# --- rows K63 to K72 ----------------------------------------------------------------------------------------------


def refusal(folder: Path) -> str:
    with pytest.raises(FineTwoError) as e:
        load_tokenizer(folder, load_network(folder).config)
    assert e.value.exit_code == 2 and "\n" not in str(e.value)
    return str(e.value)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["config.json"],
            "config.json is missing. Fix: needed: config.json, model.safetensors and the tokenizer files",
        ),
        (["model.safetensors"], "neither model.safetensors nor model.safetensors.index.json"),
        (["tokenizer.json", "vocab.json"], "no tokenizer found. Fix: needed: tokenizer.json, or vocab.json and merges"),
    ],
)
def test_63_missing_files(tiny_folder: Path, names: list[str], said: str) -> None:
    for name in names:
        (tiny_folder / name).unlink()
    assert str(tiny_folder) in refusal(tiny_folder) and said in refusal(tiny_folder)


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_head": 5}, "n_head must divide n_embd"),
        ({"n_layer": -1}, "n_layer must be"),
        ({"n_layer": 10**9}, "n_layer must be an integer from 1 to 1,024 (got 1000000000)"),
        ({"n_ctx": "1024"}, "n_ctx must be an integer"),
        ({"model_type": "llama"}, "model_type is not of the GPT-2 architecture (got llama)"),
        ({"auto_map": {"AutoModelForCausalLM": "modeling.Evil"}}, "auto_map is not supported"),
    ],
)
def test_65_config(tiny_folder: Path, changes: dict[str, Any], said: str) -> None:
    (tiny_folder / "modeling.py").write_text("raise SystemExit('executed')")
    edit(tiny_folder, **changes)
    assert "config.json: " in refusal(tiny_folder) and said in refusal(tiny_folder)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"n_embd": 1, "n_embd": 2}', '{"n_embd": NaN}', "\xff"])
def test_65_config_that_is_no_json_object(tiny_folder: Path, text: str) -> None:
    (tiny_folder / "config.json").write_bytes(text.encode("latin-1"))
    assert "config.json" in refusal(tiny_folder)


def test_65_a_huge_config_asks_for_no_memory(tiny_folder: Path) -> None:
    edit(tiny_folder, n_embd=65_536, n_head=4, n_layer=1_024, vocab_size=1_000_000)  # 211 TB in float32
    assert "missing" in refusal(tiny_folder)
    edit(tiny_folder, n_layer=3)
    assert "must have shape" in refusal(tiny_folder)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 5\n", "this is a Git LFS pointer"),
        (b"<!DOCTYPE html><html>Not found</html>", "this is a web page, not the weights"),
        (b"", "file is empty"),
        (b"\x80\x02cposix\nsystem\n", "pickle"),
    ],
)
def test_66_something_else_in_the_place_of_the_weights(tiny_folder: Path, content: bytes, said: str) -> None:
    (tiny_folder / "model.safetensors").write_bytes(content)
    assert "model.safetensors" in refusal(tiny_folder) and said in refusal(tiny_folder)


@pytest.mark.parametrize("keep", [5, 100, -4, -100_000])
def test_67_truncated_weights(tiny_folder: Path, keep: int) -> None:
    path = tiny_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    assert str(path) in refusal(tiny_folder)


Tensors = dict[str, torch.Tensor]


def rewrite(folder: Path, change: Callable[[Tensors], object]) -> None:
    tensors = read_tensors(folder / "model.safetensors")
    change(tensors)
    write_tensors(folder / "model.safetensors", tensors, {"format": "pt"})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("transformer.h.1.ln_2.bias"), "1 missing, 0 unknown: missing transformer.h.1.ln_2.bias"),
        (lambda t: t.update({"transformer.h.3.ln_2.bias": torch.zeros(24)}), "unknown transformer.h.3.ln_2.bias"),
        (
            lambda t: t.update({"transformer.ln_f.bias": torch.zeros(25)}),
            "tensor transformer.ln_f.bias must have shape [24] (got [25])",
        ),
        (
            lambda t: t.update({"transformer.ln_f.bias": torch.zeros(24, dtype=torch.int8)}),
            "transformer.ln_f.bias must hold floating-point numbers",
        ),
    ],
)
def test_68_other_tensors(tiny_folder: Path, change: Callable[[Tensors], object], said: str) -> None:
    rewrite(tiny_folder, change)
    assert said in refusal(tiny_folder)


def test_68_a_config_of_other_weights(tiny_folder: Path) -> None:
    edit(tiny_folder, n_layer=2)
    assert "0 missing, 12 unknown" in refusal(tiny_folder)
    edit(tiny_folder, n_layer=3, n_positions=20)
    assert "transformer.wpe.weight must have shape [20, 24] (got [19, 24])" in refusal(tiny_folder)


def test_69_more_ids_than_the_network_has(tiny_folder: Path) -> None:
    path = tiny_folder / "tokenizer.json"
    spec = json.loads(path.read_text())
    spec["added_tokens"] += [{"id": 400 + i, "content": f"<pad{i}>"} for i in range(3)]
    path.write_text(json.dumps(spec))
    assert "the tokenizer has 403 ids, the network 400. Fix: take both from one place" in refusal(tiny_folder)


def test_69_fewer_ids_are_no_fault(tiny_folder: Path) -> None:
    smaller = Tokenizer(train_vocabulary(iter(["some text of some words"]), 260))
    smaller.save(tiny_folder)
    assert load_tokenizer(tiny_folder, GPT2Config(vocab_size=400)).vocab_size == 260


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_70_numbers_that_are_not_finite(tiny_folder: Path, bad: float) -> None:
    rewrite(tiny_folder, lambda t: t["transformer.h.2.mlp.c_fc.weight"][0, :7].fill_(bad))
    assert "transformer.h.2.mlp.c_fc.weight holds 7 values that are NaN or infinite" in refusal(tiny_folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5"])
def test_71_legacy_weights_are_refused_unopened(tiny_folder: Path, name: str) -> None:
    (tiny_folder / "model.safetensors").unlink()
    (tiny_folder / name).write_bytes(b"cposix\nsystem\n(S'touch executed'\ntR.")
    said = refusal(tiny_folder)
    assert f"{name}: a legacy weight file can run code when opened and is refused. Fix: convert it" in said


@pytest.fixture
def sharded(tiny_folder: Path) -> Path:
    """The tiny folder with its weights in two shards."""
    tensors = read_tensors(tiny_folder / "model.safetensors")
    (tiny_folder / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        write_tensors(tiny_folder / file, {n: tensors[n] for n in part})
    index = {"metadata": {}, "weight_map": {n: f for f, part in parts.items() for n in part}}
    (tiny_folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tiny_folder


def reindex(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))


def test_72_shards_are_read(sharded: Path, tiny_network: Network) -> None:
    assert difference(load_network(sharded)(TOKENS), tiny_network(TOKENS)) < 1e-6


def test_72_missing_shard(sharded: Path) -> None:
    (sharded / "b.safetensors").unlink()
    assert "the shard b.safetensors is missing (2 are listed)" in refusal(sharded)


@pytest.mark.parametrize("path", ["../../x", "/etc/passwd", "sub/a.safetensors", "..\\x", ".hidden", ".."])
def test_72_shard_outside_the_folder(sharded: Path, path: str) -> None:
    reindex(sharded, lambda names: names.update({"transformer.ln_f.bias": path}))
    said = refusal(sharded)
    assert "index.json: a shard must be a plain file name in the same folder" in said and path[:2] in said


def test_72_one_tensor_in_two_shards(sharded: Path) -> None:
    both = read_tensors(sharded / "a.safetensors") | read_tensors(
        sharded / "b.safetensors", ["transformer.ln_f.weight"]
    )
    write_tensors(sharded / "a.safetensors", both)
    said = refusal(sharded)
    assert "a.safetensors: holds other tensors than the index says: transformer.ln_f.weight (got 1 differ)" in said


def test_72_index_and_shards_disagree(sharded: Path) -> None:
    reindex(sharded, lambda names: names.update({"transformer.ghost": "a.safetensors"}))
    assert "holds other tensors than the index says: transformer.ghost" in refusal(sharded)


@pytest.mark.parametrize(
    "content", ["{}", "[]", '{"weight_map": {}}', '{"weight_map": {"a": 5}}', '{"weight_map": []}']
)
def test_72_broken_index(sharded: Path, content: str) -> None:
    (sharded / "model.safetensors.index.json").write_text(content)
    assert "index.json: weight_map must map tensor names to file names" in refusal(sharded)


def test_the_fixture_of_transformers_is_no_copy_of_ours(tiny_network: Network) -> None:
    theirs = hf_twin(tiny_network)
    with torch.no_grad():
        theirs.transformer.ln_f.bias.add_(1.0)
    assert difference(theirs(TOKENS).logits, tiny_network(TOKENS)) > 1e-2
    assert logging.getLogger("transformers") is not None
