"""Writing a model in int8 or int4, with what that changed: size, logits, perplexity.

It knows folders and networks and no training. Its one invariant: the folder appears whole or not at all, and the
figures are those of the weights that were written, read back.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from finetwo.core.errors import InputError
from finetwo.model.fused import pack
from finetwo.model.lora import merge_lora
from finetwo.model.quantised import Kind, quantise
from finetwo.store.change import Change, probe_tokens
from finetwo.store.folder import load_network, save_model
from finetwo.store.models import Opened
from finetwo.store.staged import staged

BOUNDS: dict[Kind, float] = {"int8": 1.0, "int4": 8.0}
"""By how much a logit may change, where the user names no bound."""


@torch.no_grad()
def export_quantised(opened: Opened, out: Path, kind: Kind, max_difference: float | None = None) -> list[str]:
    """Write `opened` to the new folder `out`, its adapter merged, in codes; return what to say about it.

    Raises InputError when `out` is in use, the model is quantised already, or a logit changed by more than
    `max_difference` (see `BOUNDS`); EnvironmentFault when the disk refuses.
    """
    network = opened.network.eval()
    if network.lora is not None:
        merge_lora(network)
        network.lora = None
    before_bytes = sum(4 * p.numel() for p in network.parameters())
    probe = probe_tokens(opened.tokenizer, network.config.n_positions)
    before = network(probe)
    quantise(network, kind)
    with staged(out) as folder:
        extras = replace(opened.extras, base=None, base_sha256=None, quantize=None)
        save_model(folder, network, opened.tokenizer, extras)
        written = load_network(folder)
        said = pack(written)
        change = Change.between(probe, before, written(probe), classes=bool(network.config.labels))
        bound = BOUNDS[kind] if max_difference is None else max_difference
        if not change.largest <= bound:  # NaN is above every bound
            what = f"{kind} would change a logit by {change.largest:.2e}; the bound is {bound:g}"
            fix = "nothing was written; take int8, or raise the bound if such a change is meant"
            raise InputError("--max_difference", what, None, fix)
        size = (folder / "model.safetensors").stat().st_size
    return [
        f"weights {before_bytes / 1e6:,.1f} MB in float32 before, {size / 1e6:,.1f} MB in {kind} after "
        f"({size / before_bytes:.0%})",
        *change.lines(bound),
        said,
        f"{kind} written to {out}; load it with finetwo (no other tool reads this format, transformers neither)",
    ]
