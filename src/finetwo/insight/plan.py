"""What a job would do, before it does it: data looked over, loss certified, sizes and times estimated.

It puts data, model and settings together as training does, and trains nothing. Its one invariant: outside of a
temporary folder nothing is written, and the weights it looks at are those it found.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from finetwo.core.config import TrainConfig
from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.data.examples import Loaded, load_splits
from finetwo.data.loader import Loader
from finetwo.data.sequences import IGNORE
from finetwo.data.sharing import stream_splits
from finetwo.insight.corpus_doctor import examine_texts
from finetwo.insight.coverage import Certificate
from finetwo.insight.doctor import Diagnosis, counts_of, examine, with_left_out
from finetwo.insight.estimate import Estimate, estimate
from finetwo.insight.findings import Finding
from finetwo.insight.laid import ANSWER, END, ROLES, Laid, Told
from finetwo.insight.ours import certify_masks, certify_records, certify_stream, count_padding
from finetwo.insight.proof import Sample, prove, sample_of
from finetwo.tasks.task import Task
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.corpora import prepare_stream
from finetwo.train.optimizer import freeze
from finetwo.train.prepare import Prepared, detect_task, prepare_records
from finetwo.train.prepared import Wanted, is_prepared, prepare
from finetwo.train.start import Start, decide, fresh_start, given_start, pick_device, quantise_base, settle
from finetwo.train.templates import make_template

Say = Callable[[str], None]
_PROVED, _SHORT = 3, 256
_CHEAP_BYTES = 64 << 20
"""Data up to this size is looked over by `train` of itself."""


@dataclass(frozen=True)
class Shown:
    """A record for the eye: where it stands, and its text in stretches of one role."""

    where: str
    stretches: list[tuple[str, str]]


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

    @property
    def refused(self) -> list[str]:
        """What --strict refuses, each as one line with its first places."""
        return [f.line() for f in self.findings if f.strict] + [
            *(c.line() for c in self.certificate.failures()),
            *(["the numeric proof fails"] if self.certificate.proof and not self.certificate.proof["ok"] else []),
        ]

    def to_dict(self) -> dict[str, Any]:
        """As JSON content."""
        return {
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
            "strict": {"ok": not self.refused, "refused": self.refused},
        }


@dataclass
class _Watch:
    """Keeps what is needed of the records that go by: lengths, some for the eye, and some for the proof."""

    tokenizer: Tokenizer
    wanted: int
    lengths: Counter[int] = field(default_factory=Counter)
    samples: list[Shown] = field(default_factory=list)
    proved: list[tuple[int, Told]] = field(default_factory=list)
    number: int = 0

    def hear(self, record: Laid, told: Told) -> None:
        """Take one record."""
        self.lengths[max(0, len(record.tokens) - 1).bit_length()] += 1
        if len(self.samples) < self.wanted:
            self.samples.append(Shown(record.where, self._stretches(record, told)))
        if self.number < 64:
            self.proved.append((self.number, told))
        self.number += 1

    def _stretches(self, record: Laid, told: Told) -> list[tuple[str, str]]:
        found: list[tuple[str, list[int]]] = []
        for token, role in zip(record.tokens.tolist(), told.roles.tolist(), strict=True):
            if not found or found[-1][0] != ROLES[role]:
                found.append((ROLES[role], []))
            found[-1][1].append(token)
        return [(role, self.tokenizer.decode(ids)) for role, ids in found]


def make_plan(config: TrainConfig, data: Path, say: Say, samples: int = 3) -> Plan:
    """Return what training by `config` on `data` would do; errors as `train`, before its first step."""
    said: list[str] = []

    def both(line: str) -> None:
        said.append(line)
        say(line)

    config = replace(config, data=str(data))
    config.check()
    device = pick_device(config.device)
    task = detect_task(config, data)
    config = decide(replace(config, task=task.name), task, data, both)
    start = fresh_start(config, both) if task.fresh else given_start(config, task)
    config = settle(config, start.network, task)
    with tempfile.TemporaryDirectory(prefix="finetwo-") as folder:
        made, loaded = _prepare(config, data, task, start, Path(folder), both)
        watch = _Watch(start.tokenizer, samples)
        loader = Loader(made.train, config.batch_size, config.grad_accum, config.packing, config.seed)
        certificate = _certify(made, loaded, config, start.tokenizer, watch)
        count_padding(certificate, loader, made.train)
        _complete(config, start, made, both)
        start.network.to(device)
        certificate.proof = prove(start.network, _proof_sample(made, watch))
        start.network.to(device, torch.bfloat16 if config.precision == "bf16-true" else torch.float32)
        expected = estimate(start.network, loader, made.validation, config)
        diagnosis, lengths = _diagnose(config, data, made, loaded, watch)
    return Plan(
        data=str(data),
        task=task.name,
        said=said,
        counts=counts_of(made.counts),
        lengths=lengths,
        findings=diagnosis.findings,
        notes=diagnosis.notes,
        labels=diagnosis.labels,
        certificate=certificate,
        samples=watch.samples or _chunk_samples(made, start.tokenizer, samples),
        estimate=expected,
    )


def _prepare(
    config: TrainConfig, data: Path, task: Task, start: Start, folder: Path, say: Say
) -> tuple[Prepared, Loaded | None]:
    """The data as training prepares it, and its records where their texts are at hand."""
    assert config.max_length is not None
    if is_prepared(data):
        wanted = Wanted(config, data, task, start.tokenizer, start.extras.template, start.network.config.labels)
        return prepare(wanted, folder / "tokens", folder / "made", say), None
    if task.layout == "stream":
        return prepare_stream(data, task, start.tokenizer, config, config.max_length, folder, say), None
    loaded = load_splits(data, config.rows, config.seed, say, task.kind)
    there = start.network.config.labels
    if set(loaded.labels) == set(there):  # a classifier that goes on keeps the order of its head
        loaded = replace(loaded, labels=there)
    known = sorted({k for e in loaded.splits["train"][:1] for k in e.fields if k != "completion"})
    template = make_template(task, config.template, start.extras.template, loaded.columns, known)
    if template is not None:
        say(f"template: {template.name}")
    made = prepare_records(loaded, task, template, start.tokenizer, config, config.max_length, say)
    if made.labels and len(made.class_counts) < 2:
        fix = "give records of another class, or another --rows.split"
        raise InputError(loaded.origin, "train holds records of one class only", ", ".join(made.class_counts), fix)
    return made, loaded


def _certify(
    made: Prepared, loaded: Loaded | None, config: TrainConfig, tokenizer: Tokenizer, watch: _Watch
) -> Certificate:
    assert config.max_length is not None
    if made.task.layout == "stream":
        return certify_stream(made, tokenizer)
    if loaded is None:
        return certify_masks(made, tokenizer)
    return certify_records(made, loaded, tokenizer, config.max_length, watch.hear)


def _complete(config: TrainConfig, start: Start, made: Prepared, say: Say) -> None:
    """Give the network what training would give it: classes, an adapter, frozen parts."""
    network = start.network
    there = network.config
    if made.labels and (there.labels != made.labels or there.pooling != config.pooling):
        network.add_classes(made.labels, config.pooling, config.seed)
    if config.lora.enabled:
        network.add_lora(config.lora, config.seed)
    if network.lora is not None:
        network.freeze_all_but_lora()
    if config.freeze:
        freeze(network, config.freeze)
    quantise_base(config, network, say)


def _proof_sample(made: Prepared, watch: _Watch) -> Sample:
    """A few short records: where something may be learned is told by their texts where these are at hand."""
    data = made.splits()["train"]
    rows = []
    known = {number: told for number, told in watch.proved if number < len(data)}
    numbers = sorted(known or range(min(64, len(data))), key=lambda n: len(data.get(n, 0)))
    for number in numbers[:_PROVED]:
        s = data.get(number, 0)
        may = s.targets != IGNORE
        if number in known and not made.labels:
            told = known[number]
            allowed = ((told.roles == ANSWER) | ((told.roles == END) & (told.answer_of >= 0)))[1:].tolist()
            may[:] = [*allowed, *[False] * (len(s) - len(allowed))][: len(s)]
        elif made.labels:
            may[:] = [False] * (len(s) - 1) + [True]
        low = max(0, len(s) - _SHORT) if made.labels else max(0, min(int(may.argmax()) - _SHORT // 2, len(s) - _SHORT))
        part = slice(low, low + _SHORT)
        rows.append((s.tokens[part].tolist(), s.targets[part].tolist(), may[part].tolist(), [True] * len(may[part])))
    return sample_of(rows, _SHORT)


def _diagnose(
    config: TrainConfig, data: Path, made: Prepared, loaded: Loaded | None, watch: _Watch
) -> tuple[Diagnosis, dict[str, int]]:
    """What the doctor says, and how long records or documents are."""
    in_tokens = {f"<= {1 << n:,} tokens": watch.lengths[n] for n in sorted(watch.lengths)}
    try:
        return _examined(config, data, made, loaded, in_tokens, near=True)
    except EnvironmentFault as missing:
        if missing.where != "near duplicates":
            raise
        diagnosis, lengths = _examined(config, data, made, loaded, in_tokens, near=False)
        diagnosis.notes.append(f"near duplicates were not looked for: {missing.what}; {missing.fix}")
        return diagnosis, lengths


def _examined(
    config: TrainConfig, data: Path, made: Prepared, loaded: Loaded | None, in_tokens: dict[str, int], *, near: bool
) -> tuple[Diagnosis, dict[str, int]]:
    if loaded is not None:
        diagnosis = examine(loaded, made.template, near=near)
        if loaded.counts.get("empty") or loaded.counts.get("unlabelled"):
            with_left_out(diagnosis, data, config.rows, loaded.columns)
        return diagnosis, in_tokens
    if is_prepared(data):
        return Diagnosis(notes=["prepared data holds no texts: plan the file it was prepared from to look at them"]), {}
    diagnosis, by_split = examine_texts(lambda: stream_splits(data, config.rows, config.seed, _silent), near=near)
    total: Counter[int] = sum(by_split.values(), Counter())
    return diagnosis, {f"< {1 << n:,} characters": total[n] for n in sorted(total)}


def _silent(line: str) -> None:
    return None


def _chunk_samples(made: Prepared, tokenizer: Tokenizer, samples: int) -> list[Shown]:
    """Sequences whose texts are not at hand: what is learned of them, and what is not."""
    found = []
    data = made.splits()["train"]
    for i in range(min(samples, len(data))):
        s = data.get(i, 0)
        parts: list[tuple[str, list[int]]] = []
        for position, token in enumerate(s.tokens.tolist()):
            learned = position > 0 and s.targets[position - 1] != IGNORE
            role = (
                "end" if token == tokenizer.eot else "answer" if learned or made.task.layout == "stream" else "prompt"
            )
            if not parts or parts[-1][0] != role:
                parts.append((role, []))
            parts[-1][1].append(token)
        found.append(Shown(f"train: {made.task.layout} {i + 1}", [(r, tokenizer.decode(ids)) for r, ids in parts]))
    return found


def cheap_findings(config: TrainConfig, data: Path, lines: int = 5) -> list[str]:
    """Return a few lines about faults in the data, or none; for `train`, which goes on whatever they say.

    Records up to 64 MiB are looked over: everything but near duplicates. What cannot be read gives no line: training
    itself will say why.
    """
    try:
        task = detect_task(config, data)
        if is_prepared(data) or task.layout != "records" or _size(data) > _CHEAP_BYTES:
            return []
        loaded = load_splits(data, config.rows, config.seed, _silent, task.kind)
        found = examine(loaded, near=False).findings
    except (InputError, EnvironmentFault):
        return []
    found.sort(key=lambda f: not f.strict)
    told = [f"data: {f.line(1)}" for f in found[:lines]]
    return [*told, "data: finetwo plan says more, with the same words as train"] if told else []


def _size(data: Path) -> int:
    files = data.rglob("*") if data.is_dir() else [data]
    return sum(f.stat().st_size for f in files if f.is_file())
