"""`finetwo info`: what a model, adapter, run or this machine is."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetwo.app import front
from finetwo.app.arguments import Words

_USAGE = "finetwo info [MODEL | RUN]"
_ABOUT = """Without a name: this machine and the packages in use. With a model or adapter: its shape, task and
template. With a run folder: how the run went.
"""


@dataclass
class InfoArguments:
    """Options of `finetwo info`."""

    json: bool = False
    """Write one JSON object."""


def _settle(arguments: InfoArguments, words: Words) -> InfoArguments:
    words.expect("info", 0, 1, "one model or run at a time", _USAGE)
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(InfoArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, names = asked
    content = about(names[0]) if names else machine()
    if arguments.json:
        sys.stdout.write(json.dumps(content) + "\n")
        return 0
    for name, value in content.items():
        text = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
        sys.stdout.write(f"{name:<18} {text}\n")
    return 0


def machine() -> dict[str, Any]:
    """This machine: python, platform, devices, packages."""
    import torch

    from finetwo.train.resume import code_commit, package_versions

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "cuda": ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())) or "none",
        "mps": torch.backends.mps.is_available(),
        **package_versions(),
        "commit": code_commit() or "not a checkout",
    }


def about(name: str) -> dict[str, Any]:
    """A run, a model or an adapter; the weights are not read."""
    from finetwo.store.folder import read_config, read_extras, stored_kind
    from finetwo.store.hub import resolve
    from finetwo.store.models import base_name, is_adapter_folder
    from finetwo.store.peft import read_adapter_config, saved_parameters
    from finetwo.store.run import is_run_folder

    path = Path(name)
    found: dict[str, Any] = {}
    if is_run_folder(path):
        found = about_run(path)
        if not any((path / part).is_dir() for part in ("best", "final")):
            return found
    folder = resolve(name)
    extras = read_extras(folder)
    found |= {
        "folder": str(folder),
        "task": extras.task or "not stated",
        "template": extras.template.name if extras.template else "none",
    }
    if is_adapter_folder(folder):
        config = read_adapter_config(folder)
        kind: dict[str, Any] = {
            "kind": "LoRA adapter",
            "base": base_name(folder, extras, None)
            if extras.base or config.get("base_model_name_or_path")
            else "not stated",
        }
        kind |= {
            "rank": config["r"],
            "alpha": config.get("lora_alpha"),
            "targets": ",".join(sorted(config["target_modules"]))
            if isinstance(config.get("target_modules"), list)
            else config.get("target_modules"),
        }
        return {**found, **kind, "parameters": saved_parameters(folder)} | _classifier(extras.labels, extras.pooling)
    shape, stored = read_config(folder), stored_kind(folder)
    return {
        **found,
        "kind": "GPT-2 model" + (f" in {stored} codes, for inference" if stored else ""),
        "parameters": shape.parameters,
        "layers": shape.n_layer,
        "width": shape.n_embd,
        "heads": shape.n_head,
        "context": shape.n_positions,
        "vocabulary": shape.vocab_size,
    } | _classifier(shape.labels, shape.pooling)


def _classifier(labels: Sequence[str], pooling: str) -> dict[str, Any]:
    """What a classifier tells apart, and what its head reads; nothing for a language model."""
    shown = ", ".join(labels[:12]) + (f" and {len(labels) - 12:,} more" if len(labels) > 12 else "")
    return {"classes": shown, "pooling": pooling} if labels else {}


def about_run(path: Path) -> dict[str, Any]:
    """How a run went, from its metrics."""
    from finetwo.core.strict_json import parse_json
    from finetwo.store.checkpoint import list_checkpoints
    from finetwo.train.progress import rank

    metrics = path / "metrics.jsonl"
    lines = metrics.read_text(encoding="utf-8").splitlines() if metrics.is_file() else []
    records = [parse_json(line, f"{metrics}:{i}") for i, line in enumerate(lines, 1)]
    steps = [r for r in records if r.get("event") == "step"]
    evaluations = [r for r in records if r.get("event") == "evaluation"]
    found: dict[str, Any] = {
        "run": str(path),
        "steps": steps[-1]["step"] if steps else 0,
        "finished": (path / "final").is_dir(),
    }
    if evaluations:
        best = min(evaluations, key=rank)
        found["validation loss"] = (
            f"{evaluations[0]['loss']:.4f} -> {evaluations[-1]['loss']:.4f}"
            f", best {best['loss']:.4f} at step {best['step']}"
        )
        if "accuracy" in best:
            found["validation accuracy"] = f"best {best['accuracy']:.1%}, macro F1 {best['macro_f1']:.3f}"
    found["checkpoints"] = ", ".join(p.name for p in list_checkpoints(path)) or "none"
    return found
