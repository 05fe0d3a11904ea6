"""`finetwo evaluate`: loss and perplexity of a model on a data file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.config import RowsConfig, check_seed
from finetwo.core.errors import InputError

_USAGE = "finetwo evaluate MODEL DATA [--part test] [--option VALUE ...]"
_ABOUT = """Loss of a model over a whole set: sum of losses over sum of tokens, for the answers and for all tokens, with
perplexity and bits per byte. Instruction data also gets exact match with --exact_match.

examples:
  finetwo evaluate runs/data-instruct data.jsonl
  finetwo evaluate tiny novel.txt
  finetwo evaluate runs/data-instruct test.jsonl --exact_match --json
"""


@dataclass
class EvaluateArguments:
    """Options of `finetwo evaluate`."""

    part: str = "all"
    """Which split to take: train, validation, test, or all records."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    template: str | None = None
    """Template, when the model has none of its own."""
    max_length: int | None = None
    """Longest sequence in tokens (default: the model's context)."""
    batch_size: int = 8
    """Records at a time; the figures do not depend on it."""
    exact_match: bool = False
    """Also answer every prompt greedily and count answers equal to the reference."""
    max_new_tokens: int = 128
    """Longest answer for --exact_match."""
    base: str | None = None
    """Where the base of an adapter is."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    seed: int = 0
    """Seed of a split by fractions."""
    json: bool = False
    """Write the figures as one JSON object."""


def _settle(arguments: EvaluateArguments, words: Words) -> EvaluateArguments:
    """Check everything that needs neither model nor data."""
    from finetwo.data.split import parse_split

    words.expect("evaluate", 2, 2, "a model and a data file are needed", _USAGE)
    if arguments.part not in ("all", "train", "validation", "test"):
        raise InputError("--part", "must be train, validation, test or all", arguments.part)
    for name, low in (("batch_size", 1), ("max_new_tokens", 1), ("max_length", 2)):
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise InputError(f"--{name}", f"must be an integer >= {low}", value, f"give {low} or more")
    check_seed("--seed", arguments.seed)
    arguments.rows.check()
    if arguments.rows.split is not None:
        parse_split(arguments.rows.split)
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(EvaluateArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name, data) = asked
    from finetwo.app.api import load
    from finetwo.app.console import say
    from finetwo.insight.measure import MeasureOptions, measure

    model = load(name, base=arguments.base, device=arguments.device)
    options = MeasureOptions(
        arguments.part,
        arguments.rows,
        arguments.template,
        arguments.max_length,
        arguments.batch_size,
        arguments.max_new_tokens if arguments.exact_match else 0,
        arguments.seed,
    )
    figures = measure(model, Path(data), options, say)
    if arguments.json:
        sys.stdout.write(json.dumps(figures) + "\n")
        return 0
    for name, value in figures.items():
        sys.stdout.write(f"{name:<22} {value:,.4f}\n" if isinstance(value, float) else f"{name:<22} {value}\n")
    return 0
