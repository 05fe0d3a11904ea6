"""`finetwo forget`: what the tuning cost on a neutral text, at every strength of the adapter.

It must not know how a figure is taken. Its one invariant: nothing is written but the report that was asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.config import RowsConfig, check_seed
from finetwo.core.errors import InputError

_USAGE = "finetwo forget MODEL [--text FILE] [--own FILE] [--option VALUE ...]"
_ABOUT = """What a model forgot while it was tuned: its perplexity of a neutral text beside that of its base.
The neutral text comes with FineTwo (2,250 words of plain prose on everyday matters), or is a file of yours. The
adapter of a LoRA model is also measured at other strengths: 0 is the base exactly, 1 the model, 0.5 half the change.
With --own, text of the kind it was tuned for (held out), you see beside it what the same strengths bring.

examples:
  finetwo forget runs/austen-style
  finetwo forget runs/austen-style --own persuasion.txt --report forget.html
  finetwo forget my-model --base gpt2 --text wiki.txt --json
"""


@dataclass
class ForgetArguments:
    """Options of `finetwo forget`."""

    text: str | None = None
    """Neutral text (default: the one that comes with FineTwo)."""
    own: str | None = None
    """Held-out text of the kind the model was tuned for: what the tuning brought."""
    base: str | None = None
    """The model it was tuned from, where neither its adapter nor its run says it."""
    strengths: list[float] = field(default_factory=lambda: [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5])
    """Strengths of the adapter; a model without one is measured before and after."""
    window: int = 256
    """Tokens that are read together (at most the model's context)."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    batch_size: int = 8
    """Windows at a time; the figures do not depend on it."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    seed: int = 0
    """Seed of the intervals."""
    report: str | None = None
    """Also write the page to this file, .html (one file, no network), .md or .txt."""
    json: bool = False
    """Write the figures as one JSON object."""


def _settle(arguments: ForgetArguments, words: Words) -> ForgetArguments:
    """Check everything that needs neither model nor data."""
    words.expect("forget", 1, 1, "one model is needed", _USAGE)
    for name, low in (("window", 2), ("batch_size", 1)):
        if getattr(arguments, name) < low:
            raise InputError(f"--{name}", f"must be an integer >= {low}", getattr(arguments, name), "give more")
    check_seed("--seed", arguments.seed)
    arguments.rows.check()
    wrong = next((s for s in arguments.strengths if not math.isfinite(s) or not -10 <= s <= 10), None)
    if wrong is not None or not arguments.strengths:
        raise InputError("--strengths", "must be numbers from -10 to 10", wrong, "for example 0,0.5,1")
    front.check_page(arguments.report)
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(ForgetArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name,) = asked
    from finetwo.app.console import say
    from finetwo.app.tuned import load_tuned
    from finetwo.insight.forgetting import ForgetOptions, forget_page, measure_forgetting

    model, base = load_tuned(name, arguments.base, arguments.device)
    options = ForgetOptions(
        text=arguments.text,
        own=arguments.own,
        strengths=arguments.strengths,
        window=arguments.window,
        batch_size=arguments.batch_size,
        seed=arguments.seed,
        rows=arguments.rows,
    )
    found = measure_forgetting(model, base, options, say)
    page = forget_page(found)
    front.show_page(page, found, arguments.report, as_json=arguments.json)
    return 0
