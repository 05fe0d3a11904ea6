"""Who hears of a run: listeners get data, never the trainer, and a listener that fails never stops a run.

It knows no network. Its one invariant: `Listeners.tell` returns whatever a listener does.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from finetwo.core.errors import InputError

Event = Mapping[str, Any]
"""One thing that happened: key `event` is start, step, evaluation, sample, checkpoint, note or end."""


class Listener(Protocol):
    """Anything that takes events; `close` is called once at the end."""

    def hear(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """The run is over."""


class CsvListener:
    """Writes the training and validation losses to `metrics.csv` in the run folder, for spreadsheets."""

    _fields = ("step", "loss", "lr", "grad_norm", "validation_loss", "validation_loss_all")

    def __init__(self, run: Path) -> None:
        self._file = (run / "metrics.csv").open("w", newline="", encoding="utf-8")
        self._rows = csv.DictWriter(self._file, self._fields, extrasaction="ignore")
        self._rows.writeheader()

    def hear(self, event: Event) -> None:
        """Write steps and evaluations."""
        if event["event"] == "step":
            self._rows.writerow(event)
        elif event["event"] == "evaluation":
            self._rows.writerow(
                {"step": event["step"], "validation_loss": event["loss"], "validation_loss_all": event["loss_all"]}
            )
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


_BUILT_IN: dict[str, Callable[[Path], Listener]] = {"csv": CsvListener}


def make_listener(name: str, run: Path) -> Listener:
    """Return the listener called `name`: built in, or of the entry-point group `finetwo.listeners`; InputError lists them."""
    if name in _BUILT_IN:
        return _BUILT_IN[name](run)
    found = {e.name: e for e in entry_points(group="finetwo.listeners")}
    if name not in found:
        raise InputError("--track", "no such listener", name, f"use {', '.join(sorted({*_BUILT_IN, *found}))}")
    listener: Listener = found[name].load()(run)
    return listener


class Listeners:
    """A fence around listeners: one that raises is told no more, and the run says so once."""

    def __init__(self, listeners: Sequence[Listener], say: Callable[[str], None]) -> None:
        self._listeners, self._say = list(listeners), say

    def tell(self, **event: Any) -> None:
        """Pass one event to every listener."""
        for listener in list(self._listeners):
            self._fenced(listener, lambda heard=listener: heard.hear(event))  # type: ignore[misc]

    def close(self) -> None:
        """Close every listener."""
        for listener in list(self._listeners):
            self._fenced(listener, listener.close)

    def _fenced(self, listener: Listener, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as e:
            self._listeners.remove(listener)
            self._say(f"listener {type(listener).__name__} failed and hears no more: {type(e).__name__}: {e}")
