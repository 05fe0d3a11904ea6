"""What trackers share: events become named figures and samples, and a sink writes them where it likes.

It knows events and no package of a tracker. Its one invariant: the step of a figure is the run's own step, counted over
epochs and across restarts, and nothing is opened for a run that takes no step.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from finetwo.core.errors import InputError
from finetwo.train.machine import MachineUse

Event = Mapping[str, Any]
_NAMES = ("event", "step", "total_steps", "best")
"""What an event says besides its figures."""


@dataclass(frozen=True)
class Sample:
    """A prompt answered during training."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class Opening:
    """What a sink is told when it opens."""

    run: Path
    resumed: int
    """The step that the run goes on from; 0 for a start."""
    config: str
    """The resolved configuration, YAML."""


class Sink(Protocol):
    """Where a tracker writes."""

    def open(self, opening: Opening) -> None:
        """Begin, or go on with, the record of a run."""

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        """Take figures of a step, by names such as `train/loss`."""

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        """Take all samples of a step."""

    def close(self) -> None:
        """Finish the record; also called after a failure."""


class Tracker:
    """A listener that writes to a sink: curves, configuration, samples and the use of the machine."""

    def __init__(self, name: str, run: Path, sink: Sink, machine: MachineUse | None = None) -> None:
        self.name, self._run, self._sink, self._machine = name, run, sink, machine or MachineUse()
        self._resumed = 0
        self._held: list[Event] = []
        self._samples: list[Sample] = []
        self._samples_at = 0
        self._open = False

    def hear(self, event: Event) -> None:
        """Take one event; what comes before the first step waits for it, as a run may end there and leave nothing."""
        if event["event"] == "start":
            self._resumed = event["resumed"]
            return
        if not self._open:
            self._held.append(event)
            goes_on = self._resumed > 0 and event["event"] in ("evaluation", "sample")
            if event["event"] != "step" and not goes_on:
                return
        try:
            self._write(event)
        except BaseException:
            self._give_up()
            raise

    def close(self) -> None:
        """Write what waits and finish."""
        if self._open:
            try:
                self._flush_samples()
            finally:
                self._open = False
                self._sink.close()

    def _write(self, event: Event) -> None:
        if self._open:
            self._tell(event)
            return
        self._open = True
        config = self._run / "config.yaml"
        text = config.read_text(encoding="utf-8") if config.is_file() else ""
        self._sink.open(Opening(self._run, self._resumed, text))
        held, self._held = self._held, []
        for earlier in held:
            self._tell(earlier)

    def _tell(self, event: Event) -> None:
        kind = event["event"]
        if kind == "sample":
            if event["step"] != self._samples_at:
                self._flush_samples()
            self._samples_at = event["step"]
            asked = prompt_text(event["prompt"])
            self._samples += [Sample(asked, text) for text in event["texts"]]
            return
        self._flush_samples()
        if kind in ("step", "evaluation"):
            prefix = "train" if kind == "step" else "validation"
            found = {f"{prefix}/{name}": value for name, value in figures_of(event)}
            if kind == "step":
                found |= {f"machine/{name}": value for name, value in self._machine.sample().items()}
            self._sink.figures(event["step"], found)

    def _flush_samples(self) -> None:
        samples, self._samples = self._samples, []
        if samples:
            self._sink.samples(self._samples_at, samples)

    def _give_up(self) -> None:
        """Close after a failure; what fails then as well is not worth a word."""
        self._open = False
        with suppress(Exception):
            self._sink.close()


def figures_of(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Yield every number of an event by its name, those of an inner mapping by a path; texts and switches are left."""
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from figures_of(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool) and name not in _NAMES:
            yield f"{prefix}{name}", float(value)


def prompt_text(prompt: Any) -> str:
    """A prompt of any kind as one text: a record's parts, or a conversation's turns, each on its own lines."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        parts = (str(prompt[name]) for name in ("prompt", "input") if prompt.get(name))
        return "\n".join(parts) or "\n".join(f"{name}: {value}" for name, value in prompt.items())
    return "\n".join(f"{turn['role']}: {turn['content']}" for turn in prompt)


def require(package: str, name: str) -> None:
    """Raise InputError where the package of a tracker is not installed; nothing is imported."""
    if importlib.util.find_spec(package) is None:
        raise InputError("--track", f"{name} needs the package {package}", name, "pip install 'finetwo[track]'")
