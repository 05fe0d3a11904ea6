"""The figures of a classifier against scikit-learn, scipy, plain loops and plain bootstraps."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize, special, stats
from sklearn import metrics

from finetwo.tasks import classes
from finetwo.tasks.classes import (
    BINS,
    accuracy,
    calibration_error,
    class_figures,
    confusion,
    coverage_curve,
    fit_temperature,
    log_loss,
    macro_f1,
    matthews,
    mcnemar,
    per_class,
    probabilities,
    reliability,
)

LABELS = ("joy", "fear", "anger", "love")


def drawn(count: int, kinds: int = 4, seed: int = 0, scale: float = 1.0, pull: float = 1.5) -> tuple[Any, Any]:
    """Logits (N, C) that lean towards true classes of unequal frequency (N,)."""
    rng = np.random.default_rng(seed)
    shares = np.arange(1, kinds + 1) / np.arange(1, kinds + 1).sum()
    targets = rng.choice(kinds, size=count, p=shares)
    logits = rng.normal(size=(count, kinds))
    logits[np.arange(count), targets] += pull
    return logits * scale, targets


@st.composite
def outcomes(draw: Any) -> tuple[int, Any, Any]:
    """A number of classes, and true and predicted ones among them, some of which may be in neither."""
    kinds = draw(st.integers(2, 6))
    pairs = st.tuples(st.integers(0, kinds - 1), st.integers(0, kinds - 1))
    found = np.asarray(draw(st.lists(pairs, min_size=1, max_size=40)), dtype=np.int64)
    return kinds, found[:, 0], found[:, 1]


# --- counts against scikit-learn ----------------------------------------------------------------------------------


@settings(max_examples=300, deadline=None)
@given(outcomes())
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:A single label was found")
def test_figures_of_a_table_equal_scikit_learn(found: tuple[int, Any, Any]) -> None:
    kinds, true, predicted = found
    table = confusion(true, predicted, kinds)
    every = list(range(kinds))
    assert (table == metrics.confusion_matrix(true, predicted, labels=every)).all()
    assert accuracy(table) == pytest.approx(metrics.accuracy_score(true, predicted))
    assert macro_f1(table) == pytest.approx(metrics.f1_score(true, predicted, average="macro", zero_division=0))
    assert matthews(table) == pytest.approx(metrics.matthews_corrcoef(true, predicted), abs=1e-12)
    wanted = metrics.precision_recall_fscore_support(true, predicted, labels=every, zero_division=0)
    each = per_class(table)
    for ours, theirs in zip((each.precision, each.recall, each.f1, each.support), wanted, strict=True):
        assert ours == pytest.approx(theirs)


def test_tables_may_be_stacked() -> None:
    rng = np.random.default_rng(3)
    tables = rng.integers(0, 9, size=(5, 4, 4))
    for measure in (accuracy, macro_f1, matthews):
        assert measure(tables) == pytest.approx([float(measure(table)) for table in tables])


def test_a_table_without_records_gives_no_numbers_out_of_nothing() -> None:
    empty = np.zeros((3, 3), dtype=np.int64)
    assert float(accuracy(empty)) == float(macro_f1(empty)) == float(matthews(empty)) == 0.0


@pytest.mark.parametrize("temperature", [1.0, 0.3, 4.0])
def test_probabilities_and_log_loss(temperature: float) -> None:
    logits, targets = drawn(200)
    ours = probabilities(logits, temperature)
    assert ours == pytest.approx(special.softmax(logits / temperature, axis=1))
    wanted = metrics.log_loss(targets, ours, labels=range(4))
    assert log_loss(logits, targets, temperature) == pytest.approx(wanted)


def test_huge_logits_overflow_nowhere() -> None:
    logits = np.array([[1e4, -1e4], [-1e4, 1e4]])
    with np.errstate(all="raise", under="ignore"):
        assert probabilities(logits, 0.05).tolist() == [[1.0, 0.0], [0.0, 1.0]]
        assert log_loss(logits, np.array([0, 0]), 1.0) == pytest.approx(1e4)


# --- calibration ------------------------------------------------------------------------------------------------------


def ece_by_a_loop(confidence: Any, right: Any) -> float:
    total = 0.0
    for i in range(BINS):
        chosen = [j for j, c in enumerate(confidence) if i / BINS < c <= (i + 1) / BINS]
        if chosen:
            total += abs(sum(right[j] for j in chosen) - sum(confidence[j] for j in chosen))
    return float(total / len(confidence))


@pytest.mark.parametrize("seed", range(5))
def test_calibration_error_equals_a_plain_loop(seed: int) -> None:
    logits, targets = drawn(300, seed=seed, scale=1.0 + seed)
    sure = probabilities(logits).max(axis=1)
    right = logits.argmax(axis=1) == targets
    assert calibration_error(sure, right) == pytest.approx(ece_by_a_loop(sure, right))
    bins = reliability(sure, right)
    assert sum(b["records"] for b in bins) == 300
    again = sum(b["records"] * abs(b["accuracy"] - b["confidence"]) for b in bins) / 300
    assert again == pytest.approx(calibration_error(sure, right))


def test_calibration_error_of_the_certain() -> None:
    sure = np.ones(4)
    assert calibration_error(sure, np.array([True, True, False, False])) == 0.5
    assert calibration_error(sure, np.array([True] * 4)) == 0.0
    mixed, right = np.array([1.0, 1.0, 0.97, 0.94]), np.array([True, False, True, True])  # of one bin
    assert calibration_error(mixed, right) == pytest.approx(ece_by_a_loop(mixed, right))


def cost(logits: Any, targets: Any) -> Any:
    """The documented aim: records * log loss + (log T)^2 / 2, in other people's functions."""
    return lambda u: -special.log_softmax(logits / math.exp(u), axis=1)[range(len(targets)), targets].sum() + u * u / 2


@pytest.mark.parametrize("scale", [0.2, 1.0, 3.0, 8.0])
@pytest.mark.parametrize("count", [1, 12, 400])
def test_temperature_equals_scipys(count: int, scale: float) -> None:
    logits, targets = drawn(count, seed=count, scale=scale)
    bounds = (math.log(0.05), math.log(20.0))
    wanted = optimize.minimize_scalar(cost(logits, targets), bounds=bounds, method="bounded", options={"xatol": 1e-6})
    assert math.log(fit_temperature(logits, targets)) == pytest.approx(wanted.x, abs=1e-3)


def test_temperature_of_many_records_is_that_of_the_log_loss_alone() -> None:
    logits, targets = drawn(2000, scale=3.0)
    alone = optimize.minimize_scalar(lambda t: log_loss(logits, targets, t), bounds=(0.05, 20.0), method="bounded")
    assert fit_temperature(logits, targets) == pytest.approx(alone.x, rel=2e-3)


def test_temperature_stays_sane() -> None:
    """A few right answers are no proof of certainty; logits that tell nothing ask for nothing."""
    logits, targets = np.array([[3.0, 0.0]] * 8), np.zeros(8, dtype=np.int64)
    assert 0.5 < fit_temperature(logits, targets) < 1.0
    assert probabilities(logits, fit_temperature(logits, targets)).max() < 0.999
    assert fit_temperature(np.zeros((50, 3)), np.zeros(50, dtype=np.int64)) == pytest.approx(1.0, abs=1e-3)
    assert fit_temperature(np.zeros((0, 3)), np.zeros(0, dtype=np.int64)) == 1.0
    hopeless = np.array([[30.0, 0.0]] * 99)
    assert fit_temperature(hopeless, np.ones(99, dtype=np.int64)) == pytest.approx(20.0, rel=1e-2)


def test_calibration_lowers_the_error_of_the_overconfident_on_records_it_never_saw() -> None:
    logits, targets = drawn(3000, seed=5, scale=6.0)
    temperature = fit_temperature(logits[:1000], targets[:1000])
    assert temperature > 2
    held, true = logits[1000:], targets[1000:]
    found = class_figures(held, true, LABELS, temperature)
    assert found["ece"] < found["ece_raw"] / 3
    assert found["ece"] < 0.03
    assert found["log_loss"] < log_loss(held, true)
    assert found["accuracy"] == float((held.argmax(axis=1) == true).mean())


# --- abstaining -------------------------------------------------------------------------------------------------------


def test_coverage_curve_is_what_abstaining_does() -> None:
    """With ties: coverage and accuracy are those of the records at least as sure as the threshold."""
    rng = np.random.default_rng(0)
    sure = np.round(rng.uniform(0.3, 1.0, 137), 1)
    right = rng.uniform(size=137) < sure
    curve = coverage_curve(sure, right)
    assert curve[0]["coverage"] == 1.0
    for point, share in zip(curve, classes.COVERAGES, strict=True):
        kept = sure >= point["threshold"]
        assert point["coverage"] == kept.mean() >= share
        assert point["accuracy"] == pytest.approx(right[kept].mean())
    order = rng.permutation(137)
    again = coverage_curve(sure[order], right[order])
    for one, other in zip(curve, again, strict=True):
        assert one == pytest.approx(other)


# --- intervals --------------------------------------------------------------------------------------------------------


def test_intervals_equal_a_plain_bootstrap_of_rows() -> None:
    logits, targets = drawn(250, seed=2, scale=2.0)
    predicted = logits.argmax(axis=1)
    sure, right = probabilities(logits, 1.7).max(axis=1), predicted == targets
    rng = np.random.default_rng(99)
    plain: dict[str, list[Any]] = {"accuracy": [], "macro_f1": [], "matthews": [], "ece": [], "recall": []}
    for _ in range(1500):
        rows = rng.integers(0, 250, 250)
        table = metrics.confusion_matrix(targets[rows], predicted[rows], labels=range(4))
        plain["accuracy"].append(right[rows].mean())
        plain["macro_f1"].append(float(macro_f1(table)))
        plain["matthews"].append(float(matthews(table)))
        plain["ece"].append(calibration_error(sure[rows], right[rows]))
        plain["recall"].append(per_class(table).recall[0])
    found = class_figures(logits, targets, LABELS, 1.7)
    ours = {**found["intervals"], "recall": found["classes"][0]["intervals"]["recall"]}
    for name, values in plain.items():
        spread = np.std(values)
        assert ours[name] == pytest.approx(np.percentile(values, [2.5, 97.5]), abs=0.35 * spread), name
    assert found["intervals"]["accuracy"][0] < found["accuracy"] < found["intervals"]["accuracy"][1]


def test_intervals_hold_the_truth_about_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """150 samples of 200 records from one classifier of accuracy 0.8: the 95 % interval misses in a few only."""
    monkeypatch.setattr(classes, "RESAMPLES", 300)
    rng = np.random.default_rng(1)
    held = 0
    for seed in range(150):
        right = rng.uniform(size=200) < 0.8
        table = confusion(np.zeros(200, dtype=np.int64), (~right).astype(np.int64), 2)
        low, high = classes._table_intervals(table, np.random.default_rng(seed))["accuracy"]
        held += low <= 0.8 <= high
    assert 0.89 <= held / 150 <= 0.99


def test_intervals_are_the_same_in_one_piece_or_in_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many classes are resampled a few tables at a time, for memory."""
    logits, targets = drawn(90, seed=4)
    whole = class_figures(logits, targets, LABELS)
    monkeypatch.setattr(classes, "_CELLS", 16 * 7)
    assert class_figures(logits, targets, LABELS) == whole
    assert class_figures(logits, targets, LABELS, seed=1)["intervals"] != whole["intervals"]


def test_figures_are_json_and_complete() -> None:
    logits, targets = drawn(60, seed=6)
    targets[targets == 2] = 1  # a class that no record has
    found = json.loads(json.dumps(class_figures(logits, targets, LABELS, 1.3), allow_nan=False))
    assert [c["label"] for c in found["classes"]] == list(LABELS)
    assert found["classes"][2]["support"] == found["classes"][2]["recall"] == 0
    assert found["records"] == 60 == sum(map(sum, found["confusion"]))
    predicted = logits.argmax(axis=1)
    wanted = metrics.classification_report(
        targets, predicted, labels=range(4), target_names=LABELS, output_dict=True, zero_division=0
    )
    for each in found["classes"]:
        theirs = wanted[each["label"]]
        assert each["precision"] == pytest.approx(theirs["precision"])
        assert each["f1"] == pytest.approx(theirs["f1-score"])
        assert each["support"] == theirs["support"]


def test_one_record_is_enough() -> None:
    found = class_figures(np.array([[2.0, 0.0]]), np.array([0]), ("a", "b"))
    assert found["accuracy"] == 1.0 and found["intervals"]["accuracy"] == (1.0, 1.0)


# --- two classifiers --------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_mcnemar_equals_scipys_binomial_test(first: int, second: int, both: int) -> None:
    one = np.array([True] * first + [False] * second + [True] * both, dtype=bool)
    other = np.array([False] * first + [True] * second + [True] * both, dtype=bool)
    found = mcnemar(one, other)
    wanted = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert found["p_value"] == pytest.approx(wanted)
    assert (found["only_first_right"], found["only_second_right"]) == (first, second)
    assert found["difference"] == pytest.approx((second - first) / max(1, first + second + both))
    assert mcnemar(other, one)["p_value"] == found["p_value"]


def test_mcnemar_of_very_many_records() -> None:
    one = np.arange(30_000) < 15_300
    assert mcnemar(one, ~one)["p_value"] == pytest.approx(stats.binomtest(14_700, 30_000).pvalue)


def test_mcnemar_seldom_finds_a_difference_where_there_is_none() -> None:
    """2,000 pairs of equally good classifiers on 300 records: under 6 % are told apart at p < 0.05."""
    rng = np.random.default_rng(8)
    wins = 0
    for _ in range(2000):
        hard = rng.uniform(size=300)
        one, other = rng.uniform(size=300) > hard * 0.6, rng.uniform(size=300) > hard * 0.6
        wins += mcnemar(one, other)["p_value"] < 0.05
    assert wins / 2000 < 0.06


def test_mcnemar_finds_a_difference_where_there_is_one() -> None:
    rng = np.random.default_rng(9)
    found = mcnemar(rng.uniform(size=1000) < 0.70, rng.uniform(size=1000) < 0.80)
    assert found["p_value"] < 1e-3 and found["difference"] > 0.05
