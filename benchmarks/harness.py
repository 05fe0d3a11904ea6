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
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from comparing import Asked, compare, compare_memory, one_side, print_table
from running import PEER, Side, run_here, run_side, take_turns
from surroundings import ROOT, commit, machine, read, tree, versions

RESULTS = ROOT / "benchmarks" / "results"
PARTIAL = ROOT / "runs" / "benchmarks"
"""Where finished child runs wait until their benchmark is whole, so that a stopped one goes on."""


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
    in_turn: bool = False
    """Whether the sides run at the same time and take turns step by step, each of them counting its own steps."""


# --- the whole -------------------------------------------------------------------------------------------------------


def options(about: str) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    parser = argparse.ArgumentParser(description=about.splitlines()[0], formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3, help="how often each side runs, or has its turn (%(default)s)")
    parser.add_argument(
        "--minutes", type=float, default=9.0, help="stop after so many; the same command goes on (%(default)s)"
    )
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

        def run(left: float) -> dict[str, Any]:
            result = run_here(side) if self.smoke else run_side(side, min(timeout, left))
            shown = result.get("failure") or f"{result['value']:.4g}"
            print(f"  {workload}: {side.name} [{turn + 1}] {shown}", file=sys.stderr, flush=True)
            return result

        return self._kept(f"{workload} | {side.name} | {turn}", run, lambda found: "failure" in found)

    def _kept(
        self, key: str, run: Callable[[float], dict[str, Any]], failed: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """What `run` finds in the seconds left, or found in an earlier call; what failed is tried again by the next."""
        if key not in self._done:
            left = self.ends - time.monotonic()
            if left < 5:
                raise OutOfTime(key)
            started = time.monotonic()
            result = run(max(left, 30.0))
            if failed(result) and self.ends < time.monotonic():
                raise OutOfTime(key)
            self._done[key] = result | {"wall_s": round(time.monotonic() - started, 2)}
            if not failed(result):
                self._known.parent.mkdir(parents=True, exist_ok=True)
                with self._known.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"of": self._of, "key": key, "result": self._done[key]}) + "\n")
        found: dict[str, Any] = self._done[key]
        return found

    def _one_after_another(self, workload: Workload) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
        """Run each side as often as there are rounds, each round in the other direction; one that fails is left out."""
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
        return results, failures

    def _turn_by_turn(self, workload: Workload) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
        """Let the sides take turns within one run of each."""

        def run(left: float) -> dict[str, Any]:
            print(f"  {workload.name}: {', '.join(s.name for s in workload.sides)}", file=sys.stderr, flush=True)
            found = take_turns(workload.sides, left)
            for name, result in found.items():
                shown = result.get("failure") or f"{result['value']:.4g}"
                print(f"    {name}: {shown}", file=sys.stderr, flush=True)
            return {"sides": found}

        def failed(found: dict[str, Any]) -> bool:
            return any("failure" in result for result in found["sides"].values())

        found = self._kept(f"{workload.name} | {workload.group} | in turn", run, failed)["sides"]
        results = {name: [] if "failure" in result else [result] for name, result in found.items()}
        return results, {name: result["failure"] for name, result in found.items() if "failure" in result}

    def measure(self, workload: Workload) -> dict[str, Any]:
        """Run the sides of a workload and compare them; a smoke run takes no turns."""
        way = self._turn_by_turn if workload.in_turn and not self.smoke else self._one_after_another
        results, failures = way(workload)
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
