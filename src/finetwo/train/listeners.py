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

from finetwo.core.errors import InputError, shown

Event = Mapping[str, Any]
"""One thing that happened: key `event` is start, step, evaluation, sample, checkpoint, note or end."""


class Listener(Protocol):
    """Anything that takes events; `close` is called once at the end."""

    def hear(self, event: Event) -> None:
        """Take one event."""

    def close(self) -> None:
        """The run is over."""


class CsvListener:
    """Writes the training and validation figures to `metrics.csv` in the run folder, for spreadsheets."""

    def __init__(self, run: Path) -> None:
        self._path = run / "metrics.csv"
        self._fields = ["step", "loss", "lr", "grad_norm", "validation_loss", "validation_loss_all"]
        self._worth = False
        """Whether the run has taken a step; one that has not leaves nothing."""

    def hear(self, event: Event) -> None:
        """Write steps and evaluations; a start keeps the rows up to the step that is resumed."""
        if event["event"] == "start":
            self._worth = event["resumed"] > 0
            old = self._read() if event["resumed"] else []
            self._write([row for row in old if int(row["step"]) <= event["resumed"]], "w")
        elif event["event"] == "step":
            self._worth = True
            self._write([{name: event.get(name) for name in self._fields[:4]}], "a")
        elif event["event"] == "evaluation":
            figures = {f"validation_{name}": value for name, value in event.items() if _is_figure(name, value)}
            self._widen(figures)
            self._write([{"step": event["step"], **figures}], "a")

    def close(self) -> None:
        """Remove the file of a run that took no step."""
        if not self._worth:
            self._path.unlink(missing_ok=True)

    def _widen(self, figures: Mapping[str, Any]) -> None:
        """Give new figures columns of their own; the rows that are there keep theirs."""
        new = [name for name in figures if name not in self._fields]
        if new:
            rows = self._read()
            self._fields += new
            self._write(rows, "w")

    def _read(self) -> list[dict[str, str]]:
        if not self._path.is_file():
            return []
        with self._path.open(newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        self._fields += [name for name in reader.fieldnames or () if name not in self._fields]
        return rows

    def _write(self, rows: Sequence[Mapping[str, Any]], mode: Literal["w", "a"]) -> None:
        with self._path.open(mode, newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self._fields)
            if mode == "w":
                writer.writeheader()
            writer.writerows(rows)


def _is_figure(name: str, value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and name != "step"


def _tensorboard(run: Path) -> Listener:
    from finetwo.train.tensorboard import make

    return make(run)


def _wandb(run: Path) -> Listener:
    from finetwo.train.wandb import make

    return make(run)


_BUILT_IN: dict[str, Callable[[Path], Listener]] = {"csv": CsvListener, "tensorboard": _tensorboard, "wandb": _wandb}


def make_listener(name: str, run: Path) -> Listener:
    """Return the listener `name`: built in, or of the entry-point group `finetwo.listeners`.

    Raises:
        InputError: there is none of that name, its package is missing, or it cannot be made.
    """
    if name in _BUILT_IN:
        return _BUILT_IN[name](run)
    found = {e.name: e for e in entry_points(group="finetwo.listeners")}
    if name not in found:
        raise InputError("--track", "no such listener", name, f"use {', '.join(sorted({*_BUILT_IN, *found}))}")
    try:
        listener: Listener = found[name].load()(run)
    except Exception as e:
        what = f"the listener {name} cannot be made: {type(e).__name__}: {e}"
        raise InputError("--track", what, None, "repair its package, or leave it out") from e
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
                name = getattr(listener, "name", type(listener).__name__)
                self._say(f"listener {name} failed and hears no more: {type(e).__name__}: {shown(str(e), 300)}")
