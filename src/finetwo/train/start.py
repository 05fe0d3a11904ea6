"""What a job starts from: network, tokenizer, device, and the settings that depend on them.

It decides what the user left open and says it aloud; it knows no data and no loop. Its one invariant: what it
returns is complete, so nothing after it has to guess.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

import torch

from finetwo.core.allocator import return_large_blocks
from finetwo.core.config import TrainConfig
from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model
from finetwo.model.config import SIZES, GPT2Config
from finetwo.model.mixed import only_imitates_bf16
from finetwo.model.network import Network, Stored
from finetwo.model.stored import stored_linears, weight_bytes
from finetwo.model.storing import store_blocks
from finetwo.store.folder import Extras, base_digest
from finetwo.store.hub import resolve
from finetwo.store.models import open_model
from finetwo.tasks.task import Task
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.memory import check_memory

Say = Callable[[str], None]


@dataclass
class Start:
    """What the job starts from."""

    network: Network
    tokenizer: Tokenizer
    extras: Extras
    base: str
    source: Path


def pick_device(name: str, where: str = "--device") -> torch.device:
    """Return the asked device, or the best there is for auto; InputError lists what is there."""
    there = (
        ["cpu"]
        + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        + (["mps"] if torch.backends.mps.is_available() else [])
    )
    if name == "auto":  # mps is taken only when asked for: it is untested
        return torch.device("cuda" if "cuda:0" in there else "cpu")
    if name not in there and not (name == "cuda" and "cuda:0" in there):
        raise InputError(where, "no such device here", name, f"available: {', '.join(there)}")
    return torch.device(name)


def settle_precision(config: TrainConfig, device: torch.device, say: Say) -> TrainConfig:
    """Refuse a precision that the device does not have; compute in float32 where a processor would only imitate bf16.

    A product in bfloat16 that is imitated takes some thirty times as long and is less exact, so nobody wants it; with
    bf16-true the weights' size may be what is wanted, and it stays with a warning.
    """
    native = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    if config.precision == "float32":
        if native:
            say("precision: float32; this GPU has bfloat16, and --precision bf16 is several times faster")
        return config
    if config.precision == "fp16":
        if device.type != "cuda":
            what = f"fp16 is for CUDA GPUs without bfloat16, and this run's device is {device.type}"
            raise InputError("--precision", what, None, "leave it out: float32")
        return config
    if device.type == "cuda" and not native:
        name = torch.cuda.get_device_name(device)
        fix = "use fp16" if config.precision == "bf16" else "leave it out: float32"
        raise InputError("--precision", f"{name} has no bfloat16", config.precision, fix)
    if not only_imitates_bf16(device):
        return config
    if config.precision == "bf16":
        say("precision: float32 instead of bf16, which this processor would only imitate, far slower")
        return replace(config, precision="float32")
    say(f"warning: --precision {config.precision}: this processor has no bfloat16 products; float32 is far faster")
    return config


def decide(config: TrainConfig, task: Task, data: object, say: Say) -> TrainConfig:
    """Fill in what needs no model: task, epochs, run folder; and refuse what contradicts itself."""
    if task.fresh and config.lora.enabled:
        raise InputError(
            "--lora",
            "an adapter on fresh weights learns nothing useful; --task pretrain trains them all",
            None,
            "leave --lora out, or give --task style",
        )
    if not task.fresh:
        for name in ("size", "tokenizer", "context"):
            if getattr(config, name) is not None:
                raise InputError(
                    f"--{name}", f"only for --task pretrain; this is {task.name}", getattr(config, name), "leave it out"
                )
        if config.post_norm or config.copy_share:
            raise InputError(
                "--post_norm" if config.post_norm else "--copy_share",
                f"only for --task pretrain; this is {task.name}",
                None,
                "leave it out",
            )
    if task.head != "classes":
        unset = TrainConfig()
        for name in ("pooling", "head_dropout", "class_weights"):
            if getattr(config, name) != getattr(unset, name):
                what = f"only for classifiers; this is {task.name}"
                raise InputError(f"--{name}", what, getattr(config, name), "leave it out, or give --task classify")
        if config.rows.labels is not None:
            fix = "leave it out, or give --task classify"
            raise InputError("--rows.labels", f"only for classifiers; this is {task.name}", config.rows.labels, fix)
    if config.epochs is None and config.max_steps is None:
        config = replace(config, epochs=1.0 if task.fresh else 3.0)
    if config.out is None:
        stem = Path(str(data)).name.split(".")[0] if isinstance(data, str | Path) else "data"
        config = replace(config, out=str(Path("runs") / f"{stem or 'data'}-{task.name}"))
    say(f"task: {task.name} ({task.about})")
    if not task.fresh:
        say(
            f"model: {config.model}"
            + (" (the embedded base; --model gpt2 takes the published 124M)" if config.model == "tiny" else "")
        )
    say(f"run folder: {config.out}")
    return config


def settle(config: TrainConfig, network: Network, task: Task) -> TrainConfig:
    """Fill in what depends on the model: sequence length and learning rate."""
    shape = network.config
    length = config.max_length or shape.n_positions
    if length > shape.n_positions:
        raise InputError(
            "--max_length",
            f"the context of {config.model} is {shape.n_positions} tokens",
            length,
            f"give at most {shape.n_positions}",
        )
    lora = config.lora.enabled or network.lora is not None
    config = _storage(config, network, lora=lora, fresh=task.fresh)
    usual = usual_lr(fresh=task.fresh, lora=lora, width=shape.n_embd)
    return replace(config, max_length=length, lr=config.lr if config.lr is not None else usual)


def _storage(config: TrainConfig, network: Network, *, lora: bool, fresh: bool) -> TrainConfig:
    """The settings with the kind of storage that the base has already; InputError where none or another is possible."""
    asked, there = config.quantize, network.stored
    if there is not None and asked not in ("none", there.kind):
        raise InputError("--quantize", f"the base is stored as {there.kind} already", asked, "load the base anew")
    if there is not None:
        return replace(config, quantize=cast(Literal["nf4", "int8"], there.kind))
    if asked != "none" and not lora:
        why = "--task pretrain trains every weight" if fresh else "a quantised base cannot learn, only an adapter on it"
        fix = "leave --quantize out" + ("" if fresh else ", or add --lora.rank 8")
        raise InputError("--quantize", why, asked, fix)
    return config


def quantise_base(config: TrainConfig, network: Network, say: Say) -> None:
    """Quantise the block matrices as the settings ask; the network remembers its digest in full precision."""
    if config.quantize == "none" or network.stored is not None:
        return
    return_large_blocks()
    before, sha256 = weight_bytes(network), base_digest(network)
    count = store_blocks(network, config.quantize)
    network.stored = Stored(config.quantize, sha256)
    network.raised()
    away = stored_linears(network).values()
    numbers = sum(m.in_features * m.out_features for m in away)
    each = 8 * sum(m.stored_bytes for m in away) / numbers
    say(
        f"quantize: {count} matrices of {numbers:,} weights stored as {config.quantize}, {each:.2f} bits each; "
        f"all weights take {weight_bytes(network) / 2**20:,.0f} MiB instead of {before / 2**20:,.0f}"
    )


def usual_lr(*, fresh: bool, lora: bool, width: int) -> float:
    """The peak learning rate of a job that names none; `width` is the network's."""
    return 1e-3 if fresh else (3e-4 if lora else 5e-5) * (10.0 if width <= 320 else 1.0)


def given_start(config: TrainConfig, task: Task, model: Model | None = None) -> Start:
    """The model or adapter that --model names, or the one in memory; InputError for an adapter upon an adapter."""
    if model is None:
        opened = open_model(config.model, config.base)
        start = Start(opened.network, opened.tokenizer, opened.extras, opened.base, opened.folder)
    else:
        extras = Extras(task=model.task, template=model.template)
        start = Start(model.network, model.tokenizer, extras, model.base or model.name, Path(model.name))
    if start.network.config.labels and task.head != "classes":
        what = f"{config.model} is a classifier, it does not write text"
        raise InputError("--model", what, None, f"take a language model for --task {task.name}")
    if start.network.quantised is not None:
        what = f"{config.model} is quantised ({start.network.quantised}) for inference"
        raise InputError("--model", what, None, "tune the model that it was made from")
    if start.network.lora is not None and config.lora.enabled:
        raise InputError(
            "--lora",
            f"{config.model} is an adapter already",
            None,
            "leave --lora out to go on training it, or merge it first",
        )
    return start


def fresh_start(config: TrainConfig, say: Say) -> Start:
    """Fresh weights of the asked shape, with the asked tokenizer or the embedded one."""
    folder = Path(config.tokenizer) if config.tokenizer else resolve("tiny")
    if config.tokenizer and not folder.is_dir():
        raise InputError(
            "--tokenizer",
            "no such folder",
            config.tokenizer,
            "make one: finetwo tokenizer train FILES --vocab 8192 --out DIR",
        )
    tokenizer = Tokenizer.load(folder)
    if config.size is not None:
        try:
            layers, width, heads = (int(n) for n in config.size.split(","))
        except ValueError:
            raise InputError("--size", "must be layers,width,heads", config.size, "for example 4,256,4") from None
        shape = GPT2Config(n_layer=layers, n_embd=width, n_head=heads)
    elif config.model in SIZES:
        shape = SIZES[config.model]
    else:
        raise InputError(
            "--model",
            "pretrain needs a size by name or --size layers,width,heads",
            config.model,
            f"use {', '.join(SIZES)}, or --size 4,256,4",
        )
    shape = replace(
        shape,
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.eot,
        n_positions=config.context or config.max_length or shape.n_positions,
        post_norm=config.post_norm,
    )
    shape.check("--size")
    check_memory(16 * shape.parameters, f"a network of {shape.parameters:,} parameters")
    network = Network.fresh(shape, config.seed)
    say(
        f"fresh network: {shape.n_layer} layers, width {shape.n_embd}, {shape.n_head} heads, context "
        f"{shape.n_positions}, vocabulary {shape.vocab_size:,}: {shape.parameters:,} parameters"
    )
    return Start(network, tokenizer, Extras(), config.size or config.model, folder)
