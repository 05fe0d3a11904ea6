"""`finetwo evaluate`: loss and perplexity of a model on a data file."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

from finetwo.app.arguments import cut, options_of, parse, show_help
from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError

_PROG = "finetwo evaluate"
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


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    given = cut(words, options_of(EvaluateArguments), config_allowed=False)
    if given.help:
        show_help(EvaluateArguments, _USAGE, _ABOUT)
        return 0
    arguments = parse(EvaluateArguments, given, _PROG, _ABOUT)
    if len(given.positional) != 2:
        raise InputError("evaluate", "a model and a data file are needed", " ".join(given.positional), _USAGE)
    if arguments.part not in ("all", "train", "validation", "test"):
        raise InputError("--part", "must be train, validation, test or all", arguments.part)
    arguments.rows.check()
    from finetwo.app.api import load
    from finetwo.app.console import say
    from finetwo.train.measure import MeasureOptions, measure

    model = load(given.positional[0], base=arguments.base, device=arguments.device)
    options = MeasureOptions(
        arguments.part,
        arguments.rows,
        arguments.template,
        arguments.max_length,
        arguments.batch_size,
        arguments.max_new_tokens if arguments.exact_match else 0,
        arguments.seed,
    )
    figures = measure(model, Path(given.positional[1]), options, say)
    if arguments.json:
        sys.stdout.write(json.dumps(figures) + "\n")
        return 0
    for name, value in figures.items():
        sys.stdout.write(f"{name:<22} {value:,.4f}\n" if isinstance(value, float) else f"{name:<22} {value}\n")
    return 0
