"""FineTwo on one CUDA GPU, without a network: correctness first, then training and decoding against the peers.

    python benchmarks/gpu.py [--only TEXT] [--compiled] [--partial] [--smoke]

Random weights of the published shapes, records made here. It ends in under ten minutes and prints a short table last;
a call that ran out of time goes on where it stopped. --smoke runs the same on a CPU with tiny shapes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from harness import Bench, Workload, options
from running import Side, script_side

HERE = Path(__file__).parent
TRAINING, OTHERS = HERE / "training_sides.py", HERE / "gpu_sides.py"


def side(name: str, part: str, job: dict[str, Any], *, peer: bool = False) -> Side:
    """One side of a workload."""
    script = TRAINING if part in ("finetwo", "trainer") else OTHERS
    return script_side(name, script, [part, json.dumps(job)], peer=peer)


MUST, AIM = 0.45, 0.6
"""What share of the measured matrix rate dense training of gpt2 must and should reach."""


def training(shape: str, kind: str, lora: bool, smoke: bool, *, compiled: bool = False) -> Workload:
    """A training job, ours and the peer's, whose network `compiled` sends through torch.compile."""
    job = {
        "shape": shape,
        "kind": kind,
        "rank": 8 if lora else 0,
        "device": "cuda",
        "precision": "bf16",
        "warm": 10,
        "steps": 30,
        "block": 5,
    }
    job |= {} if shape == "gpt2" else {"warm": 5, "steps": 20}
    dense = {"batch": 16 if shape == "gpt2" else 8, "length": 1024}
    job |= dense if kind == "dense" else {"batch": 128, "length": 512}
    if smoke:
        job |= {"device": "cpu", "precision": "float32", "warm": 1, "steps": 2, "batch": 2, "length": 64, "block": 1}
        if kind == "short":
            job |= {"length": 128}
    peer = ("peft + trainer" if lora else "trainer") + ", torch.compile" * compiled
    sides = [side("finetwo", "finetwo", job), side(peer, "trainer", job | {"compiled": compiled})]
    asked = (3.0, 6.0) if lora and kind == "short" else (None, None)
    name = f"{shape} {'LoRA' if lora else 'full'} {kind}" + ", peer compiled" * compiled
    pairs = [("finetwo", peer, *asked)]
    return Workload(name, "tokens/s", sides, pairs, group="training", settings=job, in_turn=True)


def decoding(shape: str, batch: int, smoke: bool) -> Workload:
    """Greedy decoding, ours and transformers'."""
    job = {"shape": shape, "batch": batch, "device": "cuda", "precision": "bf16", "prompt": 64, "new": 128, "repeat": 3}
    if smoke:
        job |= {"device": "cpu", "precision": "float32", "prompt": 8, "new": 6, "repeat": 1}
    sides = [side("finetwo", "finetwo decoding", job), side("transformers", "peer decoding", job)]
    name = f"{shape} decode, batch {batch}"
    pairs = [("finetwo", "transformers", None, None)]
    return Workload(name, "tokens/s", sides, pairs, group="decoding", settings=job, in_turn=True)


def workloads(smoke: bool, compiled: bool) -> list[Workload]:
    """Everything after the check, what matters most first."""
    size = {"size": 256, "device": "cpu", "precision": "float32"} if smoke else {"size": 8192, "device": "cuda"}
    products = [side("bf16", "rate", {"precision": "bf16", **size})]
    rate = Workload("matrix product", "FLOP/s", products, group="limit", settings=size)
    if smoke:
        jobs = [training("smaller", "dense", False, smoke), training("smaller", "short", True, smoke)]
        return [rate, *jobs, decoding("smaller", 2, smoke)]
    found = [rate]
    for shape in ("gpt2", "gpt2-medium"):
        found += [training(shape, kind, lora, smoke) for kind in ("dense", "short") for lora in (False, True)]
        found += [decoding(shape, batch, smoke) for batch in (1, 8, 64)]
    return [*found, *([training("gpt2", "dense", False, smoke, compiled=True)] if compiled else [])]


def share_of_limit(bench: Bench) -> None:
    """Say what share of the measured matrix rate dense training reaches."""
    by_name = {row["name"]: row for row in bench.workloads}
    limit = by_name["matrix product"]["sides"].get("bf16", {}).get("median")
    for row in bench.workloads:
        ours = row["sides"].get("finetwo", {})
        if limit and "flops" in ours:
            ours["share"] = ours["median"] * ours["flops"] / limit
            asked = f" (must {MUST:.0%}, aim {AIM:.0%})" if row["name"] == "gpt2 full dense" else ""
            bench.notes.append(f"{row['name']}: {ours['share']:.1%} of the measured matrix rate{asked}")


def main(words: list[str]) -> int:
    """Check, measure, print."""
    parser = options(__doc__)
    parser.set_defaults(rounds=1, minutes=9.5)
    parser.add_argument("--only", default="", help="only workloads whose name contains this")
    parser.add_argument("--compiled", action="store_true", help="also against a peer whose network is compiled")
    parser.add_argument("--partial", action="store_true", help="write what was measured when the minutes are used up")
    asked = parser.parse_args(words)
    bench = Bench("gpu", asked, only=asked.only)
    job = {"shape": "smaller" if asked.smoke else "small", "device": "cpu" if asked.smoke else "cuda"}
    checked = bench.once("correctness", side("finetwo", "check", job), 0)
    if "failure" in checked:
        print(f"gpu: not measured, since the check before failed: {checked['failure']}", file=sys.stderr)
        return 1
    bench.notes += [f"{name}: off by {value:.1e} of the largest" for name, value in checked["differences"].items()]
    everything = workloads(asked.smoke, asked.compiled)
    if bench.measure_all([everything[0], *(w for w in everything[1:] if asked.only in w.name)]) or asked.partial:
        missing = len(everything) - len(bench.workloads)
        bench.notes += [f"{missing} of {len(everything)} workloads were not reached in time"] if missing else []
        share_of_limit(bench)
        bench.finish()
        print("\n".join(bench.notes))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
