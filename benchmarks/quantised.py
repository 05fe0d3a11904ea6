"""Peak memory of training an adapter on a network of GPT-2's shape with random weights: float32, int8 and nf4 bases.

    python benchmarks/quantised.py [--shape gpt2] [--steps 3] [--batch_size 8] [--out FOLDER]

Each run is a process of its own, `finetwo train` on records written here; the table has its peak resident memory and
the median seconds of its steps (timings mean something on an idle machine only).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

WORDS = "the lamp in harbour went out at nine and keeper counted steps to top nobody answered wind had taken".split()


def make(folder: Path, shape: str) -> None:
    """Write a model folder with random weights and the embedded tokenizer, and a file of records."""
    from dataclasses import replace

    from finetwo.model.config import SIZES
    from finetwo.model.network import Network
    from finetwo.store.folder import Extras, save_model
    from finetwo.store.hub import resolve
    from finetwo.text.tokenizer import Tokenizer

    tokenizer = Tokenizer.load(resolve("tiny"))
    save_model(
        folder / "base", Network.fresh(replace(SIZES[shape], eos_token_id=tokenizer.eot), 0), tokenizer, Extras()
    )
    draw = random.Random(0)
    rows = [
        {"instruction": " ".join(draw.choices(WORDS, k=20)), "output": " ".join(draw.choices(WORDS, k=10))}
        for _ in range(200)
    ]
    (folder / "records.json").write_text(json.dumps(rows), encoding="utf-8")


def child(words: list[str]) -> tuple[int, float]:
    """Run a command; return its exit code and its peak resident memory in MiB."""
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, used.ru_maxrss / (1024 if sys.platform != "darwin" else 1 << 20)


def measure(folder: Path, kind: str, arguments: argparse.Namespace) -> dict[str, float | str]:
    """Train one adapter in a process of its own; return its figures."""
    run = folder / f"run-{kind}"
    words = [sys.executable, "-m", "finetwo", "train", str(folder / "records.json"), "--model", str(folder / "base")]
    words += ["--out", str(run), "--quantize", kind, "--lora.rank", "8", "--max_steps", str(arguments.steps)]
    words += [
        "--batch_size",
        str(arguments.batch_size),
        "--eval_limit",
        "8",
        "--eval_every",
        "0",
        "--sample_every",
        "0",
    ]
    code, peak = child(words)
    if code != 0:
        raise SystemExit(f"{kind}: the run ended with exit code {code}")
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [record for record in map(json.loads, lines) if record["event"] == "step"]
    seconds = statistics.median(record["tokens"] / record["step"] / record["tokens_per_second"] for record in steps)
    return {"base": kind, "peak_mib": round(peak), "step_seconds": round(seconds, 2), "loss": steps[-1]["loss"]}


def main() -> int:
    """Print a line of JSON for each kind of base."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="gpt2")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.out or Path(temporary)
        make(folder, arguments.shape)
        for kind in ("none", "int8", "nf4"):
            print(json.dumps(measure(folder, kind, arguments)), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
