"""What the machine can do at most: the rate of matrix products and of memory, on two threads or all there are.

    python benchmarks/limits.py [--device cuda] [--smoke]

The figures of the other benchmarks are read as shares of these.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from harness import Bench, Workload, options
from running import emit, script_side

SIZES = ((1024, 768, 3072), (4096, 768, 768), (512, 3072, 768))
"""Rows, inner size and columns of the products that training GPT-2 spends its time in."""


def best(work: Any, device: str, least: float) -> float:
    """The shortest of several calls, in seconds; a limit is what was reached, not what was usual."""
    found = []
    until = time.perf_counter() + least
    while len(found) < 3 or time.perf_counter() < until:
        started = time.perf_counter()
        work()
        if device == "cuda":
            import torch

            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return min(found)


def matrix_rate(rows: int, inner: int, columns: int, dtype: Any, device: str, least: float = 1.0) -> float:
    """FLOP/s of a product (rows, inner) x (inner, columns)."""
    import torch

    a, b = (torch.randn(shape, device=device).to(dtype) for shape in ((rows, inner), (inner, columns)))
    out = torch.empty(rows, columns, dtype=dtype, device=device)
    return 2.0 * rows * inner * columns / best(lambda: torch.mm(a, b, out=out), device, least)


def memory_rate(kind: str, device: str, megabytes: int, least: float = 1.0) -> float:
    """Bytes a second that a copy moves (read and written), or a sum reads."""
    import torch

    a = torch.ones(megabytes * 250_000, device=device)
    b = torch.empty_like(a)
    if kind == "copy":
        return 2.0 * a.nbytes / best(lambda: b.copy_(a), device, least)
    return a.nbytes / best(lambda: a.sum(), device, least)


def side(kind: str, job: dict[str, Any]) -> None:
    """Measure one limit."""
    import torch

    device, least = job["device"], 0.05 if job["smoke"] else 1.0
    if kind in ("copy", "read"):
        emit({"value": memory_rate(kind, device, 8 if job["smoke"] else 512, least) / 1e9})
        return
    sizes = ((64, 64, 64),) if job["smoke"] else ((8192, 8192, 8192),) if device == "cuda" else SIZES
    rates = {str(size): matrix_rate(*size, getattr(torch, kind), device, least) / 1e9 for size in sizes}
    emit({"value": max(rates.values()), "rates": rates, "threads": torch.get_num_threads()})


def main(words: list[str]) -> int:
    """Run one side (hidden words), or all of them in turn."""
    if words[:1] == ["side"]:
        side(words[1], json.loads(words[2]))
        return 0
    parser = options(__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    asked = parser.parse_args(words)
    job = json.dumps({"device": asked.device, "smoke": asked.smoke})
    name = "limits" if asked.device == "cpu" else f"limits-{asked.device}"
    bench = Bench(name, asked, device=asked.device)

    def sides(*kinds: str) -> list[Any]:
        return [script_side(kind, __file__, ["side", kind, job]) for kind in kinds]

    products = Workload("matrix products", "GFLOP/s", sides("float32", "bfloat16"), group="limit")
    if bench.measure_all([products, Workload("memory", "GB/s", sides("copy", "read"), group="limit")]):
        bench.finish()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
