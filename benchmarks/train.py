"""How fast a training step is beside the peers', on the same records from the same weights, turn by turn.

python benchmarks/train.py [--only NAME,...] [--pairs N] [--threads N] [--instruct FILE --tokenizer FOLDER] [--out FILE]
prints per workload the medians, the ratio per pair, both loss curves and both processes' peak memory. --smoke runs
every workload on a tiny model. Ratios are peer's time over ours: 2 is twice as fast.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PARTS = HERE / "parts"
sys.path.insert(0, str(PARTS))

import torch  # noqa: E402 (their folder comes first)
from train_sides import SIDES, Workload, pack_up, records, timed  # noqa: E402

GPT2 = (12, 768, 12, 50257, 1024)
TINY = (2, 32, 2, 97, 64)
WARM = 2
"""Steps of each side before those that count."""
WORKLOADS = [
    Workload("instruct full float32", "instruct", "float32", "transformers", GPT2),
    Workload("instruct LoRA float32", "instruct", "float32", "peft", GPT2, lora=True),
    Workload("dense 1x1024 float32", "dense", "float32", "nano", GPT2, batch=1),
    Workload("classes batch 32 float32", "classes", "float32", "transformers", GPT2, batch=32),
    Workload("instruct full bf16", "instruct", "bf16", "transformers", GPT2),
    Workload("instruct LoRA bf16", "instruct", "bf16", "peft", GPT2, lora=True),
    Workload("dense 1x1024 bf16", "dense", "bf16", "nano", GPT2, batch=1),
    Workload("classes batch 32 bf16", "classes", "bf16", "transformers", GPT2, batch=32),
]
Answer = dict[str, float]
Asker = Callable[[int], Answer]


@contextlib.contextmanager
def child(side: str, work: Workload, threads: int) -> Iterator[Asker]:
    """One side in a process of its own."""
    command = [sys.executable, str(PARTS / "train_sides.py"), side, pack_up(work), str(threads)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None

        def ask(number: int | None) -> Answer:
            assert process.stdin is not None and process.stdout is not None
            if number is not None:
                print(number, file=process.stdin, flush=True)
            line = process.stdout.readline()
            if not line:
                raise SystemExit(f"benchmarks/train.py: {work.name}: the side '{side}' ended with {process.wait()}")
            return json.loads(line)  # type: ignore[no-any-return]

        ask(None)
        yield ask
        process.stdin.close()


@contextlib.contextmanager
def here(side: str, work: Workload, threads: int) -> Iterator[Asker]:
    """One side in this process; its peak memory is then not its own."""
    step = SIDES[side](work)
    yield lambda number: timed(step, number) | {"peak_mib": 0.0}


def race(work: Workload, pairs: int, threads: int, way: Callable[..., Any] = child) -> dict[str, Any]:
    """Let both sides take turns, the one that begins changing, and return what was measured."""
    told: dict[str, list[Answer]] = {"ours": [], "peer": []}
    with way("ours", work, threads) as ours, way("peer", work, threads) as peer:
        for number in range(WARM + pairs):
            turns = [("ours", ours), ("peer", peer)]
            for name, ask in turns if number % 2 else turns[::-1]:
                told[name].append(ask(number))
    rows, batch = records(work), work.batch
    counted = {name: answers[WARM:] for name, answers in told.items()}
    ratios = {
        clock: sorted(b[clock] / a[clock] for a, b in zip(counted["ours"], counted["peer"], strict=True))
        for clock in ("wall", "cpu")
    }
    mean = sum(map(len, rows)) / len(rows) * batch
    return {
        "workload": work.name,
        "peer": work.peer,
        "pairs": pairs,
        "ratio": {clock: statistics.median(found) for clock, found in ratios.items()},
        "spread": {clock: [found[0], found[-1]] for clock, found in ratios.items()},
        "tokens_per_second": {
            name: {clock: mean / statistics.median(a[clock] for a in found) for clock in ("wall", "cpu")}
            for name, found in counted.items()
        },
        "losses": {name: [a["loss"] for a in answers] for name, answers in told.items()},
        "peak_mib": {name: max(a["peak_mib"] for a in answers) for name, answers in told.items()},
    }


def lines(result: dict[str, Any]) -> list[str]:
    """A result for a person."""
    ratio, spread, speed, peak = (result[k] for k in ("ratio", "spread", "tokens_per_second", "peak_mib"))
    found = [f"{result['workload']}, against {result['peer']}: {result['pairs']} pairs"]
    for clock, word in (("wall", "wall time"), ("cpu", "processor time")):
        low, high = spread[clock]
        ours, peer = (speed[name][clock] for name in ("ours", "peer"))
        found.append(f"  {word:<15} {ratio[clock]:5.2f}x [{low:.2f} to {high:.2f}]  {ours:7.1f} / {peer:7.1f} tokens/s")
    if peak["peer"]:
        share = peak["ours"] / peak["peer"]
        found.append(f"  peak memory     {peak['ours']:,.0f} / {peak['peer']:,.0f} MiB ({share:.2f} of the peer's)")
    for name in ("ours", "peer"):
        found.append(f"  losses {name:<8} " + " ".join(f"{x:.4f}" for x in result["losses"][name]))
    return found


def machine(threads: int) -> dict[str, Any]:
    """What the figures hold for."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
    names = ("torch", "transformers", "peft", "numpy", "finetwo")
    return {
        "processor": platform.processor() or platform.machine(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "load": os.getloadavg(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "commit": commit.stdout.strip() or None,
    }


def real_records(file: str, tokenizer: str, folder: Path) -> str:
    """Instruction records of a file as token ids, written as Alpaca does; return where they are."""
    from finetwo.data.encoding import encode_records
    from finetwo.data.sequences import Segment
    from finetwo.text.template import Template
    from finetwo.text.tokenizer import Tokenizer

    known, template = Tokenizer.load(Path(tokenizer)), Template.named("alpaca")
    records = []
    for row in json.loads(Path(file).read_text(encoding="utf-8")):
        prompt = template.prompt({"prompt": row["instruction"], "input": row.get("input", "")})
        records.append([Segment(prompt, False), Segment(row["output"], True, True)])
    found = (sequence for sequence, _ in encode_records(known, records, 1024))
    rows = [[sequence.tokens.tolist(), sequence.targets.tolist()] for sequence in found if sequence is not None]
    target = folder / "instruct.json"
    target.write_text(json.dumps(rows), encoding="utf-8")
    return str(target)


def chosen(arguments: argparse.Namespace, folder: Path) -> list[Workload]:
    """The workloads to run."""
    works = WORKLOADS
    if arguments.smoke:
        return [replace(w, shape=TINY, batch=min(w.batch, 4)) for w in works]
    if arguments.only:
        words = [w.strip() for w in arguments.only.split(",")]
        works = [w for w in works if any(word in w.name for word in words)]
    if arguments.instruct:
        file = real_records(arguments.instruct, arguments.tokenizer, folder)
        works = [replace(w, file=file) if w.data == "instruct" else w for w in works]
    return works


def main(words: list[str] | None = None) -> list[dict[str, Any]]:
    """Run the workloads and print their results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="parts of names, comma-separated")
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--instruct", help="a JSON list of records with instruction, input and output")
    parser.add_argument("--tokenizer", help="the tokenizer's folder, for --instruct")
    parser.add_argument("--emulated", action="store_true", help="run bf16 where the processor only imitates it")
    parser.add_argument("--smoke", action="store_true", help="a tiny model, in this process, in seconds")
    parser.add_argument("--out", help="write the results as JSON")
    arguments = parser.parse_args(words)
    if arguments.instruct and not arguments.tokenizer:
        parser.error("--instruct needs --tokenizer")
    results = []
    slow = torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT") and platform.machine() in ("x86_64", "AMD64")
    with tempfile.TemporaryDirectory() as folder:
        for work in chosen(arguments, Path(folder)):
            if work.precision == "bf16" and slow and not (arguments.smoke or arguments.emulated):
                print(f"{work.name}: left out, this processor has no bfloat16 products (--emulated runs it)")
                continue
            way = here if arguments.smoke and results else child  # the first tries the processes as well
            results.append(race(work, 2 if arguments.smoke else arguments.pairs, arguments.threads, way))
            print("\n".join(lines(results[-1])), flush=True)
    if arguments.out:
        found = {"machine": machine(arguments.threads), "results": results}
        Path(arguments.out).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
