"""The learning rate over a run, as a factor of its peak.

It knows numbers only. Its one invariant: the factor is a pure function of the step, so resuming needs no state.
"""

from __future__ import annotations

import math

from finetwo.core.errors import InputError


def warmup_steps(warmup: float, total: int, where: str = "--warmup") -> int:
    """Return the warm-up in steps: a share of `total` below 1, a number of steps from 1 on; InputError above that."""
    steps = round(warmup * total) if warmup < 1 else int(warmup)
    if steps > total:
        raise InputError(
            where, f"longer than the run of {total} steps", f"{steps} steps", "give fewer steps, or a share below 1"
        )
    return steps


def factor(schedule: str, step: int, total: int, warm: int) -> float:
    """Return the learning rate of step `step` (from 0) of `total` as a share of the peak, after `warm` linear steps up.

    linear and cosine fall to zero at the end; trapezoid holds and falls linearly over the last 45 %.
    """
    if step < warm:
        return (step + 1) / warm
    rest = max(1, total - warm)
    done = (step - warm) / rest
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return 1.0 - done
    if schedule == "cosine":
        return 0.5 * (1.0 + math.cos(math.pi * done))
    if schedule == "trapezoid":
        return min(1.0, (total - step) / max(1.0, 0.45 * total))
    raise InputError("--schedule", "unknown schedule", schedule, "use constant, linear, cosine or trapezoid")
