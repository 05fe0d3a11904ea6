"""What a benchmark ran on: the machine in words, the commit of this tree, and the versions of packages.

It must not know what is measured, and uses the standard library only. Its one invariant: it describes what is there,
and what cannot be found out is said to be unknown.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch numpy tokenizers tiktoken transformers accelerate datasets peft trl litgpt ctranslate2 llama-cpp-python gguf"
).split()
_CODE = ("src", "benchmarks", ":!benchmarks/results")
_TELLING = {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "neon", "asimd", "bf16", "i8mm"}


def machine() -> dict[str, Any]:
    """The machine in words: processor, cores, instruction sets that matter, memory, system."""
    text = read("/proc/cpuinfo")
    fields = {
        key.strip(): value.strip() for key, colon, value in (row.partition(":") for row in text.split("\n")) if colon
    }
    flags = set((fields.get("flags") or fields.get("Features") or "").split())
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    gpu = {"gpu": ", ".join(gpus())} if gpus() else {}
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "family": f"{fields.get('cpu family', '?')}/{fields.get('model', '?')}",
        "cores": cores,
        "instructions": sorted(flags & _TELLING),
        "memory_gib": round(memory / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **gpu,
    }


@cache
def gpus() -> tuple[str, ...]:
    """The names of the NVIDIA GPUs here, as their driver's tool has them."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
    except OSError:
        return ()
    return tuple(done.stdout.strip().splitlines()) if done.returncode == 0 else ()


def read(path: str | Path) -> str:
    """The text of a file; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def git(*words: str) -> str:
    """What git says in this tree; empty where it cannot."""
    done = subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def commit() -> tuple[str, bool]:
    """The commit of this tree, and whether code was changed since; or FINETWO_COMMIT's word."""
    told = os.environ.get("FINETWO_COMMIT")
    if told:
        return told, False
    return git("rev-parse", "HEAD") or "unknown", bool(git("status", "--porcelain", "-uno", "--", *_CODE))


def tree() -> str:
    """A digest of the commit and of the changes since."""
    state = git("rev-parse", "HEAD:src", "HEAD:benchmarks") + git("diff", "HEAD", "--", *_CODE)
    return hashlib.sha256(state.encode("utf-8")).hexdigest()[:16]


def versions(python: Path | str = sys.executable) -> dict[str, str]:
    """The versions of the packages that matter in the environment of `python`; empty where it is not there."""
    if not Path(python).exists():
        return {}
    code = (
        "import json, sys, importlib.metadata as m\nfound = {}\n"
        "for name in sys.argv[1:]:\n    try: found[name] = m.version(name)\n    except Exception: pass\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run([str(python), "-c", code, *PACKAGES], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def native_bf16() -> bool:
    """Whether the processor has products in bfloat16, and need not imitate them."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(machine()["instructions"]))
