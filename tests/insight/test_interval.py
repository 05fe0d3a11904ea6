"""Intervals: streamed, seeded, and those that resampling kept records would give."""

from __future__ import annotations

import numpy as np
import pytest

from finetwo.insight.interval import Bootstrap, Mean


def interval_of(values: list[float], seed: int = 0) -> tuple[float, float]:
    mean = Mean(seed)
    for value in values:
        mean.add(value)
    found = mean.interval()
    assert found is not None
    return found


@pytest.mark.parametrize(("share", "count"), [(0.3, 400), (0.9, 200), (0.5, 60)])
def test_a_share_has_the_interval_of_resampled_records(share: float, count: int) -> None:
    values = np.zeros(count)
    values[: int(share * count)] = 1.0
    rng = np.random.default_rng(1)
    means = rng.choice(values, (20000, count)).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    assert interval_of(list(values)) == pytest.approx((low, high), abs=0.5 / np.sqrt(count) * 0.2)


def test_scores_of_all_sizes_have_it_too() -> None:
    values = np.random.default_rng(2).gamma(2.0, 10.0, 300)
    means = np.random.default_rng(3).choice(values, (20000, 300)).mean(axis=1)
    low, high = np.percentile(means, (2.5, 97.5))
    assert interval_of(list(values)) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_the_seed_and_nothing_else_decides() -> None:
    values = [float(i % 3) for i in range(50)]
    assert interval_of(values) == interval_of(values)
    assert interval_of(values) != interval_of(values, seed=1)


def test_few_records_have_none_and_equal_ones_no_width() -> None:
    mean = Mean(0)
    assert (mean.value, mean.interval()) == (None, None)
    mean.add(0.5)
    assert (mean.value, mean.interval()) == (0.5, None)
    assert interval_of([0.25] * 3) == (0.25, 0.25)


def test_records_are_summed_and_not_kept() -> None:
    bootstrap = Bootstrap(2, 0, resamples=50)

    def kept() -> int:
        return sum(a.nbytes for a in vars(bootstrap).values() if isinstance(a, np.ndarray))

    before = kept()
    for i in range(500):
        bootstrap.add((float(i), 1.0))
    assert kept() == before == 50 * 2 * 8
    assert not any(isinstance(a, list | dict) for a in vars(bootstrap).values())


def test_a_resample_that_says_nothing_is_left_out() -> None:
    bootstrap = Bootstrap(1, 0)
    bootstrap.add([1.0])
    bootstrap.add([1.0])
    found = bootstrap.interval(lambda sums: np.where(sums[:, 0] > 0, 7.0, np.nan))
    assert found == (7.0, 7.0)
    assert bootstrap.interval(lambda sums: np.full(len(sums), np.nan)) is None


def test_the_protocol_says_how() -> None:
    mean = Mean(3)
    mean.add(1.0)
    assert mean.protocol == "mean of 1 records, 95 % interval by Poisson bootstrap, 1,000 resamples, seed 3"
