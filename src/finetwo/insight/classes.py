"""What a classifier does on a set, as figures with their protocols and as tables for a person.

It knows logits and names, and nothing of files. Its one invariant: the tables hold the figures of the JSON, rounded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model
from finetwo.insight.figures import Figures
from finetwo.tasks.classes import BINS, RESAMPLES, class_figures, mcnemar
from finetwo.tasks.registry import find_task

Told = tuple[NDArray[np.float64], NDArray[np.int64]]
"""Logits (N, C) and true classes (N,) of one set."""
_MOST = 20
"""Classes up to which the confusion table is drawn."""
_SHARES = ("precision", "recall", "f1")


def add_class_figures(figures: Figures, told: Told, model: Model, protocol: str, seed: int) -> dict[str, Any]:
    """Add a classifier's figures; return its tables: classes, confusion, coverage, reliability."""
    logits, truth = told
    found = class_figures(logits, truth, model.network.config.labels, model.temperature, seed)
    intervals: dict[str, tuple[float, float]] = found["intervals"]
    sure = f"{protocol}; 95 % intervals from {RESAMPLES:,} bootstrap resamples of the records, seed {seed}"
    for names, what in (
        (("accuracy",), "share of records whose likeliest class is the true one"),
        (("macro_f1",), "mean F1 of the classes that are true or predicted anywhere"),
        (("matthews",), "Matthews correlation over all classes"),
    ):
        figures.add({n: found[n] for n in names}, f"{what}; {sure}", {n: intervals[n] for n in names})
    fitted = ", fitted on the validation data of the training run" if model.temperature != 1 else " (none was fitted)"
    heat = f"at temperature {model.temperature:.4g}{fitted}"
    figures.add({"log_loss": found["log_loss"]}, f"nats a record {heat}; {protocol}")
    gap = f"expected calibration error, {BINS} equal bins of confidence"
    figures.add({"ece": found["ece"]}, f"{gap}, {heat}; {sure}", {"ece": intervals["ece"]})
    figures.add({"ece_raw": found["ece_raw"]}, f"{gap}, at temperature 1; {sure}", {"ece_raw": intervals["ece_raw"]})
    figures.add({"records": found["records"]}, "records measured")
    return {name: found[name] for name in ("temperature", "classes", "confusion", "coverage", "reliability")} | {
        "labels": list(model.network.config.labels)
    }


def check_comparable(model: Model, other: Model) -> None:
    """Raise InputError where two models do not tell the same classes of the same kind of documents."""
    first, second = (m.network.config.labels for m in (model, other))
    if first != second:
        got = ", ".join(second[:6]) or "a language model"
        fix = "compare two classifiers of the same classes"
        raise InputError("--against", f"its classes are not {', '.join(first[:6])}", got, fix)
    reads, given = (find_task(m.task or "classify").kind for m in (model, other))
    if reads != given:
        raise InputError("--against", f"one is for {reads}, the other is not", given, "compare classifiers of one task")


def add_comparison(figures: Figures, told: Sequence[Told], models: tuple[Model, Model]) -> None:
    """Add McNemar's test of two comparable classifiers, told of the same records; InputError where they were not."""
    if not np.array_equal(told[0][1], told[1][1]):
        fix = "leave --rows.on_long skip out"
        raise InputError("--against", "the two leave out different records as too long", None, fix)
    right = [logits.argmax(axis=1) == truth for logits, truth in told]
    found = mcnemar(right[0], right[1])
    protocol = f"{found.pop('protocol')}; difference: accuracy of {models[1].name} minus that of {models[0].name}"
    figures.add(found, protocol)


def class_tables(figures: Mapping[str, Any]) -> str:
    """The tables of a classifier as text; empty for a language model."""
    if "confusion" not in figures:
        return ""
    labels: list[str] = figures["labels"]
    width = min(24, max(8, *(len(name) for name in labels)))
    lines = ["", f"{'class':<{width}}  precision             recall                F1                    records"]
    for row in figures["classes"]:
        cells = [f"{row[n]:.3f} [{row['intervals'][n][0]:.3f}, {row['intervals'][n][1]:.3f}]" for n in _SHARES]
        lines.append(f"{row['label'][:width]:<{width}}  {'  '.join(cells)}  {row['support']:>6,}")
    if len(labels) <= _MOST:
        lines += ["", "confusion: a row for the true class, a column for the predicted one"]
        cell = max(5, *(len(name[:10]) for name in labels)) + 1
        lines.append(" " * width + "".join(f"{name[:10]:>{cell}}" for name in labels))
        for name, counts in zip(labels, figures["confusion"], strict=True):
            lines.append(f"{name[:width]:<{width}}" + "".join(f"{count:>{cell},}" for count in counts))
    lines += ["", "abstaining: keep the surest share of the records (predict --abstain THRESHOLD)"]
    lines += ["coverage  threshold  accuracy"]
    lines += [f"{c['coverage']:>8.1%}  {c['threshold']:>9.4f}  {c['accuracy']:>8.1%}" for c in figures["coverage"]]
    return "\n".join(lines) + "\n"
