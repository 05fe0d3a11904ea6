"""Model folders of Hugging Face's layout: reading and writing networks, tokenizers and FineTwo's own extras.

It knows names and files, and nothing of training or of the hub. Its one invariant: what `save_model` wrote,
`load_model` reads back to the same tensors, and loading takes every tensor of a checkpoint or refuses it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetwo.core.errors import InputError
from finetwo.core.files import read_json, write_json
from finetwo.model.config import GPT2Config, Pooling
from finetwo.model.network import Network
from finetwo.model.quantised import Kind
from finetwo.store.codes import network_from, state_with_codes, with_kind, without_kind
from finetwo.store.tensors import read_header, read_tensors, write_tensors
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

EXTRAS = "finetwo.json"
_NOT_SAMPLING = ("bos_token_id", "eos_token_id", "pad_token_id", "transformers_version")
_LEGACY = ("pytorch_model.bin", "pytorch_model.bin.index.json", "model.ckpt.index", "tf_model.h5", "flax_model.msgpack")


@dataclass
class Extras:
    """What a model folder carries beyond Hugging Face's files."""

    task: str | None = None
    template: Template | None = None
    base: str | None = None
    """For an adapter: the name its base was loaded by."""
    base_sha256: str | None = None
    """For an adapter: the content hash of its base's weights."""
    generation: dict[str, Any] = field(default_factory=dict)
    """What generation_config.json held besides the ids; kept for other tools, FineTwo samples as it is told."""
    temperature: float = 1.0
    """For a classifier: the divisor of its logits that calibrates its probabilities."""
    max_length: int | None = None
    """For a classifier: the longest document it was trained on, in tokens."""
    labels: tuple[str, ...] = ()
    """For a classifier's adapter: the names of the classes (a whole model has them in config.json)."""
    pooling: Pooling = "last"
    """For a classifier's adapter: what its head reads."""
    quantize: str | None = None
    """For an adapter: how its base was stored while it was trained, where that was not in full precision."""

    def to_dict(self) -> dict[str, Any]:
        """As JSON content."""
        classifier: dict[str, Any] = {
            "temperature": self.temperature if self.max_length is not None else None,
            "max_length": self.max_length,
            "labels": list(self.labels) or None,
            "pooling": self.pooling if self.labels else None,
        }
        return {
            "format": 1,
            "task": self.task,
            "template": self.template.to_dict() if self.template else None,
            "base": self.base,
            "base_sha256": self.base_sha256,
            **({"quantize": self.quantize} if self.quantize is not None else {}),
            **{key: value for key, value in classifier.items() if value is not None},
        }


def read_extras(folder: Path) -> Extras:
    """Read `finetwo.json`; an empty `Extras` when the folder comes from elsewhere; InputError when it is damaged."""
    generation = _generation(folder / "generation_config.json")
    path = folder / EXTRAS
    if not path.is_file():
        return Extras(generation=generation)
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != 1:
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(
            str(path), "format must be 1", got, "update FineTwo, or take the file from the model's own folder"
        )
    for key in ("task", "base", "base_sha256", "quantize"):
        if not isinstance(content.get(key), str | None):
            raise InputError(str(path), f"{key} must be text or null", content[key])
    template = content.get("template")
    return Extras(
        content.get("task"),
        None if template is None else Template.from_dict(template, str(path)),
        content.get("base"),
        content.get("base_sha256"),
        generation,
        *_classifier_extras(content, path),
        content.get("quantize"),
    )


def _classifier_extras(content: Mapping[str, Any], path: Path) -> tuple[float, int | None, tuple[str, ...], Pooling]:
    """Temperature, longest document, class names and pooling; InputError for what they cannot be."""
    temperature, length, labels = content.get("temperature", 1.0), content.get("max_length"), content.get("labels", [])
    if isinstance(temperature, bool) or not isinstance(temperature, int | float) or not 0 < temperature < 1e3:
        raise InputError(str(path), "temperature must be a number above 0", temperature)
    if length is not None and (isinstance(length, bool) or not isinstance(length, int) or length < 1):
        raise InputError(str(path), "max_length must be an integer >= 1", length)
    if not isinstance(labels, list) or not all(isinstance(n, str) for n in labels) or len(set(labels)) != len(labels):
        raise InputError(str(path), "labels must be a list of different texts", labels)
    pooling = content.get("pooling", "last")
    if pooling not in ("last", "mean"):
        raise InputError(str(path), "pooling must be last or mean", pooling)
    return float(temperature), length, tuple(labels), pooling


def _generation(path: Path) -> dict[str, Any]:
    """The settings of generation_config.json, ids and bookkeeping left out."""
    if not path.is_file():
        return {}
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(str(path), "must hold an object", type(content).__name__, "delete it, or take it anew")
    return {k: v for k, v in content.items() if not k.startswith("_") and k not in _NOT_SAMPLING}


def read_config(folder: Path) -> GPT2Config:
    """Read `config.json`; InputError names what is missing, wrong or not supported."""
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            str(folder),
            "no model here: config.json is missing",
            None,
            "needed: config.json, model.safetensors and the tokenizer files",
        )
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(str(path), "must hold an object", type(content).__name__)
    return GPT2Config.from_dict(without_kind(content, str(path))[0], str(path))


def stored_kind(folder: Path) -> Kind | None:
    """int8 or int4 for the folder of a quantised network, None for one in full; `read_config` has read it before."""
    return without_kind(read_json(folder / "config.json"), str(folder / "config.json"))[1]


def _shards(folder: Path) -> list[Path]:
    """The weight files of a folder, their index checked."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if not index.is_file():
        for name in _LEGACY:
            if (folder / name).is_file():
                fix = "convert it once with transformers: GPT2LMHeadModel.from_pretrained(FOLDER).save_pretrained(NEW)"
                raise InputError(
                    str(folder / name), "a legacy weight file can run code when opened and is refused", None, fix
                )
        raise InputError(
            str(folder),
            "no weights here: neither model.safetensors nor model.safetensors.index.json",
            None,
            "copy the weight file beside config.json",
        )
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(n, str) for n in names.values()):
        raise InputError(str(index), "weight_map must map tensor names to file names", type(names).__name__)
    files = sorted(set(names.values()))
    for name in files:
        if "/" in name or "\\" in name or name.startswith("."):
            raise InputError(str(index), "a shard must be a plain file name in the same folder", name)
        if not (folder / name).is_file():
            raise InputError(
                str(index),
                f"the shard {name} is missing ({len(files)} are listed)",
                None,
                "copy every shard into the folder",
            )
    for name in files:
        held = set(read_header(folder / name).entries)
        listed = {t for t, f in names.items() if f == name}
        if held != listed:
            wrong = sorted(held ^ listed)
            raise InputError(
                str(folder / name),
                f"holds other tensors than the index says: {', '.join(wrong[:3])}",
                f"{len(wrong)} differ",
            )
    return [folder / name for name in files]


def read_weights(folder: Path) -> dict[str, Tensor]:
    """Read every tensor of a folder's weight files, sharded or not."""
    found: dict[str, Tensor] = {}
    for path in _shards(folder):
        found.update(read_tensors(path))
    return found


def load_network(folder: Path) -> Network:
    """Build the network of a Hugging Face folder and fill it strictly, in float32; a quantised one keeps its codes."""
    config = read_config(folder)
    kind = stored_kind(folder)
    weights = read_weights(folder)
    with torch.device("meta"):  # no memory is asked for before the weights are known to have the config's shapes
        network = Network(config)
    if kind is not None:
        return network_from(network, weights, kind, str(folder)).eval()
    fitting = network.fitting(weights, str(folder))
    network.load_state_dict({n: t.float() for n, t in fitting.items()}, assign=True)
    return network.eval()


def load_tokenizer(folder: Path, config: GPT2Config) -> Tokenizer:
    """Read the folder's tokenizer and hold it against the network; InputError when it has ids the network lacks."""
    tokenizer = Tokenizer.load(folder)
    if tokenizer.vocab_size > config.vocab_size:
        raise InputError(
            str(folder),
            f"the tokenizer has {tokenizer.vocab_size:,} ids, the network {config.vocab_size:,}",
            None,
            "take both from one place",
        )
    return tokenizer


def save_tokenizer(folder: Path, tokenizer: Tokenizer, config: GPT2Config, task: str | None) -> None:
    """Write the tokenizer files; a classifier's name a padding token, which other tools need to take several texts.

    That token is end-of-text, so its mark in a text must stay plain text in other tools too: a text that ends in it
    would lose its end as padding. In pairs the mark stands between the texts, and other tools write it there.
    """
    tokenizer.save(folder)
    if config.labels:
        path = folder / "tokenizer_config.json"
        settings = read_json(path)
        assert isinstance(settings, dict)
        settings |= {"pad_token": settings["eos_token"], "padding_side": "right"}
        write_json(path, settings if task == "entail" else settings | {"split_special_tokens": True})


def state_digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over sorted (name, shape, float32 bytes), as hex: equal weights give equal digests in any file layout."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().to("cpu", torch.float32).contiguous()
        digest.update(f"{name}{list(tensor.shape)}".encode())
        if tensor.numel():
            digest.update(tensor.numpy().data.cast("B"))
    return digest.hexdigest()


def base_digest(network: Network) -> str:
    """Digest of the weights under an adapter: of the trunk, as a classifier's head belongs to its adapter.

    A quantised base goes by its digest in full precision.
    """
    if network.stored is not None:
        return network.stored.sha256
    return state_digest({n: t for n, t in network.state().items() if n.startswith("transformer.")})


def save_model(
    folder: Path, network: Network, tokenizer: Tokenizer, extras: Extras, dtype: torch.dtype | None = None
) -> None:
    """Write the base weights, cast to `dtype` if one is given, as a Hugging Face folder that `transformers` loads."""
    folder.mkdir(parents=True, exist_ok=True)
    state = network.state() if network.quantised is None else state_with_codes(network)
    state = {n: t.detach().to("cpu", dtype or t.dtype) for n, t in state.items()}
    floats = next(t.dtype for n, t in state.items() if n.endswith("ln_f.weight"))
    config = network.config.to_dict() | {
        "torch_dtype": str(floats).removeprefix("torch."),
        "eos_token_id": tokenizer.eot,
        "bos_token_id": tokenizer.eot,
    }
    if network.config.labels:
        config["pad_token_id"] = tokenizer.eot
    write_json(folder / "config.json", with_kind(config, network.quantised))
    ends = {"bos_token_id": tokenizer.eot, "eos_token_id": tokenizer.eot}
    write_json(folder / "generation_config.json", extras.generation | ends)
    save_tokenizer(folder, tokenizer, network.config, extras.task)
    write_json(folder / EXTRAS, extras.to_dict())
    write_tensors(folder / "model.safetensors", state, {"format": "pt"})
