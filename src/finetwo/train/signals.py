"""Ctrl-C and SIGTERM as a wish to stop that the loop grants between steps; a second one ends at once.

It knows nothing of training. Its one invariant: the handlers that were there before are back afterwards.
"""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any, Self

from finetwo.core.errors import Stopped


def _tell(line: bytes) -> None:
    """Write to stderr past Python's buffers: the signal may come in the midst of a write, or because stderr is gone."""
    with suppress(OSError):
        os.write(2, line)


class Signals:
    """While active, `received` is the number of the signal that asked to stop, or None."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._before: dict[int, Any] = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            _tell(b"\nstopped at once; the last checkpoint is good\n")
            os._exit(128 + number)
        self.received = number
        _tell(b"\nstopping after this step and saving; once more to stop at once\n")

    _names: tuple[str, ...] = ("SIGINT", "SIGTERM", "SIGHUP")

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for name in self._names:
                number = getattr(signal, name, None)
                ignored = name == "SIGHUP" and number is not None and signal.getsignal(number) is signal.SIG_IGN
                if number is not None and not ignored:  # under nohup a lost terminal is no wish to stop
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)


class Preparing(Signals):
    """While active, SIGTERM and SIGHUP raise `Stopped` at once, as Ctrl-C raises KeyboardInterrupt."""

    _names = ("SIGTERM", "SIGHUP")

    def _handle(self, number: int, frame: FrameType | None) -> None:
        raise Stopped(number, "stopped outside of the steps; what was saved stays", "run the same command again")
