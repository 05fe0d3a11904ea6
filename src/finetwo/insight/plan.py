"""What a job would do, before it does it: data looked over, loss certified, sizes and times estimated.

It puts data, model and settings together as training does, and trains nothing. Its one invariant: outside of a
temporary folder nothing is written, and the weights it looks at are those it found.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetwo.core.config import TrainConfig, to_dict
from finetwo.core.errors import EnvironmentFault
from finetwo.data.examples import Loaded, load_splits
from finetwo.data.labels import class_weights
from finetwo.data.sealed import is_prepared
from finetwo.data.sharing import stream_splits
from finetwo.insight.corpus_doctor import examine_texts
from finetwo.insight.coverage import Certificate
from finetwo.insight.doctor import Diagnosis, counts_of, examine, with_left_out
from finetwo.insight.estimate import Estimate, estimate
from finetwo.insight.findings import KINDS, Finding
from finetwo.insight.ours import certify_masks, certify_records, certify_stream, count_padding
from finetwo.insight.proof import prove
from finetwo.insight.samples import Shown, Watch, chunk_samples, proof_sample
from finetwo.tasks.task import Task
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.batching import make_loader
from finetwo.train.parts import complete, prepared_data, refuse_idle
from finetwo.train.prepare import Prepared, detect_task
from finetwo.train.prepared import Wanted
from finetwo.train.rng import seed_all
from finetwo.train.signals import Preparing
from finetwo.train.start import Start, decide, fresh_start, given_start, pick_device, settle, settle_precision

Say = Callable[[str], None]
FORMAT = 1
"""Of a plan's JSON."""


@dataclass
class Plan:
    """What a job would do."""

    data: str
    task: str
    said: list[str]
    """What was detected and decided, as training would say it."""
    counts: dict[str, int]
    lengths: dict[str, int]
    """Records (or documents) by length: the upper bound in words, and how many."""
    findings: list[Finding]
    notes: list[str]
    labels: dict[str, dict[str, int]]
    certificate: Certificate
    samples: list[Shown]
    estimate: Estimate
    asked: dict[str, Any]
    """The options as they were given, by which `train` tells that a plan is of its job."""
    digest: str
    """Of the data as it was read."""

    @property
    def refused(self) -> list[str]:
        """What --strict refuses, each in a few words with its first place."""
        proof = self.certificate.proof
        return [
            *(c.brief() for c in self.certificate.failures()),
            *(["the numeric proof fails"] if proof is not None and not proof["ok"] else []),
            *(f.brief() for f in self.findings if f.strict),
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON content."""
        return {
            "format": FORMAT,
            "data": self.data,
            "task": self.task,
            "said": self.said,
            "counts": self.counts,
            "lengths": self.lengths,
            "findings": [f.to_dict() for f in self.findings],
            "notes": self.notes,
            "labels": self.labels,
            "certificate": self.certificate.to_dict(),
            "samples": [{"where": s.where, "stretches": s.stretches} for s in self.samples],
            "estimate": self.estimate.to_dict(),
            "asked": self.asked,
            "digest": self.digest,
            "strict": {"ok": not self.refused, "refused": self.refused},
        }


def make_plan(config: TrainConfig, data: Path, say: Say, samples: int = 3) -> Plan:
    """Return what training by `config` on `data` would do; errors as `train`, before its first step."""
    said: list[str] = []

    def both(line: str) -> None:
        said.append(line)
        say(line)

    asked = to_dict(config)
    config = replace(config, data=str(data))
    config.check()
    device = pick_device(config.device)
    config = settle_precision(config, device, both)
    task = detect_task(config, data)
    config = decide(replace(config, task=task.name), task, data, both)
    seed_all(config.seed)
    start = fresh_start(config, both) if task.fresh else given_start(config, task)
    config = settle(config, start.network, task)
    with Preparing(), tempfile.TemporaryDirectory(prefix="finetwo-") as folder:  # no signal leaves it behind
        made = prepared_data(_wanted(config, data, task, start), Path(folder, "tokens"), Path(folder, "made"), both)
        if made.validation is None:
            refuse_idle(config)
        complete(config, start.network, made, both)
        class_weights(config.class_weights, made.labels, made.class_counts)
        start.network.to(device, torch.bfloat16 if config.precision == "bf16-true" else torch.float32)
        loader = make_loader(config, made.train, start.network, both)
        expected = estimate(start.network, loader, made.validation, config)  # first, in the memory that training has
        watch = Watch(start.tokenizer, samples)
        loaded = None
        if task.layout == "records" and not is_prepared(data):
            loaded = load_splits(data, config.rows, config.seed, _silent, task.kind)
        certificate = _certify(made, loaded, config, start.tokenizer, watch)
        count_padding(certificate, loader, made.train)
        sample = proof_sample(made, watch.proved, start.network.config.n_positions)
        certificate.proof = prove(start.network.float(), sample)
        diagnosis, lengths = _diagnose(config, data, made, loaded, watch)
        shown_samples = watch.samples or chunk_samples(made, start.tokenizer, samples)
    return Plan(
        data=str(data),
        task=task.name,
        said=said,
        counts=_counts(made, lengths),
        lengths=lengths,
        findings=sorted(diagnosis.findings, key=lambda f: list(KINDS).index(f.kind)),
        notes=diagnosis.notes,
        labels=diagnosis.labels,
        certificate=certificate,
        samples=shown_samples,
        estimate=expected,
        asked=asked,
        digest=made.digest,
    )


def _wanted(config: TrainConfig, data: Path, task: Task, start: Start) -> Wanted:
    return Wanted(config, data, task, start.tokenizer, start.extras.template, start.network.config.labels)


def _counts(made: Prepared, lengths: dict[str, int]) -> dict[str, int]:
    if made.task.layout == "records":
        return counts_of(made.counts)
    texts = {"texts": sum(lengths.values())} if lengths else {}
    return texts | {f"{name}, chunks": count for name, count in made.counts.items()}


def _certify(
    made: Prepared, loaded: Loaded | None, config: TrainConfig, tokenizer: Tokenizer, watch: Watch
) -> Certificate:
    assert config.max_length is not None
    if made.task.layout == "stream":
        return certify_stream(made, tokenizer)
    if loaded is None:
        return certify_masks(made, tokenizer)
    return certify_records(made, loaded, tokenizer, config.max_length, watch.hear)


def _diagnose(
    config: TrainConfig, data: Path, made: Prepared, loaded: Loaded | None, watch: Watch
) -> tuple[Diagnosis, dict[str, int]]:
    """What the doctor says, and how long records or documents are."""
    try:
        return _examined(config, data, made, loaded, watch, near=True)
    except EnvironmentFault as missing:
        if missing.where != "near duplicates":
            raise
        diagnosis, lengths = _examined(config, data, made, loaded, watch, near=False)
        diagnosis.notes.append(f"near duplicates were not looked for: {missing.what}; {missing.fix}")
        return diagnosis, lengths


def _examined(
    config: TrainConfig, data: Path, made: Prepared, loaded: Loaded | None, watch: Watch, *, near: bool
) -> tuple[Diagnosis, dict[str, int]]:
    if loaded is not None:
        diagnosis = examine(loaded, made.template, near=near)
        diagnosis.findings += watch.findings(loaded)
        if loaded.counts.get("empty") or loaded.counts.get("unlabelled"):
            with_left_out(diagnosis, data, config.rows, loaded)
        return diagnosis, {f"<= {1 << n:,} tokens": watch.lengths[n] for n in sorted(watch.lengths)}
    if is_prepared(data):
        return Diagnosis(notes=["prepared data holds no texts: plan the file it was prepared from to look at them"]), {}
    diagnosis, by_split = examine_texts(lambda: stream_splits(data, config.rows, config.seed, _silent), near=near)
    total: Counter[int] = sum(by_split.values(), Counter())
    return diagnosis, {f"< {1 << n:,} characters": total[n] for n in sorted(total)}


def _silent(line: str) -> None:
    return None
