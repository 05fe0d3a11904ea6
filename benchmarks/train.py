"""Training on a CPU against transformers' Trainer, PEFT, TRL, LitGPT and a plain loop, step by step in turn.

    python benchmarks/train.py [--rounds 4] [--dropout 0,0.1] [--only TEXT] [--emulated] [--smoke]

The sides of a workload stand next to each other, each in a process of its own, and make the same steps in turn: the
same records, batches and start weights (LitGPT has a network of its own). bf16 is left out where the processor would
only imitate it; --emulated measures it all the same. --instruct and --tokenizer take records and a tokenizer of yours.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comparing import Asked
from harness import PARTIAL, Bench, Workload, options
from running import ALLOCATOR, Side, script_side, there
from surroundings import ROOT, machine, native_bf16

SCRIPT = Path(__file__).with_name("training_sides.py")
WARM = 1
INSTRUCT = {"kind": "short", "batch": 8, "length": 512}
DENSE = {"kind": "dense", "batch": 1, "length": 1024}
CLASSES = {"kind": "classes", "batch": 32, "length": 128}
BARS: dict[tuple[str, str, str], tuple[float, float]] = {
    ("instruct, full", "float32", "trainer"): (2.0, 2.8),
    ("instruct, full", "bf16", "trainer"): (2.0, 3.0),
    ("instruct, full", "best", "trl"): (3.0, 5.0),
    ("instruct, LoRA r=8", "float32", "trainer"): (2.2, 3.0),
    ("instruct, LoRA r=8", "bf16", "trainer"): (2.3, 4.0),
    ("instruct, LoRA r=8", "best", "trl"): (4.5, 8.0),
    ("dense 1024", "float32", "plain"): (1.0, 1.1),
    ("dense 1024", "bf16", "plain"): (1.15, 1.3),
    ("classification, batch 32", "best", "trainer"): (1.8, 2.5),
}
"""How many times the peer's speed must and should be reached at dropout 0; "best" is bf16, or float32 without it."""
LESS = {("instruct, LoRA r=8", "float32", "trainer"): (0.5, 0.35)}
"""How much of the peer's peak memory may be taken at most."""
MODULES = {"trl": "trl", "litgpt": "litgpt", "trainer": "transformers", "plain": "torch", "compiled": "torch"}


@dataclass(frozen=True)
class Where:
    """What the measuring depends on, beside the workload."""

    bf16: bool
    """Whether bf16 is measured, and so is the best mode."""
    emulated: bool
    smoke: bool
    steps: int
    threads: int
    peers: frozenset[str]
    files: dict[str, str]


def name_of(peer: str, job: dict[str, Any]) -> str:
    """How a side is called on the page."""
    precision = job["precision"]
    if peer == "trl":
        kind = "TRL LoRA" if job["rank"] else "TRL"
        return f"{kind} defaults" if precision == "bf16" else f"{kind} defaults but float32"
    if peer == "litgpt":
        return f"LitGPT pythia-160m {precision}"
    if peer == "plain":
        return f"plain loop {precision}"
    if peer == "trainer":
        return f"{'PEFT + ' if job['rank'] else ''}Trainer {'autocast' if precision == 'bf16' else 'float32'}"
    return "finetwo, torch.compile" if peer == "compiled" else f"finetwo {precision}"


def side(part: str, job: dict[str, Any], where: Where) -> Side:
    """One side of a workload, with the allocator's settings that all get."""
    environment = {**ALLOCATOR, "OMP_NUM_THREADS": str(where.threads)}
    notes = {"litgpt": "another network", "trl": "with gradient checkpointing" + (", bf16 off" * (not where.bf16))}
    own = part in ("finetwo", "compiled")
    words = ["finetwo" if own else part, json.dumps(job | ({"compiled": True} if part == "compiled" else {}))]
    note = notes.get(part, "")
    return script_side(name_of(part, job), SCRIPT, words, peer=not own, environment=environment, note=note)


def workload(what: str, job: dict[str, Any], peers: list[str], where: Where) -> Workload:
    """Ours and the peers, and what is asked at dropout 0."""
    precision, dropout = job["precision"], job["dropout"]
    best = "best" if where.bf16 == (precision == "bf16") else ""
    ours = name_of("finetwo", job)
    pairs: list[Asked] = []
    memory: list[Asked] = []
    for peer in (found := [p for p in peers if p in where.peers]):
        asked = BARS.get((what, precision, peer)) or BARS.get((what, best, peer)) or (None, None)
        pairs.append((ours, name_of(peer, job), *(asked if not dropout else (None, None))))
        most = LESS.get((what, precision, peer))
        if most and not dropout:
            memory.append((ours, name_of(peer, job), *most))
    shown = {k: v for k, v in job.items() if k not in ("tokenizer", "records")}
    sides = [side(part, job, where) for part in ("finetwo", *found)]
    name = f"{what}, {precision}" + (f", dropout {dropout:g}" if dropout else "")
    return Workload(name, "tokens/s", sides, pairs, memory, group=f"dropout {dropout:g}", settings=shown, in_turn=True)


def workloads(where: Where, rates: list[float]) -> list[Workload]:
    """Everything, the table of each dropout after the other; further tables take half of the steps."""
    found = []
    for number, dropout in enumerate(rates):
        for precision in ("float32", "bf16") if where.bf16 else ("float32",):
            common = {
                "shape": "smaller" if where.smoke else "gpt2", "rank": 0, "precision": precision, "dropout": dropout,
                "device": "cpu", "warm": WARM, "steps": where.steps if number == 0 else -(-where.steps // 2),
                "emulated": where.emulated, **where.files,
            }  # fmt: skip
            litgpt = [] if dropout or where.smoke else ["litgpt"]
            compiled = [] if dropout or where.smoke or precision != "float32" else ["compiled"]
            wanted: list[tuple[str, dict[str, Any], list[str]]] = [
                ("instruct, full", INSTRUCT, ["trainer", "trl", *litgpt]),
                ("instruct, LoRA r=8", INSTRUCT | {"rank": 8}, ["trainer", "trl", *litgpt]),
                ("dense 1024", DENSE, ["plain", *compiled]),
                ("classification, batch 32", CLASSES, ["trainer"]),
            ]
            for what, job, peers in wanted:
                small = {"batch": min(job["batch"], 2), "length": 128} if where.smoke else {}
                found.append(workload(what, common | job | small, peers, where))
    return found


def notes_of(where: Where, imitated: bool) -> list[str]:
    """What was left out, and why; how the peers were treated."""
    found = []
    if imitated and not where.bf16:
        found.append(
            "bf16 is left out: this processor has no bfloat16 products and would imitate them some thirty times "
            "slower (--emulated measures it). The best mode is here float32 with everything that is exact, so the bars "
            "of the best mode stand at the peers' float32, and those of bf16 and autocast are not measured."
        )
        found.append("TRL's default is bf16, here too; it is measured with bf16 off, which is faster, all else kept.")
    elif imitated:
        found.append("bf16 is only imitated by this processor: its rows say nothing of one that has it.")
    found += [f"{peer} is not installed and left out" for peer in MODULES if peer not in where.peers]
    found.append(
        "All sides have the same allocator settings, threads, batches, order, start weights, learning rate, weight "
        "decay and clipping; the peers pad their rows as they do by default. LitGPT has no network with learned "
        "positions: its 162M pythia takes the place, from weights of its own, so its losses are others."
    )
    return found


def files_of(asked: Any) -> dict[str, str]:
    """The tokenizer and the records of the jobs."""
    if asked.instruct:
        return {"records": str(asked.instruct.resolve()), "tokenizer": str(asked.tokenizer.resolve())}
    if asked.smoke:
        return {}
    folder = PARTIAL / "models" / "tokenizer"
    if not folder.is_dir():
        sys.path.insert(0, str(ROOT / "src"))
        from training_data import write_tokenizer

        write_tokenizer(folder)
    return {"tokenizer": str(folder)}


def main(words: list[str]) -> int:
    """Measure; 0 where everything was measured."""
    parser = options(__doc__)
    parser.set_defaults(rounds=4, minutes=14.0)
    cores = machine()["cores"]
    parser.add_argument("--dropout", default="0,0.1", help="a table each, the first with twice the steps (0,0.1)")
    parser.add_argument("--only", default="", help="only workloads whose name contains this")
    parser.add_argument("--threads", type=int, default=cores, help=f"threads of every side ({cores})")
    parser.add_argument("--emulated", action="store_true", help="bf16 where the processor only imitates it")
    parser.add_argument("--instruct", type=Path, help="a JSON list of instruction, input, output; needs --tokenizer")
    parser.add_argument("--tokenizer", type=Path, help="tokenizer files for --instruct")
    asked = parser.parse_args(words)
    if bool(asked.instruct) != bool(asked.tokenizer):
        parser.error("--instruct and --tokenizer belong together")
    native = native_bf16()
    peers = frozenset(peer for peer, module in MODULES.items() if there(module, here=asked.smoke))
    bf16, steps = native or asked.emulated or asked.smoke, 2 if asked.smoke else asked.rounds
    where = Where(bf16, bf16 and not native, asked.smoke, steps, asked.threads, peers, files_of(asked))
    rates = [float(rate) for rate in asked.dropout.split(",")]
    data = asked.instruct.name if asked.instruct else "made here"
    bench = Bench("train", asked, dropout=asked.dropout, steps=steps, threads=asked.threads, data=data, only=asked.only)
    bench.notes += notes_of(where, not native)
    if not bench.measure_all(w for w in workloads(where, rates) if asked.only in w.name):
        return 75
    bench.notes += [
        f"{row['name']}: the first step takes {side['first_step_s']:.0f} s with torch.compile"
        for row in bench.workloads
        for name, side in row["sides"].items()
        if "torch.compile" in name
    ]
    bench.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
