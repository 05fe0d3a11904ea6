"""The figures of answers there are, by the names that a user asks for them with.

It knows metrics and no models. Its one invariant: an asked metric is there before anything is generated, or its
absence is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from difflib import get_close_matches

from finetwo.core.errors import InputError
from finetwo.insight.diversity import Distinct, repetition
from finetwo.insight.metric import Metric, exact_match, stop_rate
from finetwo.insight.overlap import Bleu, rouge_l

METRICS: dict[str, Callable[[int], Metric]] = {
    "exact_match": exact_match,
    "stop_rate": stop_rate,
    "bleu": Bleu,
    "rouge_l": rouge_l,
    "distinct": lambda _: Distinct(),
    "repetition": repetition,
}
"""Makes a metric, given the seed of its interval."""


def check_metrics(names: Iterable[str]) -> None:
    """Raise InputError for a name that is none."""
    for name in names:
        if name not in METRICS:
            near = get_close_matches(name, METRICS, n=1)
            known = ", ".join(METRICS)
            fix = f"did you mean {near[0]}? The metrics are {known}" if near else f"use some of {known}"
            raise InputError("--metrics", "no such metric", name, fix)


def make_metrics(names: Iterable[str], seed: int) -> list[Metric]:
    """Return the metrics asked for, each once.

    Raises:
        InputError: no such metric, or its package is not installed.
    """
    names = list(dict.fromkeys(names))
    check_metrics(names)
    return [METRICS[name](seed) for name in names]
