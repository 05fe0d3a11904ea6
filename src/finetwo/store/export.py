"""Writing a model for other tools, with the proof that merging and casting kept its arithmetic.

It knows folders and networks and no training. Its one invariant: the folder appears whole or not at all, and not where
the arithmetic changed by more than the bound.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch

from finetwo.core.errors import InputError
from finetwo.model.lora import merge_lora
from finetwo.model.network import Network
from finetwo.model.storing import KINDS, store_blocks
from finetwo.store.change import Change, probe_tokens
from finetwo.store.folder import read_weights, save_model
from finetwo.store.models import Opened
from finetwo.store.peft import save_adapter
from finetwo.store.staged import staged

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}
BOUNDS = {"float32": 0.01, "bf16": 2.0, "float16": 0.5}
"""By how much a logit may change by merging and by each number format, where the user names no bound."""


def export_model(opened: Opened, out: Path, to: str, dtype: str, max_difference: float | None = None) -> list[str]:
    """Write `opened` to the new folder `out` as hf, adapter, merged or auto; return what to say about it.

    What was written is read back and compared. Raises InputError when `out` is in use, the model has no adapter to
    write, or a logit changed by more than `max_difference` (see `BOUNDS`), EnvironmentFault when the disk refuses.
    """
    if opened.network.quantised is not None:
        what = f"holds {opened.network.quantised} codes for inference, which no other tool reads"
        raise InputError(opened.name, what, None, "export the model that it was made from")
    kind = to if to != "auto" else ("merged" if opened.is_adapter else "hf")
    if kind == "hf" and opened.is_adapter:
        fix = "use --to merged for a whole model, or --to adapter"
        raise InputError("--to hf", f"{opened.name} is an adapter on {opened.base}", None, fix)
    if kind in ("adapter", "merged") and not opened.is_adapter:
        raise InputError(f"--to {kind}", f"{opened.name} is a whole model without an adapter", None, "use --to hf")
    bound = BOUNDS[dtype] if max_difference is None else max_difference
    _check_range(opened.network, dtype)
    with staged(out) as folder:
        said = [*_storage(opened), *_write(opened, folder, kind, dtype, bound)]
    return [*said, f"{kind} written to {out}; load it with {_loader(opened, kind)}"]


@torch.no_grad()
def _storage(opened: Opened) -> list[str]:
    """What lies between the base an adapter was trained on, if quantised, and the full-precision base it goes to."""
    kind = opened.extras.quantize
    if kind not in KINDS:
        return []
    full = opened.network.eval()
    probe = probe_tokens(opened.tokenizer, full.config.n_positions)
    trained = copy.deepcopy(full)
    store_blocks(trained, kind)
    change = Change.between(probe, trained(probe), full(probe), classes=bool(full.config.labels))
    first = (
        f"the adapter was trained on its base stored as {kind} and is written for the base in full precision: what "
        f"rounding took from the base comes back, which the adapter has not seen (no loss of the export)"
    )
    return [first, *(f"from {kind} to full precision: {line}" for line in change.figures())]


@torch.no_grad()
def _write(opened: Opened, folder: Path, kind: str, dtype: str, bound: float) -> list[str]:
    """Write the model, read it back, and return by how much it changed; raise where that is above the bound."""
    if kind == "adapter":
        save_adapter(folder, opened.network, opened.tokenizer, opened.extras)
        return []
    network, changes = opened.network.eval(), kind == "merged" or dtype != "float32"
    probe = probe_tokens(opened.tokenizer, network.config.n_positions) if changes else torch.empty(0)
    before = network(probe) if changes else probe
    if kind == "merged":
        merge_lora(network)
        network.lora = None
    extras = replace(opened.extras, base=None, base_sha256=None, quantize=None)
    save_model(folder, network, opened.tokenizer, extras, _DTYPES[dtype])
    if not changes:
        return []
    network.load_state({n: t.float() for n, t in read_weights(folder).items()}, str(folder))
    change = Change.between(probe, before, network(probe), classes=bool(network.config.labels))
    if not change.largest <= bound:  # NaN is above every bound
        done = " and ".join([*(["merging"] if kind == "merged" else []), *([dtype] if dtype != "float32" else [])])
        what = f"{done} would change a logit by {change.largest:.2e}; the bound is {bound:g}, and nothing was written"
        fix = "take another --dtype, or raise the bound if such a change is meant"
        raise InputError("--max_difference", what, None, fix)
    return change.lines(bound)


def _check_range(network: Network, dtype: str) -> None:
    """Refuse a number format that cannot hold a weight."""
    largest = max(float(p.detach().abs().max()) for p in network.parameters() if p.numel())
    if largest > torch.finfo(_DTYPES[dtype]).max:
        what = f"cannot hold a weight of this model, {largest:.3g}; nothing was written"
        raise InputError(f"--dtype {dtype}", what, None, "take bf16 or float32")


def _loader(opened: Opened, kind: str) -> str:
    """What loads an exported model with the same logits."""
    config = opened.network.config
    if config.post_norm or (config.labels and config.pooling != "last"):
        what = "post-norm" if config.post_norm else "a head over the mean of a text"
        return f"finetwo (no other tool knows {what})"
    name = "GPT2ForSequenceClassification" if config.labels else "GPT2LMHeadModel"
    between = "; between the texts of a pair goes the end-of-text token" if opened.extras.task == "entail" else ""
    if kind != "adapter":
        return f"transformers.{name}.from_pretrained(FOLDER){between}"
    count = f", num_labels={len(config.labels)}" if config.labels else ""
    return f"peft.PeftModel.from_pretrained(transformers.{name}.from_pretrained(BASE{count}), FOLDER){between}"
