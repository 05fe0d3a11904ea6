"""From a configuration to a finished run: the one place where data, model, loop and run folder meet.

It decides what the user left open and says it aloud; the loop decides nothing. Its one invariant: everything that
can be refused is refused before the first step and before anything of the user's is touched.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from finetwo.core.config import SamplingConfig, TrainConfig, to_dict
from finetwo.core.errors import FineTwoError, InputError
from finetwo.core.files import TEMPORARY, write_json
from finetwo.data.columns import Columns
from finetwo.data.examples import Loaded
from finetwo.data.labels import class_weights
from finetwo.generate.pipeline import Model
from finetwo.generate.prompts import read_prompts
from finetwo.model.network import Network
from finetwo.model.stored import count_parameters
from finetwo.store.folder import Extras, base_digest, save_model
from finetwo.store.hub_data import data_path
from finetwo.store.peft import save_adapter
from finetwo.store.run import CACHE, RunFolder
from finetwo.store.yaml import write_yaml
from finetwo.text.template import Template
from finetwo.train.batching import make_loader
from finetwo.train.evaluate import byte_lengths, class_evaluation, class_logits, evaluate
from finetwo.train.listeners import Listener, Listeners, make_listener
from finetwo.train.loop import Training
from finetwo.train.memory import check_memory
from finetwo.train.optimizer import freeze, trainable
from finetwo.train.prepare import Prepared, detect_task
from finetwo.train.prepared import Wanted, adopt, prepare
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
    quantise_base,
    settle,
    settle_precision,
)
from finetwo.train.stepping import Job
from finetwo.train.templates import make_template

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
        evaluate=_evaluator(config, model, prepared, weights, say),
        sample=_sampler(config, model),
        save=_saver(config, model, start, under),
        fingerprint=fingerprint_of(config, prepared, start, under, total),
        where_of=prepared.where_of,
        class_weights=weights,
    )
    return _Planned(job, model, prepared, learned, frozen)


def _step_size(config: TrainConfig) -> str:
    if config.batch_tokens is not None:
        return f"up to {config.batch_tokens * config.grad_accum:,} tokens"
    return f"{config.batch_size * config.grad_accum} records"


# --- the parts of the job -----------------------------------------------------------------------------------------


def prepared_data(wanted: Wanted, cache: Path, made: Path, say: Say) -> Prepared:
    """The data of a job, from the folder `cache` or made in `made`; InputError as `prepare` and for idle options."""
    if wanted.task.layout == "stream":
        make_template(wanted.task, wanted.config.template, None, Columns(), [])
    return prepare(wanted, cache, made, say)


def complete(config: TrainConfig, network: Network, prepared: Prepared, say: Say) -> int:
    """Give the network its classes, its adapter and its frozen parts, and store its base as --quantize asks.

    Returns how many weights --freeze holds back.
    """
    _add_classes(config, network, prepared, say)
    _add_adapter(config, network, say)
    held_back = freeze(network, config.freeze) if config.freeze else 0
    quantise_base(config, network, say)
    return held_back


def _add_classes(config: TrainConfig, network: Network, prepared: Prepared, say: Say) -> None:
    """Give the network a head over the data's classes, unless it is a classifier of these very classes already."""
    there = network.config.labels
    if not prepared.labels:
        return
    if there == prepared.labels and network.config.pooling == config.pooling:
        say(f"head: going on with the model's own over {len(there)} classes")
        return
    if there == prepared.labels:
        asked = f"--pooling {config.pooling} asks for another"
        say(f"head: the model's reads {network.config.pooling}, {asked}; a fresh head is put on")
    elif there:
        say(f"head: the model's classes ({', '.join(there[:6])}) are not those of the data; a fresh head is put on")
    network.add_classes(prepared.labels, config.pooling, config.seed)


def _add_adapter(config: TrainConfig, network: Network, say: Say) -> None:
    if config.lora.enabled:
        count = network.add_lora(config.lora, config.seed)
        lora = config.lora.resolved()
        say(f"lora: rank {lora.rank}, alpha {lora.alpha:g} on {count} linears ({lora.targets})")
    if network.lora is not None:
        network.freeze_all_but_lora()


def refuse_idle(config: TrainConfig) -> None:
    """Raise InputError for options of evaluation, where there is no validation data."""
    unset = TrainConfig()
    for name, idle in (("patience", ()), ("eval_every", ("0",)), ("eval_limit", ())):
        value = getattr(config, name)
        if value != getattr(unset, name) and value not in idle:
            fix = f"give a validation file or --rows.split, or leave --{name} out"
            raise InputError(f"--{name}", "there is no validation data", value, fix)


def _evaluator(
    config: TrainConfig, model: Model, prepared: Prepared, weights: Sequence[float] | None, say: Say
) -> Callable[[Callable[[], bool]], Any] | None:
    validation = prepared.validation
    if validation is None:
        refuse_idle(config)
        say("no validation data: the run cannot tell the best step, and keeps the last")
        return None
    settings: dict[str, Any] = {
        "precision": config.precision,
        "packing": config.packing,
        "limit": config.eval_limit,
    }
    if prepared.labels:

        def tell(stopping: Callable[[], bool]) -> Any:
            found = class_logits(model.network, validation, config.batch_size, stopping=stopping, **settings)
            return None if found is None else class_evaluation(*found, weights)

        return tell
    lengths = byte_lengths(model.tokenizer)

    def run(stopping: Callable[[], bool]) -> Any:
        return evaluate(
            model.network, validation, config.batch_size, byte_lengths=lengths, stopping=stopping, **settings
        )

    return run


def _sampler(config: TrainConfig, model: Model) -> Callable[[], list[Mapping[str, Any]]] | None:
    if config.sample_prompts is None:
        return None
    prompts = read_prompts(Path(config.sample_prompts))
    sampling: SamplingConfig = config.sampling
    for prompt in prompts:  # what cannot be asked is refused before anything is written
        model.prompt_ids(prompt)

    def run() -> list[Mapping[str, Any]]:
        was_training = model.network.training
        model.network.eval()
        try:
            answers = model.answers(prompts, sampling)
        finally:
            model.network.train(was_training)
        return [{"prompt": a.prompt, "texts": a.texts, "finish_reasons": a.finish_reasons} for a in answers]

    return run


def _saver(
    config: TrainConfig, model: Model, start: Start, under: str
) -> Callable[[Path, Mapping[str, Any] | None], None]:
    extras = Extras(task=model.task, template=model.template)

    def save(folder: Path, evaluation: Mapping[str, Any] | None) -> None:
        found = extras
        if model.network.config.labels:
            temperature = float((evaluation or {}).get("temperature", 1.0))
            found = replace(extras, temperature=temperature, max_length=config.max_length)
        if model.network.lora is None:
            save_model(folder, model.network, model.tokenizer, found)
        else:
            save_adapter(folder, model.network, model.tokenizer, replace(found, base=start.base, base_sha256=under))

    return save
