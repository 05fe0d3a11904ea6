"""Adapters as PEFT folders, in and out.

It knows PEFT's names for LoRA on GPT-2 and nothing of training. Its one invariant: an adapter read here gives the
logits it gives under PEFT, and one that would not is refused by name.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetwo.core.config import LoraConfig
from finetwo.core.errors import InputError
from finetwo.core.files import read_json, write_json
from finetwo.model.lora import LoraAdapter, find_targets, linears
from finetwo.model.network import Network
from finetwo.store.folder import EXTRAS, Extras, read_extras, save_tokenizer
from finetwo.store.tensors import read_header, read_tensors, write_tensors
from finetwo.text.tokenizer import Tokenizer

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
_HEADS = ("score", "classifier")  # what PEFT saves of a classifier besides its adapter, by its usual names
# Settings of PEFT that change the arithmetic and are not implemented, with the values that mean "off".
_OFF: dict[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "lora_bias": (False, None),
    "rank_pattern": (None, {}),
    "alpha_pattern": (None, {}),
    "layer_replication": (None, []),
    "trainable_token_indices": (None, [], {}),
    "use_qalora": (False, None),
    "megatron_config": (None,),
    "alora_invocation_tokens": (None, []),
    "target_parameters": (None, []),
    "use_bdlora": (None, False),
    "velora_config": (None,),
    "monteclora_config": (None,),
    "kasa_config": (None,),
    "arrow_config": (None,),
    "init_lora_weights": (True, False, None, "gaussian", "eva", "orthogonal"),  # the others change the base's weights
}


def target_names(network: Network) -> list[str]:
    """The shortest names that select exactly the adapted linears."""
    adapted = {n for n, m in linears(network).items() if m.adapter is not None}
    short = sorted({".".join(n.split(".")[-2:]) for n in adapted})
    return short if set(find_targets(network, ",".join(short))) == adapted else sorted(adapted)


def save_adapter(folder: Path, network: Network, tokenizer: Tokenizer, extras: Extras) -> None:
    """Write the network's adapter as a PEFT folder, with tokenizer and extras beside it; InputError without adapter."""
    lora = network.lora
    if lora is None:
        raise InputError(
            "--to adapter", "the model has no adapter", None, "tune with --lora.rank 8, or export with --to hf"
        )
    labels = network.config.labels
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "SEQ_CLS" if labels else "CAUSAL_LM",
        "base_model_name_or_path": extras.base,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "use_rslora": lora.rslora,
        "target_modules": target_names(network),
        "fan_in_fan_out": True,
        "bias": "none",
        "inference_mode": True,
        "modules_to_save": ["score"] if labels else None,
        "init_lora_weights": True,
    }
    if isinstance(lora.alpha, float) and lora.alpha == int(lora.alpha):
        config["lora_alpha"] = int(lora.alpha)
    tensors = {_PREFIX + n.replace(".adapter.", "."): t.to("cpu") for n, t in network.adapter_state().items()}
    write_json(folder / CONFIG, config)
    save_tokenizer(folder, tokenizer, network.config, extras.task)
    quantize = network.stored.kind if network.stored else extras.quantize
    found = replace(extras, labels=labels, pooling=network.config.pooling, quantize=quantize)
    write_json(folder / EXTRAS, found.to_dict())
    write_tensors(folder / WEIGHTS, tensors, {"format": "pt"})


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """Read and check `adapter_config.json`; InputError names what is not supported."""
    path = folder / CONFIG
    content = read_json(path)
    if not isinstance(content, dict) or content.get("peft_type") != "LORA":
        got = content.get("peft_type") if isinstance(content, dict) else type(content).__name__
        raise InputError(str(path), "peft_type must be LORA", got, "FineTwo loads LoRA adapters")
    for key, off in _OFF.items():
        if content.get(key, off[0]) not in off:
            raise InputError(
                str(path),
                f"{key} is not supported",
                content[key],
                "merge the adapter with PEFT and load the merged model",
            )
    saved = content.get("modules_to_save")
    if saved is not None and not (isinstance(saved, list) and all(n in _HEADS for n in saved)):
        fix = "merge the adapter with PEFT and load the merged model"
        raise InputError(str(path), "modules_to_save is not supported", saved, fix)
    rank, alpha = content.get("r"), content.get("lora_alpha", 8)
    if isinstance(rank, bool) or not isinstance(rank, int) or not 1 <= rank <= 1024:
        raise InputError(str(path), "r must be an integer from 1 to 1024", rank)
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not 0 < alpha < 1e6 or math.isnan(alpha):
        raise InputError(str(path), "lora_alpha must be a number above 0", alpha)
    drop = content.get("lora_dropout", 0)
    if isinstance(drop, bool) or not isinstance(drop, int | float | None) or not 0 <= (drop or 0) < 1:
        raise InputError(str(path), "lora_dropout must be a number >= 0 and < 1", drop)
    if not isinstance(content.get("use_rslora"), bool | None):
        raise InputError(str(path), "use_rslora must be true or false", content["use_rslora"])
    base = content.get("base_model_name_or_path")
    if not isinstance(base, str | None):
        raise InputError(str(path), "base_model_name_or_path must be text", base)
    return content


def saved_parameters(folder: Path) -> int:
    """Number of parameters in an adapter's weight file, told by its header."""
    return sum(math.prod(e.shape) for e in read_header(folder / WEIGHTS).entries.values())


def _by_module(path: Path, tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Group `...module.lora_A.weight` tensors as module -> {lora_A, lora_B}, names as in our network."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        plain = name.removeprefix(_PREFIX).replace(".default.weight", ".weight")
        module, _, kind = plain.removesuffix(".weight").rpartition(".")
        if kind not in ("lora_A", "lora_B") or not plain.endswith(".weight"):
            raise InputError(
                str(path), "not a tensor of a LoRA adapter", name, "FineTwo loads lora_A and lora_B weights"
            )
        module = module if module.startswith("transformer.") else f"transformer.{module}"
        found.setdefault(module, {})[kind] = tensor
    return found


def load_adapter(folder: Path, network: Network) -> None:
    """Place the PEFT adapter of `folder` on `network`; InputError names module, expected and found shape."""
    content = read_adapter_config(folder)
    path = folder / WEIGHTS
    if not path.is_file():
        legacy = (folder / "adapter_model.bin").is_file()
        what = (
            "a legacy adapter_model.bin can run code when opened and is refused" if legacy else f"{WEIGHTS} is missing"
        )
        raise InputError(
            str(folder), what, None, "save the adapter again with PEFT: save_pretrained writes safetensors"
        )
    tensors = read_tensors(path)
    head = next((tensors.pop(n) for n in list(tensors) if n.removeprefix(_PREFIX) == "score.weight"), None)
    modules = _by_module(path, tensors)
    known = linears(network)
    unknown = [m for m in modules if m not in known]
    if unknown or not modules:
        raise InputError(
            str(path),
            f"{len(unknown)} layers of the adapter are not in this base",
            ", ".join(unknown[:3]),
            "give the adapter's own base with --base",
        )
    rank = int(content["r"])
    lora = LoraConfig(
        rank,
        float(content.get("lora_alpha", 8)),
        float(content.get("lora_dropout") or 0.0),
        ",".join(modules),
        bool(content.get("use_rslora")),
    )
    for module, parts in modules.items():
        _check_shapes(path, module, parts, rank, (known[module].in_features, known[module].out_features))
    network.add_lora(lora)
    if head is not None:
        _place_head(path, network, head)
    with torch.no_grad():
        for module, parts in modules.items():
            adapter = known[module].adapter
            assert isinstance(adapter, LoraAdapter)
            adapter.lora_A.weight.copy_(parts["lora_A"])
            adapter.lora_B.weight.copy_(parts["lora_B"])


@torch.no_grad()
def _place_head(path: Path, network: Network, head: Tensor) -> None:
    """Put the classifier head that an adapter brings along on the network, with the names its folder has for it."""
    extras = read_extras(path.parent)
    if head.ndim != 2 or head.shape[1] != network.config.n_embd or not head.is_floating_point():
        got = f"{list(head.shape)} {head.dtype}"
        raise InputError(str(path), f"score.weight must have shape [classes, {network.config.n_embd}]", got)
    if not torch.isfinite(head).all():
        raise InputError(str(path), "score.weight holds NaN or infinite values", None, "the file is damaged")
    labels = next(
        (names for names in (extras.labels, network.config.labels) if len(names) == head.shape[0]),
        tuple(f"LABEL_{i}" for i in range(head.shape[0])),
    )
    network.add_classes(labels, extras.pooling)
    assert network.score is not None
    network.score.weight.copy_(head)


def _check_shapes(path: Path, module: str, parts: dict[str, Tensor], rank: int, features: tuple[int, int]) -> None:
    wanted = {"lora_A": (rank, features[0]), "lora_B": (features[1], rank)}
    for kind, shape in wanted.items():
        if kind not in parts:
            raise InputError(
                str(path), f"{module}.{kind} is missing", None, "the adapter file is incomplete: save it again"
            )
        if tuple(parts[kind].shape) != shape:
            raise InputError(
                str(path),
                f"{module}.{kind} must have shape {list(shape)}",
                list(parts[kind].shape),
                "give the adapter's own base with --base",
            )
        if not parts[kind].is_floating_point():
            raise InputError(
                str(path), f"{module}.{kind} must hold floating-point numbers", str(parts[kind].dtype).split(".")[1]
            )
        if not torch.isfinite(parts[kind]).all():
            raise InputError(
                str(path),
                f"{module}.{kind} holds NaN or infinite values",
                None,
                "the file is damaged or its training diverged",
            )
