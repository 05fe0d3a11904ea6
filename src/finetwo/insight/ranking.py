"""How well a score tells two groups apart, and how sure a share of yes and no is.

It knows numbers and nothing of what they are. Its one invariant: ties count half, as in the Mann-Whitney statistic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from finetwo.insight.interval import RESAMPLES

Floats = NDArray[np.float64]
_Z = 1.959963984540054


def auc(higher: Sequence[float] | Floats, lower: Sequence[float] | Floats) -> float:
    """Return the share of pairs in which the one of `higher` has the greater score, ties half: the area under ROC."""
    return float(_wins(np.asarray(higher, dtype=np.float64), np.asarray(lower, dtype=np.float64)).mean())


def auc_interval(
    higher: Sequence[float] | Floats, lower: Sequence[float] | Floats, seed: int
) -> tuple[float, float] | None:
    """Return the 95 % bootstrap interval of `auc`, both groups resampled; None where a group has fewer than two."""
    if min(len(higher), len(lower)) < 2:
        return None
    wins = _wins(np.asarray(higher, dtype=np.float64), np.asarray(lower, dtype=np.float64))
    rng = np.random.default_rng([seed, 0xA0C])
    n, m = wins.shape
    values = [
        rng.multinomial(n, np.full(n, 1 / n)) @ wins @ rng.multinomial(m, np.full(m, 1 / m)) / (n * m)
        for _ in range(RESAMPLES)
    ]
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _wins(higher: Floats, lower: Floats) -> Floats:
    wins: Floats = (higher[:, None] > lower[None, :]) + 0.5 * (higher[:, None] == lower[None, :])
    return wins


def wilson(successes: int, trials: int) -> tuple[float, float] | None:
    """Return the 95 % interval of a share (Wilson 1927); None of no trial."""
    if not trials:
        return None
    share, square = successes / trials, _Z * _Z
    middle = share + square / (2 * trials)
    half = _Z * math.sqrt(share * (1 - share) / trials + square / (4 * trials * trials))
    low, high = (middle - half) / (1 + square / trials), (middle + half) / (1 + square / trials)
    return max(0.0, low), min(1.0, high)
