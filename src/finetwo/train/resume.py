"""Whether a run can go on: what it must share with its first start, and which checkpoint it goes on from.

It knows hashes, settings and checkpoints, and no tensors. Its one invariant: a run is continued only when everything
that shapes its result is the same, or the user asked for the difference by naming the checkpoint.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from finetwo.core.config import TrainConfig, to_dict
from finetwo.core.errors import InputError
from finetwo.core.version import __version__
from finetwo.store.checkpoint import Checkpoint, list_checkpoints, newest_valid, open_checkpoint
from finetwo.store.run import RunFolder
from finetwo.train.prepare import Prepared
from finetwo.train.start import Start

Say = Callable[[str], None]
ENVIRONMENT = "environment.json"
_PACKAGES = ("torch", "numpy", "tokenizers", "tiktoken")
# What may differ between the first start and a resume without changing the result.
_FREE = {
    "out",
    "resume",
    "keep",
    "workers",
    "track",
    "device",
    "save_every",
    "sample_every",
    "sample_prompts",
    "sampling",
    "data",
    "base",
}
# What may never differ: the tensors or the numbers of the records would mean something else.
_FIXED = {
    "rows.labels",
    "pooling",
    "data",
    "tokenizer",
    "template",
    "base",
    "task",
    "size",
    "model",
    "precision",
    "optimizer",
    "quantize",
}


def fingerprint_of(
    config: TrainConfig, prepared: Prepared, start: Start, base_digest: str, total: int
) -> dict[str, Any]:
    """Hashes and settings that a resumed run must share."""
    settings = {k: v for k, v in to_dict(config).items() if k not in _FREE}
    return {
        "settings": settings,
        "total_steps": total,
        "data": prepared.digest,
        "tokenizer": start.tokenizer.digest,
        "template": prepared.template.digest if prepared.template else None,
        "base": base_digest,
    }


def _differences(old: Any, new: Any, path: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            d for k in sorted({*old, *new}) for d in _differences(old.get(k), new.get(k), f"{path}.{k}" if path else k)
        ]

    def short(value: Any) -> str:
        return value[:12] if isinstance(value, str) and len(value) > 40 else str(value)

    return [] if old == new else [f"{path.removeprefix('settings.')}: {short(old)} then, {short(new)} now"]


def _named_checkpoint(name: str, run: Path) -> Checkpoint:
    """The checkpoint that --resume names: a path, a name in this run folder, or a run folder's newest."""
    path = next((p for p in (Path(name), run / name, run / f"checkpoint-{name}") if p.is_dir()), None)
    if path is None:
        there = ", ".join(p.name for p in list_checkpoints(run)) or "none"
        raise InputError("--resume", "no such checkpoint", name, f"checkpoints here: {there}")
    newest = newest_valid(path)[0] if list_checkpoints(path) else None
    return newest or open_checkpoint(path)


def find_checkpoint(config: TrainConfig, folder: RunFolder, fingerprint: dict[str, Any], say: Say) -> Checkpoint | None:
    """The checkpoint to go on from, or None to start; InputError when the run there is another one."""
    if config.resume == "never":
        folder.set_aside(say)
        return None
    if config.resume == "auto":
        found, skipped = newest_valid(folder.path)
        for reason in skipped:
            say(f"warning: checkpoint skipped: {reason}")
        if found is None and skipped:
            raise InputError(
                str(folder.path),
                f"no checkpoint of this run is whole: {'; '.join(skipped)}",
                None,
                "start over with --resume never, or take another --out",
            )
    else:
        found = _named_checkpoint(config.resume, folder.path)
    if found is None:
        return None
    differences = _differences(found.state.get("fingerprint"), fingerprint)
    fixed = [d for d in differences if d.split(":")[0] in _FIXED or config.resume == "auto"]
    if fixed:
        fix = "use the same settings, another --out, or --resume never to start over"
        if config.resume == "auto" and not any(d.split(":")[0] in _FIXED for d in differences):
            fix += f"; --resume {found.path} goes on with the new settings"
        raise InputError(str(found.path), f"the run there had other settings: {'; '.join(differences[:5])}", None, fix)
    if differences:
        say(f"warning: going on with other settings than before: {'; '.join(differences)}")
    say(f"resuming after step {found.step:,}")
    return found


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    found = {"finetwo": __version__}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def code_commit() -> str | None:
    """The git commit of FineTwo's own source tree, or None outside one."""
    here = Path(__file__).resolve().parent
    if not any((p / ".git").exists() for p in (here, *here.parents[:4])):
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def environment(fingerprint: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    """What the run folder holds of the machine, the versions and the data."""
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "packages": package_versions(),
        "commit": code_commit(),
        "fingerprint": fingerprint,
        "counts": prepared.counts,
    }
