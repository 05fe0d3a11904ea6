"""How sure a figure is: a 95 % bootstrap interval over records, taken while the records stream by.

It knows numbers and nothing of what they count. Its one invariant: memory does not grow with the number of records,
and the same seed and order of records give the same interval.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Float64 = NDArray[np.float64]
RESAMPLES = 1000
"""Resamples of every interval."""


class Bootstrap:
    """Weighted sums of each record's numbers, once per resample.

    Drawing n of n records with replacement takes each about Poisson(1) times (the Poisson bootstrap of Hanley and
    MacGibbon 2006), so the sums of all resamples grow as records come and no record is kept.
    """

    def __init__(self, width: int, seed: int, resamples: int = RESAMPLES) -> None:
        """`width`: how many numbers a record has."""
        self.seed, self.resamples, self.records = seed, resamples, 0
        self._sums = np.zeros((resamples, width))
        self._rng = np.random.default_rng([seed, 0xB007])

    def add(self, numbers: Sequence[float]) -> None:
        """Count one record."""
        self.records += 1
        weights = self._rng.poisson(1.0, self.resamples)
        self._sums += np.multiply.outer(weights, np.asarray(numbers, dtype=np.float64))

    def interval(self, statistic: Callable[[Float64], Float64]) -> tuple[float, float] | None:
        """Return the 2.5 and 97.5 percentiles of `statistic`, or None where there are fewer than two records.

        statistic: from sums (resamples, width) to values (resamples,); NaN for a resample that says nothing.
        """
        if self.records < 2:
            return None
        with np.errstate(divide="ignore", invalid="ignore"):
            values = statistic(self._sums)
        values = values[~np.isnan(values)]
        if not len(values):
            return None
        low, high = np.percentile(values, (2.5, 97.5))
        return float(low), float(high)

    @property
    def protocol(self) -> str:
        """How the interval was taken."""
        return f"95 % interval by Poisson bootstrap, {self.resamples:,} resamples, seed {self.seed}"


class Mean:
    """The mean of one number per record, with its interval."""

    def __init__(self, seed: int) -> None:
        self._total, self._bootstrap = 0.0, Bootstrap(2, seed)

    def add(self, value: float) -> None:
        """Count one record."""
        self._total += value
        self._bootstrap.add((value, 1.0))

    @property
    def count(self) -> int:
        """Records counted."""
        return self._bootstrap.records

    @property
    def value(self) -> float | None:
        """The mean; None of no record."""
        return self._total / self.count if self.count else None

    def interval(self) -> tuple[float, float] | None:
        """The 95 % interval, None where there are fewer than two records."""
        return self._bootstrap.interval(lambda sums: sums[:, 0] / sums[:, 1])

    @property
    def protocol(self) -> str:
        """How mean and interval were taken."""
        return f"mean of {self.count:,} records, {self._bootstrap.protocol}"
