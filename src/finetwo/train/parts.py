"""The parts of a job: its data, what is put on its network, and what the loop calls to evaluate, sample and save.

It knows no loop and no run folder. Its one invariant: a plan and a run that ask with the same settings get the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from finetwo.core.config import SamplingConfig, TrainConfig
from finetwo.core.errors import InputError
from finetwo.data.columns import Columns
from finetwo.generate.pipeline import Model
from finetwo.generate.prompts import read_prompts
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.store.peft import save_adapter
from finetwo.train.evaluate import byte_lengths, class_evaluation, class_logits, evaluate
from finetwo.train.optimizer import freeze
from finetwo.train.prepare import Prepared
from finetwo.train.prepared import Wanted, prepare
from finetwo.train.start import Start, quantise_base
from finetwo.train.templates import make_template

Say = Callable[[str], None]


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


def evaluator(
    config: TrainConfig, model: Model, prepared: Prepared, weights: Sequence[float] | None, say: Say
) -> Callable[[Callable[[], bool]], Any] | None:
    """What evaluates a job's network and stops when it is told to; None without validation data."""
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


def sampler(config: TrainConfig, model: Model) -> Callable[[], list[Mapping[str, Any]]] | None:
    """What answers the job's prompts; None where it has none."""
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


def saver(
    config: TrainConfig, model: Model, start: Start, under: str
) -> Callable[[Path, Mapping[str, Any] | None], None]:
    """What writes the model or its adapter into a folder, `under` being the content hash of the adapter's base."""
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
