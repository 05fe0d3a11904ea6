"""`finetwo export`: a model as a Hugging Face folder, a PEFT adapter, or one merged model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.errors import InputError

_USAGE = (
    "finetwo export MODEL --out FOLDER [--to hf|adapter|merged] [--dtype float32|bf16|float16] [--quantize int8|int4]"
)
_ABOUT = """Write a model where other tools find it: `hf` is a folder that transformers loads, `adapter` a folder that
PEFT loads, `merged` a whole model with the adapter added into its weights.

examples:
  finetwo export runs/data-instruct --out my-model
  finetwo export runs/data-instruct --to merged --out my-model --dtype bf16

Merging and rounding change the arithmetic a little. By how much is measured on a neutral text and shown: logits,
likeliest tokens, perplexity before and after. Above a bound nothing is written.

--quantize int8 or int4 writes codes in the weights' place, an adapter merged: a quarter or less of the size, for
generate, chat and evaluate, which are faster with it on a CPU. Only FineTwo reads that format.
"""


@dataclass
class ExportArguments:
    """Options of `finetwo export`."""

    out: str | None = None
    """Folder to write; it must be new or empty."""
    to: Literal["auto", "hf", "adapter", "merged"] = "auto"
    """hf: the whole model; adapter: the adapter alone; merged: the adapter added in; auto: merged for an adapter."""
    dtype: Literal["float32", "bf16", "float16"] = "float32"
    """Number format of the written weights (hf and merged)."""
    quantize: Literal["int8", "int4"] | None = None
    """Write the weights in int8 or int4, an adapter merged: FineTwo's own format, for FineTwo alone."""
    max_difference: float | None = None
    """Write nothing where a logit would change by more (default: 0.01 for float32, 2 for bf16, 0.5 for float16, 1 for
    int8, 8 for int4)."""
    base: str | None = None
    """Where the base of an adapter is."""
    revision: str | None = None
    """Revision of a hub model."""


def _settle(arguments: ExportArguments, words: Words) -> ExportArguments:
    words.expect("export", 1, 1, "one model is needed", _USAGE)
    bound = arguments.max_difference
    if bound is not None and not 0 <= bound < math.inf:
        raise InputError("--max_difference", "must be a number >= 0", bound, "leave it out for the usual bound")
    if arguments.quantize is not None and (arguments.to, arguments.dtype) != ("auto", "float32"):
        what = "is a format of its own: --to and --dtype do not go with it"
        raise InputError("--quantize", what, arguments.quantize, "leave them out")
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(ExportArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name,) = asked
    if arguments.out is None:
        raise InputError("--out", "no folder given", None, _USAGE)
    from finetwo.app.console import say
    from finetwo.store.export import export_model
    from finetwo.store.models import open_model

    opened = open_model(name, arguments.base, arguments.revision)
    if arguments.quantize is not None:
        from finetwo.store.quantise import export_quantised

        for line in export_quantised(opened, Path(arguments.out), arguments.quantize, arguments.max_difference):
            say(line)
        return 0
    for line in export_model(opened, Path(arguments.out), arguments.to, arguments.dtype, arguments.max_difference):
        say(line)
    return 0
