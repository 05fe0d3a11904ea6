"""Exact match, stop rate and the figures that hold them."""

from __future__ import annotations

import math

from finetwo.insight.figures import Figures
from finetwo.insight.metric import Answered, Averaged, exact_match, stop_rate


def answered(answer: str, reference: str = "yes", reason: str = "stop") -> Answered:
    return Answered("Say yes.", "", reference, answer, reason)


def test_exact_match_ignores_white_space_at_the_ends_only() -> None:
    metric = exact_match(0)
    for text in ("yes", " yes\n", "Yes", "y es", ""):
        metric.add(answered(text))
    assert metric.result() == {"exact_match": 0.4}
    assert "mean of 5 records" in metric.protocol
    low, high = metric.intervals()["exact_match"]
    assert 0 <= low < 0.4 < high <= 1


def test_stop_rate_counts_answers_that_ended() -> None:
    metric = stop_rate(0)
    for reason in ("stop", "length", "stop", "stop"):
        metric.add(answered("x", reason=reason))
    assert metric.result() == {"stop_rate": 0.75}


def test_a_record_without_a_score_is_left_out() -> None:
    metric = Averaged("length", "characters", lambda a: float(len(a.answer)) or None, 0)
    for text in ("ab", "", "abcd"):
        metric.add(answered(text))
    assert metric.result() == {"length": 3.0}
    assert "mean of 2 records" in metric.protocol


def test_figures_carry_protocols_and_intervals() -> None:
    figures = Figures()
    figures.add({"loss": 1.5, "bits_per_byte": math.nan}, "nats")
    metric = exact_match(0)
    figures.add_result(metric, "greedy")
    more = Figures()
    more.add({"x": 1}, "counted", {"x": (0.0, 2.0)})
    figures.join(more)
    found = figures.to_dict("whole")
    assert found["loss"] == 1.5
    assert found["bits_per_byte"] is None  # JSON has no NaN
    assert found["exact_match"] is None  # of no record
    assert found["protocol"] == "whole"
    assert found["intervals"] == {"x": [0.0, 2.0]}
    assert found["protocols"].keys() == {"loss", "bits_per_byte", "exact_match", "x"}
    assert found["protocols"]["exact_match"].endswith("; greedy")


def test_an_empty_input_is_not_written() -> None:
    assert "input" not in answered("x").to_dict()
    assert Answered("a", "b", "c", "d", "stop").to_dict()["input"] == "b"
