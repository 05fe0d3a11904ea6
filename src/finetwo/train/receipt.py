"""The receipt of a run: hashes of all that went in, and a chain of hashes over its losses, to run it again and compare.

It hears events like any listener and reads the log of the run folder, and knows no network. Its one invariant: the
chain is a function of metrics.jsonl alone, so a run that was stopped and resumed has the receipt of one that was not.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from finetwo.core.config import TrainConfig, to_dict
from finetwo.core.errors import FineTwoError, NumericError
from finetwo.core.files import sha256_file, write_json
from finetwo.core.strict_json import parse_json
from finetwo.data.sealed import METADATA, describe_files
from finetwo.data.source import find_files
from finetwo.store.peft import WEIGHTS as ADAPTER
from finetwo.store.run import RunFolder
from finetwo.text.template import Template
from finetwo.train.machine import peak_bytes
from finetwo.train.resume import code_commit, package_versions

RECEIPT = "receipt.json"
BLOCK = 100
"""Steps between two links of the chain."""
MARK = 8
"""Hexadecimal digits of the chain that are kept of every step."""
_RULE = "each step: SHA-256 of the digest before (none at first), then '<step> <repr of the loss>' and a line feed"


class Chain:
    """A rolling SHA-256 over losses: a link every 100 steps and at the end, and the first digits of every step."""

    def __init__(self) -> None:
        self._digest = b""
        self._links: list[dict[str, Any]] = []
        self._marks: list[str] = []
        self.steps = 0

    def add(self, step: int, loss: float) -> str:
        """Take the exact loss of the next step; return the digest up to it, hexadecimal."""
        self._digest = hashlib.sha256(self._digest + f"{step} {loss!r}\n".encode()).digest()
        self.steps = step
        self._marks.append(self._digest.hex()[:MARK])
        if len(self._marks) == BLOCK:
            self._links.append(self._link())
            self._marks = []
        return self._digest.hex()

    def _link(self) -> dict[str, Any]:
        return {"step": self.steps, "sha256": self._digest.hex(), "marks": "".join(self._marks)}

    def to_dict(self) -> dict[str, Any]:
        """As JSON content."""
        links = [*self._links, *([self._link()] if self._marks else [])]
        return {"rule": _RULE, "steps": self.steps, "sha256": self._digest.hex(), "links": links}


def chain_of(metrics: Path) -> Chain:
    """The chain over the steps that a metrics.jsonl holds."""
    chain = Chain()
    for record in _records(metrics):
        if record.get("event") == "step" and isinstance(record.get("loss"), float):
            chain.add(int(record["step"]), float(record["loss"]))
    return chain


def _records(metrics: Path) -> Iterator[dict[str, Any]]:
    with suppress(FileNotFoundError), metrics.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            yield parse_json(line, f"{metrics}:{number}")


def marks_of(losses: Mapping[str, Any]) -> list[str]:
    """The first digits of the chain after every step."""
    text = "".join(link["marks"] for link in losses["links"])
    return [text[i : i + MARK] for i in range(0, len(text), MARK)]


# --- writing ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """What a run is made of, as far as the receipt tells of it."""

    config: TrainConfig
    """Resolved: nothing is left to detect."""
    data: object
    fingerprint: Mapping[str, Any]
    """Hashes of data, tokenizer, template and base (see `fingerprint_of`)."""
    counts: Mapping[str, int]
    template: Template | None
    source: Path
    """Where the start's weights lie."""
    device: torch.device


@dataclass
class Receipt:
    """A listener that writes `receipt.json` when the run is over, however it ended."""

    folder: RunFolder
    subject: Subject
    name: str = "receipt"
    _content: dict[str, Any] = field(default_factory=dict)
    _figures: dict[str, Any] | None = None
    _stepped: bool = False

    def hear(self, event: Mapping[str, Any]) -> None:
        """Hash what went in when the run starts, and keep how it ended."""
        if event["event"] == "start":
            self._content = describe(self.subject) | {"resumed_at": event["resumed"]}
        elif event["event"] == "step":
            self._stepped = True
        elif event["event"] == "end":
            self._figures = {name: value for name, value in event.items() if name != "event"}

    def close(self) -> None:
        """Write the receipt; a run that took no step now keeps the one it has."""
        if self._stepped:
            self._write(None)

    def failed(self, error: FineTwoError) -> None:
        """Say in the receipt why the run ended before its time; nothing where that was before anything was computed."""
        computed = self._stepped or isinstance(error, NumericError)
        if self._content and computed and self.folder.metrics.is_file() and self.folder.metrics.stat().st_size:
            self._write(error)

    def _write(self, error: FineTwoError | None) -> None:
        end = {"type": type(error).__name__, "line": error.line()} if error is not None else None
        final = self.folder.final
        weights = next((p for n in ("model.safetensors", ADAPTER) if (p := final / n).is_file()), None)
        done = self._figures is not None
        content = self._content | {
            "finished": done,
            "failure": end,
            "losses": chain_of(self.folder.metrics).to_dict(),
            "figures": _finite(self._figures),
            "peak_memory_bytes": peak_bytes(self.subject.device),
            "weights": {"file": f"final/{weights.name}", "sha256": sha256_file(weights)} if weights and done else None,
        }
        write_json(self.folder.path / RECEIPT, content)


def describe(subject: Subject) -> dict[str, Any]:
    """Everything of a receipt that is known before the first step."""
    prints, config = subject.fingerprint, subject.config
    adapter = subject.source / ADAPTER
    return {
        "format": 1,
        "data": {
            "path": config.data,
            "digest": prints["data"],
            "files": describe_files(data_files(subject.data)),
            "counts": dict(subject.counts),
        },
        "tokenizer": prints["tokenizer"],
        "template": {
            "digest": prints["template"],
            "content": subject.template.to_dict() if subject.template is not None else None,
        },
        "base": {
            "name": config.model,
            "sha256": prints["base"],
            "adapter": sha256_file(adapter) if adapter.is_file() else None,
        },
        "seed": config.seed,
        "total_steps": prints["total_steps"],
        "config": to_dict(config),
    } | environment_now(subject.device)


def environment_now(device: torch.device) -> dict[str, Any]:
    """Code, packages and machine as they are now."""
    versions = package_versions()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "code": {"version": versions.pop("finetwo"), "commit": code_commit(), "sha256": _code_digest()},
        "python": sys.version.split()[0],
        "packages": versions,
        "hardware": {
            "platform": platform.platform(),
            "machine": platform.machine(),
            "cpu": _cpu_model(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "device": str(device),
            "device_name": name,
        },
    }


def data_files(data: object) -> Sequence[Path]:
    """The files that `data` names, in the order they are read; none for records in memory."""
    if not isinstance(data, str | Path):
        return []
    path = Path(data)
    if (path / METADATA).is_file():
        return [path / METADATA]
    return [file for group in find_files(path).values() for file in group]


def _cpu_model() -> str:
    with suppress(OSError), Path("/proc/cpuinfo").open(encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _code_digest() -> str:
    """SHA-256 over FineTwo's own modules, which tells a changed checkout from a clean one."""
    root = Path(__file__).resolve().parent.parent
    total = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        total.update(f"{path.relative_to(root).as_posix()}\0".encode())
        total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _finite(value: Any) -> Any:
    """What strict JSON can say: NaN as None."""
    if isinstance(value, Mapping):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
