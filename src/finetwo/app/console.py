"""What a person sees of a run: plain lines, and one live line of progress in a terminal.

It knows events and nothing of training. Its one invariant: without a terminal it writes whole lines only, and few.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, TextIO

_PLAIN_EVERY = 30.0
"""Seconds between progress lines where there is no terminal."""
_FIGURES = (
    ("loss", "loss", "{:.4f}"),
    ("loss_all", "all tokens", "{:.4f}"),
    ("bits_per_byte", "bits/byte", "{:.3f}"),
    ("accuracy", "accuracy", "{:.1%}"),
    ("macro_f1", "macro F1", "{:.3f}"),
)
"""Figures of an evaluation that are shown, where it has them: name, words, form."""


def say(line: str) -> None:
    """Write one line for a person."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def duration(seconds: float) -> str:
    """Seconds as 42 s, 3 min 05 s or 2 h 10 min."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _asked(prompt: str | Mapping[str, str] | Sequence[Mapping[str, str]]) -> str:
    """A prompt as one text: of a record the field that asks, else all of it; of a conversation the last question."""
    if isinstance(prompt, str):
        return prompt
    if not isinstance(prompt, Mapping):
        return prompt[-1]["content"]
    return prompt.get("prompt") or json.dumps(dict(prompt), ensure_ascii=False)


class Console:
    """A listener that shows progress: loss, tokens per second, time left."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._live = stream.isatty()
        self._progress: Any = None
        self._task: Any = None
        self._first: tuple[float, int, int] | None = None
        self._spoken = time.monotonic()
        self._smooth: float | None = None

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take one event of the run."""
        kind = event["event"]
        if kind == "start" and self._live:
            self._begin(event["total_steps"], event["resumed"])
        elif kind == "step":
            self._step(event)
        elif kind == "evaluation":
            best = " (best)" if event["best"] and event["step"] else ""
            shown = (f"{words} {form.format(event[name])}" for name, words, form in _FIGURES if name in event)
            self._line(f"step {event['step']:>6,}  validation {'  '.join(shown)}{best}")
        elif kind == "sample":
            for text in event["texts"]:
                self._line(f"step {event['step']:>6,}  {_asked(event['prompt'])[-60:]!r} -> {text[:200]!r}")

    def close(self) -> None:
        """Remove the live line."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _begin(self, total: int, done: int) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, TextColumn

        columns = (
            TextColumn("{task.completed:>6,.0f}/{task.total:,.0f}"),
            BarColumn(bar_width=30),
            TextColumn("{task.description}"),
        )
        self._progress = Progress(*columns, console=RichConsole(file=self._stream), transient=True)
        self._task = self._progress.add_task("starting", total=total, completed=done)
        self._progress.start()

    def _step(self, event: Mapping[str, Any]) -> None:
        now, step, total = time.monotonic(), int(event["step"]), int(event["total_steps"])
        if self._first is None:
            self._first = (now, step, int(event["tokens"]))
        loss = float(event["loss"])
        self._smooth = loss if self._smooth is None else 0.95 * self._smooth + 0.05 * loss
        since, first, tokens = self._first
        done = step - first
        left = duration((now - since) / done * (total - step)) + " left" if done else "..."
        speed = (int(event["tokens"]) - tokens) / (now - since) if done else float(event["tokens_per_second"])
        text = f"loss {self._smooth:.3f}  {speed:,.0f} tokens/s  {left}"
        if self._progress is not None:
            self._progress.update(self._task, completed=step, description=text)
        elif now - self._spoken >= _PLAIN_EVERY or step == 1:
            self._spoken = now
            say(f"step {step:>6,}/{total:,}  {text}")

    def _line(self, text: str) -> None:
        if self._progress is not None:
            self._progress.console.print(text, markup=False, highlight=False)
        else:
            say(text)
