"""What the training tests share: records, a listener that acts, and ways to compare two runs."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, no_grad

from finetwo import train
from finetwo.core.strict_json import parse_json
from finetwo.store.folder import save_model
from finetwo.store.models import open_model
from finetwo.store.tensors import read_tensors
from finetwo.train.report import Report

WORDS = "the lamp in harbour went out at nine and keeper counted steps to top nobody answered wind had taken".split()


def records(count: int, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and answers of very unequal lengths, all different."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    return [{"prompt": f"{text(1, 5)} {i}?", "completion": text(1, 7)} for i in range(count)]


def write_jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows as JSONL and return the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


QUICK: dict[str, Any] = {
    "template": "plain",
    "batch_size": 4,
    "eval_every": "0",
    "save_every": "0",
    "sample_every": "0",
}
"""Settings of a run with nothing but steps."""
MICRO: dict[str, Any] = {
    "template": "plain",
    "batch_size": 2,
    "grad_accum": 3,
    "dropout": 0.1,
    "lr": 3e-3,
    "schedule": "cosine",
    "packing": True,
    "epochs": 3,
    "eval_every": "2",
    "save_every": "2",
    "rows": {"split": "train:25,validation:5"},
}
"""The micro run of the promises: full tuning, dropout, cosine, accumulation over a partial last window, packing."""


class At:
    """A listener that acts once, when it hears of `event` at `step`."""

    def __init__(self, event: str, step: int, action: Callable[[], object]) -> None:
        self.event, self.step, self.action = event, step, action
        self.done = False

    def hear(self, event: Mapping[str, Any]) -> None:
        if not self.done and event["event"] == self.event and event.get("step", 0) == self.step:
            self.done = True
            self.action()

    def close(self) -> None:
        pass


class Recorder:
    """A listener that keeps everything."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.closed = 0

    def hear(self, event: Mapping[str, Any]) -> None:
        self.events.append(dict(event))

    def close(self) -> None:
        self.closed += 1

    def of(self, kind: str) -> list[dict[str, Any]]:
        return [e for e in self.events if e["event"] == kind]


def quick(data: object, model: Path, out: Path, **settings: Any) -> Report:
    """A run with nothing but steps, on all records, unless `settings` say otherwise."""
    return train(data, model=str(model), out=str(out), **(QUICK | settings))


def metrics(run: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl, read as strict JSON."""
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [parse_json(line, "metrics.jsonl") for line in lines]


def losses(run: Path) -> list[tuple[str, int, float]]:
    """What must be equal between two equal runs: (event, step, loss), in order."""
    return [(m["event"], m["step"], m["loss"]) for m in metrics(run) if m["event"] in ("step", "evaluation")]


def step_losses(run: Path) -> list[float]:
    """The training losses in order of steps."""
    return [m["loss"] for m in metrics(run) if m["event"] == "step"]


def weights(folder: Path) -> dict[str, Tensor]:
    """The tensors of a model or adapter folder."""
    whole = folder / "model.safetensors"
    return read_tensors(whole if whole.is_file() else folder / "adapter_model.safetensors")


def digest(folder: Path) -> str:
    """SHA-256 of the weight file of a model or adapter folder."""
    whole = folder / "model.safetensors"
    return hashlib.sha256((whole if whole.is_file() else folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def gap(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """Largest absolute difference between two sets of tensors with the same names."""
    assert set(a) == set(b)
    return max(float((a[n].double() - b[n].double()).abs().max()) for n in a)


def snapshot(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder, the resolved configuration and the lock aside."""
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(folder.rglob("*"))
        if p.is_file() and p.name != "run.lock"
    }


def overflowing(base: Path, folder: Path) -> tuple[Path, Path]:
    """A copy of the base that overflows at its last positions, and 31 records of which one reaches them."""
    opened = open_model(str(base))
    with no_grad():
        opened.network.transformer.wpe.weight[-4:].fill_(1e25)
    save_model(folder / "overflowing", opened.network, opened.tokenizer, opened.extras)
    long = {"prompt": "lamp?", "completion": " ".join(WORDS * 12)}
    return folder / "overflowing", write_jsonl(folder / "overflowing.jsonl", [*records(30), long])
