"""Sides in processes of their own: one run, or several that take turns step by step, and what they hand over.

It must not know what is measured, and uses the standard library only, since peers' interpreters import it as well. Its
one invariant: of sides that take turns only one computes at a time.

A side calls `emit` when it is done. One that may take turns calls `turn()` before each of its steps: it returns at
once where the side runs alone, and otherwise when it is this side's turn.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from surroundings import ROOT, read

PEER = Path(os.environ.get("FINETWO_PEERS", ROOT / ".venv-peers")) / "bin" / "python"
"""The peers' interpreter; benchmarks/peers.py makes it."""
ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "17179869184",
    "MALLOC_TOP_PAD_": "268435456",
    "THP_MEM_ALLOC_ENABLE": "1",
}
"""Settings of the C library that help training on a CPU; given to both sides or to none."""
OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true"}
_MARK, _TURN = "BENCH-RESULT ", "BENCH-TURN"
_IN_TURN = "FINETWO_BENCH_TURNS"
"""Set in the environment of a side that waits for its turns."""


@dataclass(frozen=True)
class Side:
    """One of those who are compared: a name, the command that runs it once, and what it finds in its environment."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def peak_mb() -> float:
    """The largest resident size that this process has had, in MB (VmHWM: what came before exec does not count)."""
    for row in read("/proc/self/status").split("\n"):
        if row.startswith("VmHWM:"):
            return round(int(row.split()[1]) * 1024 / 1e6, 1)
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most * (1 if sys.platform == "darwin" else 1024) / 1e6, 1)


def emit(result: Mapping[str, Any]) -> None:
    """Hand a side's result to the parent; `value` is the figure, further keys are kept. Adds the peak memory."""
    sys.stdout.write("\n" + _MARK + json.dumps({"peak_mb": peak_mb(), **result}) + "\n")
    sys.stdout.flush()


def in_turn() -> bool:
    """Whether this process is a side that stands among others and waits for its turns."""
    return bool(os.environ.get(_IN_TURN))


def there(module: str, *, here: bool = False) -> bool:
    """Whether the peers' interpreter has a module, or with `here` our own."""
    if here or not PEER.exists():
        return importlib.util.find_spec(module) is not None
    return subprocess.run([str(PEER), "-c", f"import {module}"], capture_output=True, check=False).returncode == 0


def turn() -> None:
    """Wait for this side's turn, where it stands among others; the parent's end ends it."""
    if in_turn():
        sys.stdout.write("\n" + _TURN + "\n")
        sys.stdout.flush()
        if not sys.stdin.readline():
            raise SystemExit("Error: the parent is gone")


def script_side(name: str, script: str | Path, words: Sequence[str], *, peer: bool = False, **more: Any) -> Side:
    """A side that is a benchmark script run with `words`, by our interpreter or the peers' if that is made."""
    python = str(PEER) if peer and PEER.exists() else sys.executable
    return Side(name, [python, str(script), *words], **more)


def run_side(side: Side, timeout: float) -> dict[str, Any]:
    """Run a side once; return what it emitted, or {"failure": the last line it wrote}."""
    try:
        done = subprocess.run(
            list(side.command), capture_output=True, text=True, env=_environment(side), timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"took longer than {timeout:.0f} s"}
    except OSError as error:
        return {"failure": str(error)}
    return _outcome(done.returncode, done.stdout, done.stderr)


def _outcome(code: int, out: str, err: str) -> dict[str, Any]:
    """What a side that has ended handed over, or what went wrong."""
    result = _emitted(out)
    if code == 0 and result is not None:
        return result
    said = [row for row in (err + "\n" + out).split("\n") if row.strip()]
    wrong = [row for row in said if "Error" in row or "error" in row] or said
    return {"failure": (wrong[-1] if wrong else f"ended with {code}")[:300]}


def _emitted(text: str) -> dict[str, Any] | None:
    """What a side handed over."""
    found = [row for row in text.split("\n") if row.startswith(_MARK)]
    return json.loads(found[-1][len(_MARK) :]) if found else None


class _Child:
    """One of several sides that take turns."""

    def __init__(self, side: Side, err: IO[str], stack: ExitStack) -> None:
        """Start it; `stack` closes its pipes."""
        self.name, self.said, self.err, self.ended = side.name, "", err, False
        environment, pipe = _environment(side) | {_IN_TURN: "1"}, subprocess.PIPE
        self.process = stack.enter_context(
            subprocess.Popen(list(side.command), stdin=pipe, stdout=pipe, stderr=err, text=True, env=environment)
        )

    def wait(self) -> None:
        """Read what it writes, until it waits for its turn or ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == _TURN:
                return
            self.said += line
        self.ended = True

    def go(self) -> None:
        """Give it its turn, and wait until that is over."""
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.write("go\n")
            self.process.stdin.flush()
        self.wait()

    def outcome(self) -> dict[str, Any]:
        """What it found, when it has ended."""
        code = self.process.wait()
        self.err.seek(0)
        return _outcome(code, self.said, self.err.read())


def take_turns(sides: Sequence[Side], timeout: float) -> dict[str, dict[str, Any]]:
    """Let sides take turns until all have ended, each round in the other direction; return what each found or failed.

    All are made ready at the same time, and only then does the first have its turn.
    """
    late: list[bool] = []
    with ExitStack() as stack:
        children = [_Child(side, stack.enter_context(tempfile.TemporaryFile("w+")), stack) for side in sides]

        def stop() -> None:
            for child in children:
                child.process.kill()

        watch = threading.Timer(timeout, lambda: (late.append(True), stop()))
        watch.daemon = True
        watch.start()
        try:
            for child in children:
                child.wait()
            number = 0
            while going := [child for child in children if not child.ended]:
                for child in going if number % 2 == 0 else reversed(going):
                    child.go()
                number += 1
            found = {child.name: child.outcome() for child in children}
        finally:
            watch.cancel()
            stop()
    slow = {"failure": f"took longer than {timeout:.0f} s"}
    return {name: slow if late and "failure" in result else result for name, result in found.items()}


def run_here(side: Side) -> dict[str, Any]:
    """Run a side that is a script in this very process, for a smoke run: no figure of it means anything."""
    words, text = sys.argv, io.StringIO()
    os.environ.update(OFFLINE)
    sys.path[:0] = [p for p in _path().split(os.pathsep)[:2] if p not in sys.path]
    sys.argv = list(side.command[1:])
    try:
        with redirect_stdout(text):
            runpy.run_path(side.command[1], run_name="__main__")
    except SystemExit as end:
        if end.code not in (None, 0):
            return {"failure": str(end.code)[:300]}
    except Exception as error:
        return {"failure": f"{type(error).__name__}: {error}"[:300]}
    finally:
        sys.argv = words
    return _emitted(text.getvalue()) or {"failure": "handed over nothing"}


def _environment(side: Side) -> dict[str, str]:
    """What a side finds in its environment."""
    return os.environ | OFFLINE | {"PYTHONPATH": _path()} | dict(side.environment)


def _path() -> str:
    """Where children find FineTwo and these scripts: this tree first."""
    before = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks"), *before])
