"""What a figure of answers is, and the plain ones: a number per record, averaged as the answers come.

It knows texts and no models. Its one invariant: a metric keeps sums and never an answer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from finetwo.insight.interval import Mean

Value = float | int | None
"""A figure; None where no record had one."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Answered:
    """One record with the model's answer to it."""

    prompt: str
    input: str
    """Further input of the prompt; empty where there is none."""
    reference: str
    answer: str
    finish_reason: str
    """stop: ended by end-of-text; length: cut."""

    def to_dict(self) -> dict[str, object]:
        """As JSON content; an empty input is left out."""
        found: dict[str, object] = {"prompt": self.prompt, "input": self.input, "reference": self.reference}
        found |= {"answer": self.answer, "finish_reason": self.finish_reason}
        return {name: value for name, value in found.items() if name != "input" or value}


class Result(Protocol):
    """Figures that share a protocol."""

    @property
    def protocol(self) -> str:
        """How the figures are taken: what is counted, over what, by which tool and version."""

    def result(self) -> dict[str, Value]:
        """Return the figures so far, by name."""

    def intervals(self) -> dict[str, Interval]:
        """Return the 95 % intervals of those figures that have one."""


class Metric(Result, Protocol):
    """Figures of answers that are taken as these come."""

    def add(self, answered: Answered) -> None:
        """Count one answer."""


class Averaged:
    """The mean of a score that each record has by itself, records without one left out."""

    def __init__(self, name: str, what: str, score: Callable[[Answered], float | None], seed: int) -> None:
        """`what` says in words what `score` counts; a score of None leaves the record out."""
        self.name, self._what, self._score, self._mean = name, what, score, Mean(seed)

    @property
    def protocol(self) -> str:
        """What is counted, and over how many records."""
        return f"{self._what}, {self._mean.protocol}"

    def add(self, answered: Answered) -> None:
        """Count one answer."""
        score = self._score(answered)
        if score is not None:
            self._mean.add(score)

    def result(self) -> dict[str, Value]:
        """The mean, None of no record."""
        return {self.name: self._mean.value}

    def intervals(self) -> dict[str, Interval]:
        """Its interval."""
        found = self._mean.interval()
        return {self.name: found} if found else {}


def exact_match(seed: int) -> Averaged:
    """Share of answers equal to their reference, white space at both ends ignored."""
    what = "answer equals reference, white space at both ends ignored"
    return Averaged("exact_match", what, lambda a: float(a.answer.strip() == a.reference.strip()), seed)


def stop_rate(seed: int) -> Averaged:
    """Share of answers that ended by themselves before they were cut."""
    what = "answer ended by itself before it was cut"
    return Averaged("stop_rate", what, lambda a: float(a.finish_reason == "stop"), seed)
