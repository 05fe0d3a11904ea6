"""The figures of a classifier: from logits and true classes to accuracy, F1, calibration, intervals and comparisons.

It knows arrays and no network. Its one invariant: every figure is a plain function of (logits, targets), the same
whatever the batches were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
BINS = 15
"""Equal-width bins of confidence for the calibration error (Guo et al. 2017, arXiv:1706.04599)."""
RESAMPLES = 1000
_CELLS = 1 << 22
"""Cells of resampled confusion tables that are held at a time."""
_SPREAD = 1.0
"""How far log T is expected to lie from 0 before a record is seen; what keeps T sane where there are few."""
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5)


def probabilities(logits: Floats, temperature: float = 1.0) -> Floats:
    """Return softmax(logits / temperature), (N, C) float64."""
    z = logits.astype(np.float64) / temperature
    z = np.exp(z - z.max(axis=1, keepdims=True))
    p: Floats = z / z.sum(axis=1, keepdims=True)
    return p


def log_loss(logits: Floats, targets: Ints, temperature: float = 1.0) -> float:
    """Return the mean negative log likelihood, nats a record."""
    z = logits.astype(np.float64) / temperature
    top = z.max(axis=1)
    mass = np.log(np.exp(z - top[:, None]).sum(axis=1)) + top
    return float((mass - z[np.arange(len(z)), targets]).mean())


def confusion(targets: Ints, predicted: Ints, classes: int) -> Ints:
    """Return the counts (C, C): row the true class, column the predicted one."""
    cells = np.bincount(targets * classes + predicted, minlength=classes * classes)
    return cells.reshape(classes, classes)


@dataclass(frozen=True)
class ClassCounts:
    """Precision, recall, F1 and number of true records of each class (C,); a share of nothing is 0."""

    precision: Floats
    recall: Floats
    f1: Floats
    support: Ints


def _share(a: Floats, b: Floats) -> Floats:
    return np.divide(a, b, out=np.zeros_like(a, dtype=np.float64), where=b > 0)


def per_class(table: Ints) -> ClassCounts:
    """Return the figures of each class from a confusion table (..., C, C)."""
    hits = np.diagonal(table, axis1=-2, axis2=-1).astype(np.float64)
    predicted, true = table.sum(axis=-2).astype(np.float64), table.sum(axis=-1).astype(np.float64)
    f1 = _share(2 * hits, predicted + true)
    return ClassCounts(_share(hits, predicted), _share(hits, true), f1, true.astype(np.int64))


def accuracy(table: Ints) -> Floats:
    """Return the share of records on the diagonal of (..., C, C)."""
    total = table.sum(axis=(-2, -1)).astype(np.float64)
    return _share(np.trace(table, axis1=-2, axis2=-1).astype(np.float64), total)


def macro_f1(table: Ints) -> Floats:
    """Return the mean F1 over the classes that are true or predicted anywhere in (..., C, C), as scikit-learn does."""
    there = (table.sum(axis=-1) + table.sum(axis=-2)) > 0
    f1 = per_class(table).f1
    return _share((f1 * there).sum(axis=-1), there.sum(axis=-1).astype(np.float64))


def matthews(table: Ints) -> Floats:
    """Return the Matthews correlation of (..., C, C) (Gorodkin 2004); 0 where one side has a single class."""
    t = table.astype(np.float64)
    true, predicted, total = t.sum(axis=-1), t.sum(axis=-2), t.sum(axis=(-2, -1))
    hits = np.trace(t, axis1=-2, axis2=-1)
    above = hits * total - (true * predicted).sum(axis=-1)
    below = np.sqrt((total**2 - (predicted**2).sum(axis=-1)) * (total**2 - (true**2).sum(axis=-1)))
    return _share(above, below)


def _bins(confidence: Floats) -> Ints:
    return np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)


def calibration_error(confidence: Floats, right: NDArray[np.bool_]) -> float:
    """Return the expected calibration error: mean |accuracy - confidence| over 15 bins, weighted by their records."""
    gap = np.bincount(_bins(confidence), weights=right - confidence, minlength=BINS)
    return float(np.abs(gap).sum() / max(1, len(confidence)))


def reliability(confidence: Floats, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return for each bin that has records: how many, their mean confidence, and the share that is right."""
    bins, found = _bins(confidence), []
    for i in np.unique(bins):
        chosen = bins == i
        found.append(
            {
                "records": int(chosen.sum()),
                "confidence": float(confidence[chosen].mean()),
                "accuracy": float(right[chosen].mean()),
            }
        )
    return found


def fit_temperature(logits: Floats, targets: Ints) -> float:
    """Return the temperature in [0.05, 20] that makes the targets likeliest (Guo et al. 2017), 1.0 without records.

    It minimises records * log loss + (log T)^2 / 2: the second part weighs about as much as one record, so that a
    handful of right answers does not pass for certainty. A golden section on log T around the best of a grid.
    """
    if not len(targets):
        return 1.0

    def cost(u: float) -> float:
        return len(targets) * log_loss(logits, targets, math.exp(u)) + (u / _SPREAD) ** 2 / 2

    grid = np.linspace(math.log(0.05), math.log(20.0), 13)
    best = int(np.argmin([cost(u) for u in grid]))
    low, high = float(grid[max(0, best - 1)]), float(grid[min(len(grid) - 1, best + 1)])
    ratio = (math.sqrt(5) - 1) / 2
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    at_a, at_b = cost(a), cost(b)
    while high - low > 1e-4:
        if at_a <= at_b:
            high, b, at_b = b, a, at_a
            a = high - ratio * (high - low)
            at_a = cost(a)
        else:
            low, a, at_a = a, b, at_b
            b = low + ratio * (high - low)
            at_b = cost(b)
    return math.exp((low + high) / 2)


def coverage_curve(confidence: Floats, right: NDArray[np.bool_]) -> list[dict[str, float]]:
    """Return for shares of the records, the surest first: the threshold that keeps them, and their accuracy.

    Equally sure records stand or fall together, so that abstaining below the threshold keeps just these.
    """
    order = np.argsort(-confidence, kind="stable")
    sure, hits = confidence[order], np.cumsum(right[order])
    curve = []
    for share in COVERAGES:
        threshold = sure[max(1, math.ceil(share * len(order))) - 1]
        count = int((confidence >= threshold).sum())
        curve.append(
            {
                "coverage": count / len(order),
                "threshold": float(threshold),
                "accuracy": float(hits[count - 1] / count),
            }
        )
    return curve


def interval(values: Floats, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of bootstrap `values`."""
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(values, [tail, 100 - tail])
    return float(low), float(high)


def _resampled(table: Ints, rng: np.random.Generator) -> Iterator[Ints]:
    """Yield confusion tables (R, C, C) of resampled records, some at a time: resampling cells resamples records."""
    flat, count = table.reshape(-1), int(table.sum())
    there = np.flatnonzero(flat)
    step = max(1, _CELLS // flat.size)
    for start in range(0, RESAMPLES, step):
        drawn = np.zeros((min(step, RESAMPLES - start), flat.size), dtype=np.int64)
        drawn[:, there] = rng.multinomial(count, flat[there] / count, size=len(drawn))
        yield drawn.reshape(-1, *table.shape)


def _table_intervals(table: Ints, rng: np.random.Generator) -> dict[str, Any]:
    """Intervals of what depends on the confusion table alone."""
    measures: dict[str, Callable[[Ints], Floats]] = {"accuracy": accuracy, "macro_f1": macro_f1, "matthews": matthews}
    values: dict[str, list[Floats]] = {name: [] for name in (*measures, "precision", "recall", "f1")}
    for drawn in _resampled(table, rng):
        each = per_class(drawn)
        for name, kept in values.items():
            kept.append(measures[name](drawn) if name in measures else getattr(each, name))
    joined = {name: np.concatenate(kept) for name, kept in values.items()}
    return {n: interval(v) if v.ndim == 1 else [interval(column) for column in v.T] for n, v in joined.items()}


def _calibration_interval(
    confidence: Floats, right: NDArray[np.bool_], rng: np.random.Generator
) -> tuple[float, float]:
    """Interval of the calibration error over resampled records."""
    gaps, bins, count = right - confidence, _bins(confidence), len(confidence)
    values = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = rng.integers(0, count, count)
        values[i] = np.abs(np.bincount(bins[drawn], weights=gaps[drawn], minlength=BINS)).sum() / count
    return interval(values)


def class_figures(
    logits: Floats, targets: Ints, labels: Sequence[str], temperature: float = 1.0, seed: int = 0
) -> dict[str, Any]:
    """Return every figure of a classifier on a set as JSON content, with 95 % bootstrap intervals under `intervals`.

    logits (N, C), targets (N,) with N >= 1; `temperature` is the fitted one, 1 for none. The calibration error is given
    before (`ece_raw`) and after it (`ece`). A seeded bootstrap of 1,000 resamples over the records.
    """
    predicted = logits.argmax(axis=1)
    right = predicted == targets
    table = confusion(targets, predicted, len(labels))
    each = per_class(table)
    sure, raw = (probabilities(logits, t).max(axis=1) for t in (temperature, 1.0))
    rng = np.random.default_rng([seed, 17])
    bounds = _table_intervals(table, rng)
    bounds |= {"ece": _calibration_interval(sure, right, rng), "ece_raw": _calibration_interval(raw, right, rng)}
    classes = [
        {
            "label": label,
            "precision": float(each.precision[i]),
            "recall": float(each.recall[i]),
            "f1": float(each.f1[i]),
            "support": int(each.support[i]),
            "intervals": {name: bounds[name][i] for name in ("precision", "recall", "f1")},
        }
        for i, label in enumerate(labels)
    ]
    return {
        "accuracy": float(accuracy(table)),
        "macro_f1": float(macro_f1(table)),
        "matthews": float(matthews(table)),
        "log_loss": log_loss(logits, targets, temperature),
        "ece": calibration_error(sure, right),
        "ece_raw": calibration_error(raw, right),
        "temperature": temperature,
        "records": len(targets),
        "intervals": {k: bounds[k] for k in ("accuracy", "macro_f1", "matthews", "ece", "ece_raw")},
        "classes": classes,
        "confusion": table.tolist(),
        "coverage": coverage_curve(sure, right),
        "reliability": reliability(sure, right),
    }


def mcnemar(first_right: NDArray[np.bool_], second_right: NDArray[np.bool_]) -> dict[str, Any]:
    """Return McNemar's exact test of two classifiers on the same records (N,): is one right where the other errs?

    Two-sided binomial test of the discordant pairs (McNemar 1947). `difference` is the second's accuracy minus the
    first's; it counts as one only where p < 0.05.
    """
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    count, fewer = only_first + only_second, min(only_first, only_second)
    tail = ways = 1
    for k in range(fewer):  # ways: how many choices of k + 1 out of `count` there are
        ways = ways * (count - k) // (k + 1)
        tail += ways
    p = min(1.0, 2 * tail / 2**count) if count else 1.0
    return {
        "only_first_right": only_first,
        "only_second_right": only_second,
        "difference": (only_second - only_first) / max(1, len(first_right)),
        "p_value": p,
        "protocol": "McNemar's exact test, two-sided, on the records that one gets right and the other does not",
    }
