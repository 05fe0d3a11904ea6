"""Generation on a CPU against transformers, CTranslate2 and llama.cpp: tokens a second after the prompt, and memory.

    python benchmarks/generate.py [--rounds 3] [--batch 1,8,32] [--threads 2] [--smoke]

Random weights of GPT-2's shape, prompts of 64 tokens, 64 new tokens, the likeliest each time. Peers that are not
installed are left out and named. --smoke runs FineTwo and transformers on a tiny shape.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from harness import PARTIAL, Bench, Workload, options
from running import Side, script_side, there

SCRIPT = Path(__file__).with_name("decoding_sides.py")
BARS = {
    1: [("finetwo int8", "transformers float32", 5.0, 8.0), ("finetwo int8", "llama.cpp Q8_0", 0.75, 1.1)],
    8: [("finetwo int8", "ctranslate2 int8", 1.7, 2.2), ("finetwo int8", "llama.cpp Q8_0", 1.3, 1.7)],
    32: [("finetwo int8", "ctranslate2 int8", 1.1, 1.5), ("finetwo int8", "llama.cpp Q8_0", 1.2, 1.6)],
}
"""What must and should be reached, by the number of answers at a time."""
ALSO = [
    ("finetwo int4", "llama.cpp Q4_0", None, None),
    ("finetwo int8", "transformers float32", None, None),
    ("finetwo float32", "transformers float32", None, None),
]
PEERS = {"ctranslate2": "ctranslate2", "llama.cpp": "llama_cpp"}


def side(name: str, part: str, job: dict[str, Any]) -> Side:
    """One side of a workload."""
    return script_side(name, SCRIPT, [part, json.dumps(job)], peer=not part.startswith(("finetwo", "prepare")))


def prepare(bench: Bench, job: dict[str, Any], peers: set[str]) -> None:
    """Make what is not made yet: the model in every form that a side reads."""
    models = Path(job["models"])
    wanted = [("int4", "prepare", {}, False)]
    if "llama.cpp" in peers:
        wanted += [(kind, "prepare llama.cpp", {"kind": kind}, True) for kind in ("Q8_0", "Q4_0")]
    if "ctranslate2" in peers:
        wanted += [("ctranslate2", "prepare ctranslate2", {}, True)]
    for made, part, more, peer in wanted:
        if not (models / made).exists():
            words = [part, json.dumps(job | more)]
            result = bench.once("prepare", script_side(made, SCRIPT, words, peer=peer), 0)
            if "failure" in result:
                bench.notes.append(f"{made}: {result['failure']}")


def workload(batch: int, job: dict[str, Any], peers: set[str]) -> Workload:
    """One number of answers at a time."""
    job = job | {"batch": batch}
    sides = [side(f"finetwo {k}", "finetwo", job | {"kind": k}) for k in ("int8", "int4")]
    sides += [side("finetwo float32", "finetwo", job | {"kind": "full"})]
    sides += [side("transformers float32", "transformers", job)]
    if "ctranslate2" in peers:
        sides += [side("ctranslate2 int8", "ctranslate2", job)]
    if "llama.cpp" in peers:
        sides += [side(f"llama.cpp {k}", "llama.cpp", job | {"kind": k}) for k in ("Q8_0", "Q4_0")]
    bars = BARS.get(batch, [])
    pairs = bars + [pair for pair in ALSO if pair[:2] not in [bar[:2] for bar in bars]]
    memory = [("finetwo int8", "llama.cpp Q8_0", 2.5, 1.8)] if batch == 1 else []
    shown = {k: v for k, v in job.items() if k != "models"}
    name = f"decode, batch {batch}"
    return Workload(name, "tokens/s", sides, pairs, memory, group="generation", settings=shown)


def main(words: list[str]) -> int:
    """Measure; 0 where everything was measured."""
    parser = options(__doc__)
    parser.add_argument("--batch", default="1,8,32", help="answers at a time (1,8,32)")
    parser.add_argument("--threads", type=int, default=2, help="threads of every side (2)")
    parser.add_argument("--new", type=int, default=64, help="tokens of an answer (64)")
    parser.add_argument(
        "--repeat", type=int, default=3, help="times that a side decodes in one run, the median counts (3)"
    )
    asked = parser.parse_args(words)
    shape = "smaller" if asked.smoke else "gpt2"
    job = {"shape": shape, "prompt": 64, "new": asked.new, "repeat": asked.repeat, "threads": asked.threads}
    peers = set() if asked.smoke else {name for name, module in PEERS.items() if there(module)}
    batches = [int(b) for b in asked.batch.split(",")]
    if asked.smoke:
        job |= {"prompt": 8, "new": 6, "repeat": 1, "threads": 1}
        batches = [1, 3]
    bench = Bench("generate", asked, **job, batches=batches)
    bench.notes += [f"{name} is not installed and left out" for name in PEERS if name not in peers and not asked.smoke]
    job["models"] = str(PARTIAL / "models" / shape)
    prepare(bench, job | {"batch": 1}, peers)
    if not bench.measure_all(workload(batch, job, peers) for batch in batches):
        return 75
    bench.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
