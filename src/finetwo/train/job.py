"""From a configuration to a finished run: the one place where data, model, loop and run folder meet.

It decides what the user left open and says it aloud; the loop decides nothing. Its one invariant: everything that
can be refused is refused before the first step and before anything of the user's is touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from finetwo.core.config import TrainConfig, to_dict
from finetwo.core.errors import FineTwoError, InputError
from finetwo.core.files import TEMPORARY, write_json
from finetwo.data.examples import Loaded
from finetwo.data.labels import class_weights
from finetwo.generate.pipeline import Model
from finetwo.model.stored import count_parameters
from finetwo.store.folder import base_digest
from finetwo.store.hub_data import data_path
from finetwo.store.run import CACHE, RunFolder
from finetwo.store.yaml import write_yaml
from finetwo.text.template import Template
from finetwo.train.batching import make_loader
from finetwo.train.listeners import Listener, Listeners, make_listener
from finetwo.train.loop import Training
from finetwo.train.memory import check_memory
from finetwo.train.optimizer import trainable
from finetwo.train.parts import complete, evaluator, prepared_data, sampler, saver
from finetwo.train.prepare import Prepared, detect_task
from finetwo.train.prepared import Wanted, adopt
from finetwo.train.progress import progress_of
from finetwo.train.receipt import Receipt, Subject
from finetwo.train.report import Report
from finetwo.train.resume import ENVIRONMENT, environment, find_checkpoint, fingerprint_of
from finetwo.train.rng import seed_all, strictly
from finetwo.train.signals import Preparing
from finetwo.train.start import (
    Start,
    decide,
    fresh_start,
    given_start,
    pick_device,
    settle,
    settle_precision,
)
from finetwo.train.stepping import Job

Say = Callable[[str], None]
_MADE = f"{TEMPORARY}tokens"
"""Where data is prepared until the run is known to go on with it."""
_DISK_PER_PARAMETER = 32
"""Bytes that must be free: two checkpoints (weights and two moments each), best/ and final/."""


def train(
    config: TrainConfig,
    data: object = None,
    say: Say = lambda _: None,
    listeners: Sequence[Listener] = (),
    model: Model | None = None,
    look: Callable[[Loaded, Template | None], None] = lambda loaded, template: None,
) -> Report:
    """Run one training job and return its report.

    `data` (a path, records in memory or a DataFrame) stands for `config.data`, and a `model` in memory, which is
    trained in place, for `config.model`. `look` is shown the records where they are read from the user's files, and
    not where a cache has them prepared. Raises InputError or EnvironmentFault before the first step, NumericError or
    Stopped (state saved) during the run.
    """
    data = config.data if data is None else data
    if data is None:
        raise InputError("--data", "no data given", None, "finetwo train DATA, or --data DATA")
    config = replace(config, data=str(data) if isinstance(data, str | Path) else None)
    config.check()
    config = settle_precision(config, pick_device(config.device), say)
    if isinstance(data, str | Path):
        data = data_path(data, say)
    task = detect_task(config, data)
    config = decide(replace(config, task=task.name), task, config.data or data, say)
    assert config.out is not None
    out = Path(config.out)
    inputs = [data] if isinstance(data, Path) else []
    seed_all(config.seed)
    start = fresh_start(config, say) if task.fresh else given_start(config, task, model)
    config = settle(config, start.network, task)
    there = start.network.config.labels
    wanted = Wanted(config, data, task, start.tokenizer, start.extras.template, there, look)
    size = sum(p.numel() for p in start.network.parameters())
    needed = 64 << 20 if start.network.lora or config.lora.enabled else _DISK_PER_PARAMETER * size
    with strictly(config.deterministic), Preparing(), RunFolder.open(out, needed, inputs) as folder:
        return _run(wanted, start, folder, say, listeners)


@dataclass
class _Planned:
    """A job that is ready to run, and what the report and the run folder say of it."""

    job: Job
    model: Model
    prepared: Prepared
    learned: int
    frozen: int


def _run(wanted: Wanted, start: Start, folder: RunFolder, say: Say, extra: Sequence[Listener]) -> Report:
    """Plan the job, find where to go on from, and train."""
    try:
        planned = _plan(wanted, start, folder, say)
        receipt = _receipt(planned, wanted.config, wanted.data, start, folder)
        try:
            return _planned_run(planned, wanted.config, folder, say, [*extra, receipt])
        except FineTwoError as error:
            receipt.failed(error)
            raise
    finally:
        shutil.rmtree(folder.path / _MADE, ignore_errors=True)


def _receipt(planned: _Planned, config: TrainConfig, data: object, start: Start, folder: RunFolder) -> Receipt:
    prepared, prints = planned.prepared, planned.job.fingerprint
    device = pick_device(config.device)
    return Receipt(folder, Subject(config, data, prints, prepared.counts, prepared.template, start.source, device))


def _planned_run(
    planned: _Planned, config: TrainConfig, folder: RunFolder, say: Say, extra: Sequence[Listener]
) -> Report:
    job, model = planned.job, planned.model
    heard = Listeners([*extra, *(make_listener(name, folder.path) for name in config.track)], say)
    training = Training(job, folder, heard)
    checkpoint = find_checkpoint(config, folder, job.fingerprint, say)
    adopt(folder.path / _MADE, folder.path / CACHE)
    write_yaml(folder.config, to_dict(config))
    write_json(folder.path / ENVIRONMENT, environment(job.fingerprint, planned.prepared))
    resumed = checkpoint.step if checkpoint else 0
    heard.tell(event="start", total_steps=job.total_steps, folder=str(folder.path), resumed=resumed)
    try:
        if checkpoint and progress_of(checkpoint, config, job.total_steps).finished and folder.final.is_dir():
            say(f"the run in {folder.path} is finished; nothing to do")
            training.restore(checkpoint)
            outcome = training.outcome()
        else:
            if checkpoint is None:
                folder.trim_metrics(-1)
            outcome = training.run(checkpoint)
        heard.tell(event="end", **vars(outcome))
    finally:
        heard.close()
    model.network.eval()
    if model.network.config.labels:
        model.temperature = float((outcome.last or {}).get("temperature", 1.0))
        model.max_length = config.max_length
    return Report(model, folder.path, **vars(outcome), trainable=planned.learned, frozen=planned.frozen)


def _plan(wanted: Wanted, start: Start, folder: RunFolder, say: Say) -> _Planned:
    """Put data, model and settings together, and say what will be done."""
    config = wanted.config
    assert config.lr is not None
    device = pick_device(config.device)
    prepared = prepared_data(wanted, folder.path / CACHE, folder.path / _MADE, say)
    under = base_digest(start.network) if not wanted.task.fresh else "fresh"
    held_back = complete(config, start.network, prepared, say)
    model = Model(start.network, start.tokenizer, prepared.template, wanted.task.name, config.model, start.base)
    weights = class_weights(config.class_weights, prepared.labels, prepared.class_counts)
    model.network.to(device, torch.bfloat16 if config.precision == "bf16-true" else torch.float32)
    loader = make_loader(config, prepared.train, model.network, say)
    total = config.max_steps or max(1, round((config.epochs or 0) * loader.steps_per_epoch))
    say(
        f"plan: {total:,} steps of {_step_size(config)} ({loader.steps_per_epoch:,} steps "
        f"an epoch), lr {config.lr:g}, {config.precision}, {device}"
    )
    learned = sum(p.numel() for p in trainable(model.network).values())
    frozen = count_parameters(model.network) - learned
    if device.type == "cpu":
        check_memory(12 * learned, f"the gradients and moments of {learned:,} parameters")
    say(f"trainable {learned:,}, frozen {frozen:,}" + (f" ({held_back:,} by --freeze)" if held_back else ""))
    job = Job(
        config=config,
        network=model.network,
        loader=loader,
        lr=config.lr,
        total_steps=total,
        evaluate=evaluator(config, model, prepared, weights, say),
        sample=sampler(config, model),
        save=saver(config, model, start, under),
        fingerprint=fingerprint_of(config, prepared, start, under, total),
        where_of=prepared.where_of,
        class_weights=weights,
    )
    return _Planned(job, model, prepared, learned, frozen)


def _step_size(config: TrainConfig) -> str:
    if config.batch_tokens is not None:
        return f"up to {config.batch_tokens * config.grad_accum:,} tokens"
    return f"{config.batch_size * config.grad_accum} records"
