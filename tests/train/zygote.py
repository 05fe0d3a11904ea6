"""A process that imports torch once and forks a command line of FineTwo for each trial, to be signalled or killed.

As a module it is the client, `Zygote`; run as a script it is the process: one JSON request a line on stdin, one JSON
answer a line on stdout. No tensor is touched before a fork, so no thread pool exists in the children's parent.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

LIMIT = 120.0


@dataclass(frozen=True)
class Ended:
    """How a forked command line ended: exit code (negative: killed by that signal), seconds, what it wrote."""

    code: int
    seconds: float
    said: str
    """Seconds from the first signal to the end."""
    after: float


class Zygote:
    """The client's side."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "said.txt"
        source = Path(__file__).parents[2] / "src"
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(source)}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def run(
        self, words: list[Any], number: int = 0, delay: float = -1.0, steps: int = -1, again: float = -1.0
    ) -> Ended:
        """Run `finetwo WORDS`; send signal `number` after `delay` seconds, or once `steps` steps are in the log.

        With `again`, the same signal is sent once more so many seconds later.
        """
        texts = [str(w) for w in words]
        run = texts[texts.index("--out") + 1] if "--out" in texts else ""
        request = {"words": texts, "number": int(number), "delay": delay, "steps": steps, "again": again}
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request | {"log": str(self._log), "run": run}) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return Ended(answer["code"], answer["seconds"], self._log.read_text(encoding="utf-8"), answer["after"])

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(30)
        self._process.stdout.close()


def _steps(run: str) -> int:
    try:
        return Path(run, "metrics.jsonl").read_bytes().count(b'"event": "step"')
    except OSError:
        return 0


def _child(request: dict[str, Any]) -> None:
    """Be the command line; never return."""
    from finetwo.app.cli import main

    log = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 70
    try:
        os.write(request["ready"], b"!")
        code = main(request["words"])
        sys.stdout.flush()
        sys.stderr.flush()
    except KeyboardInterrupt as stop:
        if _before(main, stop.__traceback__):  # a Python of its own would die of the signal here
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        os._exit(code)


def _before(main: Any, at: TracebackType | None) -> bool:
    """Whether an interrupt came before the first line of `main`'s body, from where on `main` answers for it."""
    inner = at.tb_next if at is not None else None
    entering = inner is not None and inner.tb_frame.f_code is main.__code__ and inner.tb_next is None
    return inner is None or (entering and inner.tb_lineno == main.__code__.co_firstlineno)


def _trial(request: dict[str, Any]) -> dict[str, Any]:
    sys.stdout.flush()
    ready, say_ready = os.pipe()
    pid = os.fork()
    if pid == 0:
        _child(request | {"ready": say_ready})
    os.read(ready, 1)  # the clock starts when the command line does: a signal during the fork itself would be lost
    for end in (ready, say_ready):
        os.close(end)
    started = time.monotonic()
    number, delay, steps, sent, times = request["number"], request["delay"], request["steps"], 0.0, 0
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        now = time.monotonic()
        if done:
            break
        due = number and times == 0 and (_steps(request["run"]) >= steps if steps >= 0 else now - started >= delay)
        twice = times == 1 and request["again"] >= 0 and now - sent >= request["again"]
        if due or twice:
            os.kill(pid, number)
            sent, times = sent or now, times + 1
        if now - started > LIMIT:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.001)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "seconds": now - started, "after": now - sent if sent else -1.0}


def _serve() -> None:
    import torch

    torch.set_num_threads(1)
    import finetwo.app.console
    import finetwo.app.train
    import finetwo.train.job  # noqa: F401

    for line in sys.stdin:
        answer = _trial(json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _serve()
