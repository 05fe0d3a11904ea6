"""AUC against scikit-learn, Wilson's interval against SciPy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from finetwo.insight.ranking import auc, auc_interval, wilson

SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=30)


@settings(max_examples=40, deadline=None)
@given(SCORES, SCORES)
def test_auc_is_that_of_scikit_learn(higher: list[float], lower: list[float]) -> None:
    truth = [1] * len(higher) + [0] * len(lower)
    assert auc(higher, lower) == pytest.approx(roc_auc_score(truth, higher + lower), abs=1e-12)
    assert auc(higher, lower) == pytest.approx(1 - auc(lower, higher), abs=1e-12)


def test_nothing_but_ties_is_chance() -> None:
    assert auc([0.0] * 7, [0.0] * 5) == 0.5
    assert auc_interval([0.0] * 7, [0.0] * 5, 0) == (0.5, 0.5)


def test_the_interval_holds_the_figure_and_shrinks() -> None:
    rng = np.random.default_rng(1)
    few, many = ((rng.normal(1, 1, n), rng.normal(0, 1, n)) for n in (20, 500))
    widths = []
    for higher, lower in (few, many):
        interval = auc_interval(higher, lower, 0)
        assert interval is not None
        assert interval[0] < auc(higher, lower) < interval[1]
        assert interval == auc_interval(higher, lower, 0)
        widths.append(interval[1] - interval[0])
    assert widths[1] < widths[0] / 3
    assert auc_interval([2.0, 3.0], [0.0, 1.0], 0) == (1.0, 1.0)
    assert auc_interval([1.0], [0.0, 2.0], 0) is None


def test_the_interval_is_as_wide_as_hanley_and_mcneil_say() -> None:
    """Their standard error of an AUC (1982), on two normal groups."""
    rng = np.random.default_rng(5)
    n = 300
    higher, lower = rng.normal(1, 1, n), rng.normal(0, 1, n)
    a = auc(higher, lower)
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = np.sqrt((a * (1 - a) + (n - 1) * (q1 - a * a) + (n - 1) * (q2 - a * a)) / n**2)
    interval = auc_interval(higher, lower, 0)
    assert interval is not None
    assert interval[1] - interval[0] == pytest.approx(2 * 1.96 * error, rel=0.15)


@pytest.mark.parametrize("trials", [1, 2, 7, 100, 12_345])
def test_wilson_is_that_of_scipy(trials: int) -> None:
    from scipy.stats import binomtest

    for successes in {0, 1, trials // 3, trials - 1, trials}:
        known = binomtest(successes, trials).proportion_ci(0.95, method="wilson")
        assert wilson(successes, trials) == pytest.approx((known.low, known.high), abs=1e-9)


def test_no_trial_has_no_interval() -> None:
    assert wilson(0, 0) is None
