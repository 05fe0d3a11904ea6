"""How the cost of training grows: with model size, length, batch, rank, and the number of jobs that share the machine.

    python benchmarks/growth.py [--smoke]

Ours alone, dense rows in float32 on the CPU. Several jobs at once divide the cores; what is told is what they train
together.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness import Bench, Workload, options
from running import Side, emit, script_side
from workloads import parameters

SIDES = Path(__file__).with_name("training_sides.py")
USUAL = {"shape": "4 x 256", "length": 256, "batch": 4, "rank": 0}
VARIED: dict[str, list[Any]] = {
    "model size": ["2 x 128", "4 x 256", "8 x 512", "12 x 768"],
    "sequence length": [64, 128, 256, 512, 1024],
    "batch": [1, 2, 4, 8, 16],
    "rank": [1, 4, 16, 64],
}
FIELD = {"model size": "shape", "sequence length": "length", "batch": "batch", "rank": "rank"}
LABELS = {"model size": "parameters", "sequence length": "tokens a row", "batch": "rows a step", "rank": "rank of LoRA"}


def job_of(smoke: bool, **changed: Any) -> dict[str, Any]:
    """A training job that differs from the usual one in what is given."""
    job = {"kind": "dense", "device": "cpu", "precision": "float32", "warm": 2, "steps": 5, **USUAL, **changed}
    return job | ({"warm": 1, "steps": 2, "shape": "smaller", "length": 16, "batch": 1} if smoke else {})


def together(count: int, job: Mapping[str, Any]) -> None:
    """Run `count` jobs at once, each with its share of the cores; hand over their rates' sum."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, cores // count))}
    command = [sys.executable, str(SIDES), "finetwo", json.dumps(job)]
    jobs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(count)]
    told = [child.communicate()[0] for child in jobs]
    if any(child.returncode for child in jobs):
        raise SystemExit("Error: a job failed")
    found = [json.loads(text.split("BENCH-RESULT ", 1)[1]) for text in told]
    emit({"value": sum(f["value"] for f in found), "peak_mb": sum(f["peak_mb"] for f in found)})


def sides_of(what: str, smoke: bool) -> list[Side]:
    """The jobs that differ in one thing."""
    values = VARIED[what][:1] if smoke else VARIED[what]
    jobs = {str(v): job_of(smoke, **{FIELD[what]: v}) for v in values}
    return [script_side(name, SIDES, ["finetwo", json.dumps(job)]) for name, job in jobs.items()]


def main(words: list[str]) -> int:
    """Run some jobs at once (hidden words), or everything in turn."""
    if words[:1] == ["together"]:
        together(int(words[1]), json.loads(words[2]))
        return 0
    parser = options(__doc__)
    parser.set_defaults(rounds=2)
    asked = parser.parse_args(words)
    bench = Bench("growth", asked, usual=USUAL)
    counts = [] if asked.smoke else [1, 2, 4]
    longer = json.dumps(job_of(False, steps=20))
    jobs = [script_side(str(n), __file__, ["together", str(n), longer]) for n in counts]
    found = [Workload(what, "tokens/s", sides_of(what, asked.smoke), group="growth") for what in VARIED]
    if jobs:
        found.append(Workload("jobs at once", "tokens/s", jobs, group="growth"))
    if bench.measure_all(found):
        for row in bench.workloads:
            what = row["name"]
            points = [
                (parameters(name) if what == "model size" else float(name), side) for name, side in row["sides"].items()
            ]
            label = LABELS.get(what, "jobs at once")
            bench.curve(f"Speed by {what}", label, "tokens/s", {"finetwo": [(x, s["median"]) for x, s in points]})
            bench.curve(f"Memory by {what}", label, "peak MB", {"finetwo": [(x, s["peak_mb"]) for x, s in points]})
        bench.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
