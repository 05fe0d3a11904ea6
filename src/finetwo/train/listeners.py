"""Who hears of a run: listeners get data, never the trainer, and a listener that fails never stops a run.

It knows no network. Its one invariant: `Listeners.tell` returns whatever a listener does.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal, Protocol

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
        self._path = run / "metrics.csv"

    def hear(self, event: Event) -> None:
        """Write steps and evaluations; a start keeps the rows up to the step that is resumed."""
        if event["event"] == "start":
            old = self._read() if event["resumed"] else []
            self._write([row for row in old if int(row["step"]) <= event["resumed"]], "w")
        elif event["event"] == "step":
            self._write([event], "a")
        elif event["event"] == "evaluation":
            row = {"step": event["step"], "validation_loss": event["loss"], "validation_loss_all": event["loss_all"]}
            self._write([row], "a")

    def close(self) -> None:
        """Nothing is held open."""

    def _read(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def _write(self, rows: Sequence[Mapping[str, Any]], mode: Literal["w", "a"]) -> None:
        with self._path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._fields, extrasaction="ignore")
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)


_BUILT_IN: dict[str, Callable[[Path], Listener]] = {"csv": CsvListener}


def make_listener(name: str, run: Path) -> Listener:
    """Return the listener `name`: built in, or of the entry-point group `finetwo.listeners`; InputError lists them."""
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
            with suppress(Exception):  # the console may be what failed
                self._say(f"listener {type(listener).__name__} failed and hears no more: {type(e).__name__}: {e}")
