"""Writing a model for other tools, with the proof that merging and casting kept its arithmetic.

It knows folders and networks and no training. Its one invariant: the folder appears whole or not at all.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import torch

from finetwo.core.errors import InputError
from finetwo.core.files import faults, fsync_dir
from finetwo.model.lora import merge_lora
from finetwo.store.folder import save_model
from finetwo.store.models import Opened
from finetwo.store.peft import save_adapter

_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "float16": torch.float16}


def export_model(opened: Opened, out: Path, to: str, dtype: str) -> list[str]:
    """Write `opened` to the new folder `out` as hf, adapter, merged or auto; return what to say about it.

    Raises InputError when `out` is in use or the model has no adapter to write, EnvironmentFault when the disk refuses.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("--out", "exists and is not an empty folder", str(out), "give a new folder")
    kind = to if to != "auto" else ("merged" if opened.is_adapter else "hf")
    if kind == "hf" and opened.is_adapter:
        fix = "use --to merged for a whole model, or --to adapter"
        raise InputError("--to hf", f"{opened.name} is an adapter on {opened.base}", None, fix)
    if kind in ("adapter", "merged") and not opened.is_adapter:
        raise InputError(f"--to {kind}", f"{opened.name} is a whole model without an adapter", None, "use --to hf")
    temporary = out.with_name(f".tmp-{out.name}")
    said: list[str] = []
    with faults(out):
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            if kind == "adapter":
                save_adapter(temporary, opened.network, opened.tokenizer, opened.extras)
            else:
                said = _whole(opened, temporary, kind, _DTYPES[dtype])
            if out.exists():
                out.rmdir()
            temporary.rename(out)
            fsync_dir(out.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    return [*said, f"{kind} written to {out}; load it with {_loader(opened, kind)}"]


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


@torch.no_grad()
def _whole(opened: Opened, folder: Path, kind: str, dtype: torch.dtype) -> list[str]:
    """Write the whole model, merged if asked, and compare logits before and after on a fixed probe."""
    network = opened.network.eval()
    generator = torch.Generator().manual_seed(0)
    length = min(64, network.config.n_positions)
    probe = torch.randint(0, network.config.vocab_size, (2, length), generator=generator)
    before = network(probe)
    if kind == "merged":
        merge_lora(network)
        network.lora = None
    if dtype != torch.float32:
        for p in network.parameters():
            p.copy_(p.to(dtype).to(p.dtype))
    after = network(probe)
    save_model(folder, network, opened.tokenizer, replace(opened.extras, base=None, base_sha256=None), dtype)
    if kind == "hf" and dtype == torch.float32:
        return []
    difference = (after - before).abs()
    agree = (after.argmax(-1) == before.argmax(-1)).float().mean()
    unit = "class" if network.config.labels else "token"
    return [
        f"logits changed by at most {float(difference.max()):.2e} (mean {float(difference.mean()):.2e}); "
        f"same likeliest {unit} at {float(agree):.1%} of {probe.numel()} positions"
    ]
