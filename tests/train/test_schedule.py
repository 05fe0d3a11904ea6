"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from tests.train.support import metrics, quick, records

from finetwo.core.errors import InputError
from finetwo.train.schedule import factor, warmup_steps


def curve(schedule: str, total: int, warm: int) -> list[float]:
    return [factor(schedule, step, total, warm) for step in range(total)]


def test_warmup_rises_linearly_and_reaches_the_peak() -> None:
    for schedule in ("constant", "linear", "cosine", "trapezoid"):
        found = curve(schedule, 20, 4)
        assert found[:4] == [0.25, 0.5, 0.75, 1.0], schedule
        assert found[4] == 1.0, schedule


def test_shapes_after_warmup() -> None:
    assert curve("constant", 6, 0) == [1.0] * 6
    assert curve("linear", 4, 0) == [1.0, 0.75, 0.5, 0.25]
    assert curve("linear", 6, 2)[2:] == [1.0, 0.75, 0.5, 0.25]
    assert curve("cosine", 5, 0) == pytest.approx([0.5 * (1 + math.cos(math.pi * i / 5)) for i in range(5)])
    assert curve("cosine", 8, 0)[4] == pytest.approx(0.5)
    assert curve("trapezoid", 20, 0) == pytest.approx([1.0] * 12 + [(20 - i) / 9 for i in range(12, 20)])


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine", "trapezoid"])
@pytest.mark.parametrize("total", [1, 2, 7])
def test_every_factor_is_above_zero_and_at_most_one(schedule: str, total: int) -> None:
    for warm in range(total + 1):
        assert all(0 < f <= 1 for f in curve(schedule, total, warm)), (schedule, total, warm)


def test_warmup_is_a_share_below_one_and_steps_from_one_on() -> None:
    assert warmup_steps(0.1, 200) == 20
    assert warmup_steps(0.03, 100) == 3
    assert warmup_steps(0, 100) == 0
    assert warmup_steps(1, 100) == 1
    assert warmup_steps(7.0, 100) == 7
    assert warmup_steps(100, 100) == 100


def test_warmup_longer_than_the_run_names_both_numbers(base: Path, tmp_path: Path) -> None:
    """Bad input 17; nothing is left behind."""
    with pytest.raises(InputError) as caught:
        quick(records(8), base, tmp_path / "run", max_steps=3, warmup=5)
    assert caught.value.where == "--warmup"
    assert "3 steps" in str(caught.value)
    assert "5 steps" in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_log_holds_the_rate_of_each_step(base: Path, tmp_path: Path) -> None:
    quick(records(8), base, tmp_path / "run", max_steps=8, warmup=2, schedule="linear", lr=0.004)
    rates = [m["lr"] for m in metrics(tmp_path / "run") if m["event"] == "step"]
    assert rates == pytest.approx([0.002, 0.004] + [0.004 * (6 - i) / 6 for i in range(6)])


def test_unknown_schedule_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match="constant, linear, cosine"):
        factor("step", 5, 10, 0)
