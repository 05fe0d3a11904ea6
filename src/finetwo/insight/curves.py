"""The curves of a run as a few robust figures: where they began, where they end, how far they climbed.

It knows numbers only. Its one invariant: no figure hangs on a single step, as the loss of one batch is mostly noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import Any


@dataclass(frozen=True)
class Curves:
    """Losses and gradient norms of the steps, and the validation losses."""

    losses: list[float]
    norms: list[float]
    steps: list[int]
    """The step of each loss."""
    validation: list[float]

    @classmethod
    def of(cls, steps: Sequence[Mapping[str, Any]], evaluations: Sequence[Mapping[str, Any]]) -> Curves:
        """Take the curves from the lines of metrics.jsonl; lines without a number are left out."""
        good = [s for s in steps if isinstance(s.get("loss"), int | float)]
        return cls(
            [float(s["loss"]) for s in good],
            [float(s["grad_norm"]) for s in steps if isinstance(s.get("grad_norm"), int | float)],
            [int(s["step"]) for s in good],
            [float(e["loss"]) for e in evaluations if isinstance(e.get("loss"), int | float)],
        )

    @property
    def _share(self) -> int:
        return max(3, len(self.losses) // 10)

    @property
    def early(self) -> float:
        """Mean loss of the first tenth."""
        return fmean(self.losses[: self._share])

    @property
    def late(self) -> float:
        """Mean loss of the last tenth."""
        return fmean(self.losses[-self._share :])

    def quarter(self, number: int) -> float:
        """Mean loss of a quarter, from 1."""
        size = max(1, len(self.losses) // 4)
        return fmean(self.losses[(number - 1) * size : number * size])

    def around(self, step: int) -> float:
        """Mean loss of the steps near `step`."""
        near = min(range(len(self.steps)), key=lambda i: abs(self.steps[i] - step))
        half = max(1, self._share // 2)
        return fmean(self.losses[max(0, near - half) : near + half + 1])

    @property
    def training_gain(self) -> float:
        """By how much of itself the training loss fell."""
        return (self.early - self.late) / max(1e-12, self.early)

    @property
    def validation_gain(self) -> float | None:
        """By how much of itself the validation loss fell at best after the start; None without two of them."""
        if len(self.validation) < 2:
            return None
        return (self.validation[0] - min(self.validation[1:])) / max(1e-12, self.validation[0])

    @property
    def gain(self) -> float:
        """The validation's gain, which has no noise of batches, else the training's."""
        return self.training_gain if self.validation_gain is None else self.validation_gain

    @property
    def noise(self) -> float:
        """By how much of itself the training loss may seem to have fallen only because batches differ."""
        jumps = [(a - b) ** 2 for a, b in pairwise(self.losses)]
        one = math.sqrt(fmean(jumps) / 2) if jumps else 0.0
        return 2 * one * math.sqrt(2 / self._share) / max(1e-12, self.early)

    @property
    def is_calm(self) -> bool:
        """Whether the loss fell and the gradients kept their size until the end."""
        if len(self.losses) < 5 or len(self.norms) < 5:
            return False
        return self.late <= self.early and self.norms[-1] <= 10 * median(self.norms)

    def climb(self) -> tuple[float, int]:
        """How far the smoothed loss climbed above its lowest so far, and up to which step.

        (0, 0) if by no more than batches differ among themselves.
        """
        window = max(5, len(self.losses) // 20)
        if len(self.losses) < 2 * window:
            return 0.0, 0
        smooth = [median(self.losses[i : i + window]) for i in range(len(self.losses) - window + 1)]
        noise = median(abs(a - b) for a, b in pairwise(self.losses))
        lowest, best, at = smooth[0], 0.0, 0
        for index, value in enumerate(smooth):
            lowest = min(lowest, value)
            if value - lowest > best:
                best, at = value - lowest, self.steps[index + window - 1]
        least = max(0.5, 0.25 * min(smooth[:window] or smooth), 4 * noise)
        return (best, at) if best >= least else (0.0, 0)
