"""What every benchmark shares: the machine in words, sides run in turn as child processes, ratios, and one JSON form.

It must not know what is measured, and uses the standard library only, since peers' interpreters import it as well. Its
one invariant: two sides are compared only by runs that stood next to each other in time.

A benchmark is a script with two faces. Its parent makes a `Bench`, says which `Side`s stand against each other in a
`Workload`, and calls `measure` for each and `finish` at the end. A side is a command; as a rule the script itself with
hidden options, run by our interpreter or by `PEER`; it calls `emit({"value": ..., "losses": [...]})` when it is done.

The form of benchmarks/results/NAME.json (all figures of the page come from there):

    {"format": 1, "benchmark": NAME, "at": UTC, "commit": HASH, "changed": bool, "smoke": bool,
     "machine": {...}, "versions": {...}, "peer_versions": {...}, "settings": {...},
     "workloads": [{"name", "group", "unit", "better": "higher"|"lower", "settings": {...},
                    "sides": {SIDE: {"values": [...], "median", "low", "high", "peak_mb", "note", "losses"?, ...}},
                    "failures": {SIDE: TEXT},
                    "pairs": [{"of": "speed"|"memory", "ours", "peer", "ratios": [...], "median", "low", "high",
                               "must", "aim"}]}],
     "curves": [{"name", "x": LABEL, "y": LABEL, "lines": {LABEL: [[x, y], ...]}}],
     "notes": [TEXT, ...]}

A ratio of speed is "times better": the peer's time over ours, or our rate over the peer's; one of memory is our peak
over the peer's. `must` and `aim` are in that sense. Further keys of a side (losses, shares of a limit) are passed on.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import runpy
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from comparing import Asked, compare, compare_memory, one_side, print_table
from surroundings import ROOT, commit, machine, read, tree, versions

RESULTS = ROOT / "benchmarks" / "results"
PARTIAL = ROOT / "runs" / "benchmarks"
"""Where finished child runs wait until their benchmark is whole, so that a stopped one goes on."""
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
_MARK = "BENCH-RESULT "


# --- one side in a process of its own --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Side:
    """One of those who are compared: a name, the command that runs it once, and what it finds in its environment."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Workload:
    """What is measured: `sides` in turn, and pairs of (ours, peer, must, aim) among them.

    `pairs` ask for so many times the peer's speed, `memory` for so much of the peer's peak at most.
    """

    name: str
    unit: str
    sides: Sequence[Side]
    pairs: Sequence[Asked] = ()
    memory: Sequence[Asked] = ()
    better: str = "higher"
    group: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    rounds: int | None = None


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


def script_side(name: str, script: str | Path, words: Sequence[str], *, peer: bool = False, **more: Any) -> Side:
    """A side that is a benchmark script run with `words`, by our interpreter or the peers' if that is made."""
    python = str(PEER) if peer and PEER.exists() else sys.executable
    return Side(name, [python, str(script), *words], **more)


def run_side(side: Side, timeout: float) -> dict[str, Any]:
    """Run a side once; return what it emitted, or {"failure": the last line it wrote}."""
    environment = os.environ | OFFLINE | {"PYTHONPATH": _path()} | dict(side.environment)
    try:
        done = subprocess.run(
            list(side.command), capture_output=True, text=True, env=environment, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return {"failure": f"took longer than {timeout:.0f} s"}
    except OSError as error:
        return {"failure": str(error)}
    result = _emitted(done.stdout)
    if done.returncode == 0 and result is not None:
        return result
    said = [row for row in (done.stderr + "\n" + done.stdout).split("\n") if row.strip()]
    wrong = [row for row in said if "Error" in row or "error" in row] or said
    return {"failure": (wrong[-1] if wrong else f"ended with {done.returncode}")[:300]}


def _emitted(text: str) -> dict[str, Any] | None:
    """What a side handed over."""
    found = [row for row in text.split("\n") if row.startswith(_MARK)]
    return json.loads(found[-1][len(_MARK) :]) if found else None


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


def _path() -> str:
    """Where children find FineTwo and these scripts: this tree first."""
    before = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    return os.pathsep.join([str(ROOT / "src"), str(ROOT / "benchmarks"), *before])


# --- the whole -------------------------------------------------------------------------------------------------------


def options(about: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs (3)")
    parser.add_argument("--minutes", type=float, default=9.0, help="stop after so many; the same command goes on (9)")
    parser.add_argument("--smoke", action="store_true", help="tiny shapes, one round, seconds; nothing is kept")
    parser.add_argument("--fresh", action="store_true", help="forget what an unfinished call measured")
    parser.add_argument("--out", type=Path, help="where the JSON goes (benchmarks/results/NAME.json)")
    return parser


class OutOfTime(Exception):
    """The minutes that were given are used; what was measured is kept."""


class Bench:
    """One benchmark: measures workloads, remembers finished runs, prints a table and writes the JSON."""

    def __init__(self, name: str, asked: argparse.Namespace, **settings: Any) -> None:
        """`asked` has what `options` parsed; `settings` is what the figures depend on."""
        self.name, self.smoke, self.out = name, asked.smoke, asked.out
        self.rounds = 1 if asked.smoke else asked.rounds
        self.settings = settings
        self.ends = time.monotonic() + 60 * asked.minutes
        self.workloads: list[dict[str, Any]] = []
        self.curves: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self.commit, self.changed = commit()
        self._of = [tree(), json.dumps(settings, sort_keys=True, default=str)]
        self._known = PARTIAL / f"{name}{'-smoke' if self.smoke else ''}.jsonl"
        if asked.fresh or asked.smoke:
            self._known.unlink(missing_ok=True)
        self._done = self._remembered()

    def _remembered(self) -> dict[str, Any]:
        """What earlier calls measured of this very tree with these settings."""
        rows = [json.loads(row) for row in read(self._known).splitlines() if row.strip()]
        return {row["key"]: row["result"] for row in rows if row["of"] == self._of}

    def once(self, workload: str, side: Side, turn: int, timeout: float = 540.0) -> dict[str, Any]:
        """The result of one run of one side: remembered, or run now. OutOfTime where no time is left."""
        key = f"{workload} | {side.name} | {turn}"
        if key not in self._done:
            left = self.ends - time.monotonic()
            if left < 5:
                raise OutOfTime(f"{workload}: {side.name}")
            started = time.monotonic()
            result = run_here(side) if self.smoke else run_side(side, min(timeout, max(left, 30.0)))
            if "failure" in result and self.ends < time.monotonic():
                raise OutOfTime(f"{workload}: {side.name}")
            self._done[key] = result | {"wall_s": round(time.monotonic() - started, 2)}
            if "failure" not in result:  # that is tried again by the next call
                self._known.parent.mkdir(parents=True, exist_ok=True)
                with self._known.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"of": self._of, "key": key, "result": self._done[key]}) + "\n")
            shown = result.get("failure") or f"{result['value']:.4g}"
            print(f"  {workload}: {side.name} [{turn + 1}] {shown}", file=sys.stderr, flush=True)
        found: dict[str, Any] = self._done[key]
        return found

    def measure(self, workload: Workload) -> dict[str, Any]:
        """Run the sides of a workload in turn, each round in the other direction; one that fails is left out."""
        results: dict[str, list[dict[str, Any]]] = {side.name: [] for side in workload.sides}
        failures: dict[str, str] = {}
        for turn in range(workload.rounds or self.rounds):
            for side in workload.sides if turn % 2 == 0 else tuple(reversed(workload.sides)):
                if side.name in failures:
                    continue
                result = self.once(workload.name, side, turn)
                if "failure" in result:
                    failures[side.name] = result["failure"]
                else:
                    results[side.name].append(result)
        notes = {side.name: side.note for side in workload.sides}
        sides = {n: one_side(found, notes[n]) for n, found in results.items() if found and n not in failures}
        row = {
            "name": workload.name, "group": workload.group, "unit": workload.unit, "better": workload.better,
            "settings": dict(workload.settings), "sides": sides, "failures": failures,
            "pairs": [
                *(compare(sides, p, workload.better) for p in workload.pairs if p[0] in sides and p[1] in sides),
                *(compare_memory(sides, p) for p in workload.memory if p[0] in sides and p[1] in sides),
            ],
        }  # fmt: skip
        self.workloads.append(row)
        return row

    def measure_all(self, workloads: Iterable[Workload]) -> bool:
        """Measure all of them; False where the minutes were used up before, which is said."""
        try:
            for workload in workloads:
                self.measure(workload)
        except OutOfTime as where:
            print(f"{self.name}: the time is used up at {where}; the same command goes on from there")
            return False
        return True

    def curve(self, name: str, x: str, y: str, lines: Mapping[str, Iterable[tuple[float, float]]]) -> None:
        """Add how `y` grows with `x`, one line per label."""
        found = {label: [[float(a), float(b)] for a, b in points] for label, points in lines.items()}
        self.curves.append({"name": name, "x": x, "y": y, "lines": {k: v for k, v in found.items() if v}})

    def content(self) -> dict[str, Any]:
        """Everything, in the form that benchmarks/results/ holds."""
        return {
            "format": 1, "benchmark": self.name, "at": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
            "commit": self.commit, "changed": self.changed, "smoke": self.smoke, "machine": machine(),
            "versions": versions(), "peer_versions": versions(PEER), "settings": self.settings,
            "workloads": self.workloads, "curves": self.curves, "notes": self.notes,
        }  # fmt: skip

    def finish(self) -> Path:
        """Write the JSON (a smoke run writes beside the partial runs), forget the partial runs, print the table."""
        path = self.out or (PARTIAL / f"{self.name}-smoke.json" if self.smoke else RESULTS / f"{self.name}.json")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.content(), indent=1, sort_keys=False) + "\n", encoding="utf-8")
        self._known.unlink(missing_ok=True)
        print_table(self.workloads)
        print(f"written: {path}")
        return path
