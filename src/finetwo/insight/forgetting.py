"""The forgetting meter: what the tuning cost on a neutral text, at every strength of the adapter.

It knows a tuned model, its base and a text, and no command line. Its one invariant: every figure is taken on the same
windows, and the figure at strength 0 is the base's own.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model
from finetwo.insight.interval import RESAMPLES, Bootstrap
from finetwo.insight.library import LEAST_ANSWER, Library, Reading, Say, open_library
from finetwo.insight.page import Block, Page, Section, Table
from finetwo.insight.passages import passage_losses
from finetwo.insight.strength import Base, at_strength
from finetwo.insight.stride import exp
from finetwo.model.network import Network
from finetwo.store.change import neutral_file
from finetwo.train.evaluate import byte_lengths

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
"""Strengths of an adapter that are measured; 0 is the base, 1 the tuned model."""
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class ForgetOptions:
    """On what to measure, and how."""

    text: str | None = None
    """Neutral text; None: the one that comes with FineTwo."""
    own: str | None = None
    """A text of the kind the model was tuned for, held out: what the tuning brought."""
    strengths: Sequence[float] = STRENGTHS
    window: int = 256
    batch_size: int = 8
    seed: int = 0
    rows: RowsConfig = field(default_factory=RowsConfig)


def measure_forgetting(model: Model, base: Base, options: ForgetOptions, say: Say) -> dict[str, Any]:
    """Return the perplexity of a neutral text before and after the tuning, as JSON content.

    Raises:
        InputError: a text that cannot be read or has fewer than two tokens.
    """
    window = min(options.window, model.network.config.n_positions)
    neutral = options.text or str(neutral_file())
    found: dict[str, Any] = {"model": model.name, "base": base.name, "adapter": base.network is None}
    with tempfile.TemporaryDirectory(prefix="finetwo-") as folder:
        for part, name in (("neutral", neutral), ("own", options.own)):
            if name is None:
                continue
            library = open_library([name], Reading(model.tokenizer, model.template, options.rows), Path(folder) / part)
            shown = name if name != str(neutral_file()) else "the neutral text of FineTwo"
            say(f"forget: {shown}, {len(library.tokens):,} tokens")
            found[part] = {"text": shown} | _curve(model, base, library, window, options)
    return found


def _protocol(records: bool, window: int, seed: int) -> str:
    how = f"windows of at most {window} tokens side by side, each read alone, its first token not scored"
    if records:
        how = f"answers of {LEAST_ANSWER} to {window} tokens (cut there), each behind its prompt, which is not scored"
    return (
        f"{how}; perplexity: exp(sum of losses / sum of tokens); 95 % interval of the ratio by Poisson bootstrap over "
        f"{'answers' if records else 'windows'}, {RESAMPLES:,} resamples, seed {seed}"
    )


def _curve(model: Model, base: Base, library: Library, window: int, options: ForgetOptions) -> dict[str, Any]:
    places = library.scored(window, 1 << 40, 2, model.network.config.n_positions)
    if not places:
        what = f"no answer of {LEAST_ANSWER} tokens or more" if library.records else "has fewer than two tokens"
        raise InputError(library.name(0), what, None, "give a longer text")
    passages = [(library.tokens[begin:end], first - begin) for begin, first, end in places]
    lengths = byte_lengths(model.tokenizer)
    text_bytes = sum(int(lengths[np.asarray(t[first:], dtype=np.int64)].sum()) for t, first in passages)

    def nats(network: Network) -> Floats:
        return passage_losses(network, passages, options.batch_size)[0]

    counts = np.array([len(t) - first for t, first in passages])
    with base.under(model.network) as network:
        before = nats(network)
    points = []
    for strength in options.strengths if base.network is None else (0.0, 1.0):
        now = before if strength == 0 else _at(model.network, strength, nats) if strength != 1 else nats(model.network)
        points.append(_point(strength, now, before, counts, options.seed) | {"bits_per_byte": _bits(now, text_bytes)})
    return {
        "windows": len(passages),
        "tokens": int(counts.sum()),
        "points": points,
        "protocol": _protocol(library.records, window, options.seed),
    }


def _at(network: Network, strength: float, nats: Callable[[Network], Floats]) -> Floats:
    with at_strength(network, strength) as changed:
        return nats(changed)


def _bits(nats: Floats, text_bytes: int) -> float | None:
    return float(nats.sum()) / math.log(2) / text_bytes if text_bytes else None


def _point(strength: float, now: Floats, before: Floats, counts: NDArray[np.int64], seed: int) -> dict[str, Any]:
    bootstrap = Bootstrap(2, seed)
    for change, count in zip(now - before, counts, strict=True):
        bootstrap.add((float(change), float(count)))
    loss, change = float(now.sum() / counts.sum()), float((now - before).sum() / counts.sum())
    interval = bootstrap.interval(lambda sums: np.exp(np.minimum(sums[:, 0] / sums[:, 1], 700.0)))
    return {
        "strength": strength,
        "loss": loss,
        "perplexity": exp(loss),
        "ratio": exp(change),
        "ratio_interval": interval,
    }


def forget_page(found: dict[str, Any]) -> Page:
    """Return the page of a forgetting measurement."""
    page = Page(f"What {found['model']} kept of {found['base']}")
    for part, heading in (("neutral", "Neutral text"), ("own", "Text of its own kind")):
        if part in found:
            page.sections.append(_section(f"{heading}: {found[part]['text']}", found, part))
    return page


def _section(heading: str, found: dict[str, Any], part: str) -> Section:
    curve = found[part]
    named = {0.0: "0, the base", 1.0: "1, the model"} if found["adapter"] else {0.0: "before", 1.0: "after"}
    rows = []
    for point in curve["points"]:
        low_high = point["ratio_interval"]
        tail = f" [{low_high[0]:.4f}, {low_high[1]:.4f}]" if low_high and point["strength"] else ""
        bits = "-" if point["bits_per_byte"] is None else f"{point['bits_per_byte']:.4f}"
        name = named.get(point["strength"], f"{point['strength']:g}")
        rows.append((name, f"{point['perplexity']:,.3f}", f"{point['ratio']:.4f}{tail}", bits))
    first = "strength of the adapter" if found["adapter"] else "tuning"
    blocks: list[Block] = [
        f"{curve['tokens']:,} scored tokens in {curve['windows']:,} passages.",
        Table((first, "perplexity", "times the base's", "bits per byte"), rows),
        curve["protocol"],
    ]
    if not found["adapter"]:
        blocks.insert(1, "The model has no adapter whose strength could be changed: before and after.")
    return Section(heading, blocks)
