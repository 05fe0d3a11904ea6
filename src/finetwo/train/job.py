"""From a configuration to a finished run: the one place where data, model, loop and run folder meet.

It decides what the user left open and says it aloud; the loop decides nothing. Its one invariant: everything that
can be refused is refused before the first step and before anything of the user's is touched.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, cast

import torch

from finetwo.core.config import SamplingConfig, TaskName, TrainConfig, to_dict
from finetwo.core.errors import InputError
from finetwo.core.files import write_json
from finetwo.data.columns import Columns
from finetwo.data.examples import load_rows, load_splits
from finetwo.data.loader import Loader
from finetwo.generate.pipeline import Model
from finetwo.generate.prompts import read_prompts
from finetwo.model.config import SIZES, GPT2Config
from finetwo.model.network import Network
from finetwo.store.checkpoint import Checkpoint, list_checkpoints, newest_valid, open_checkpoint
from finetwo.store.folder import Extras, save_model, state_digest
from finetwo.store.hub import resolve
from finetwo.store.models import Opened, open_model
from finetwo.store.peft import save_adapter
from finetwo.store.run import CACHE, RunFolder
from finetwo.store.yaml import write_yaml
from finetwo.tasks.task import Task
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.evaluate import byte_lengths, evaluate
from finetwo.train.listeners import Listener, Listeners, make_listener
from finetwo.train.loop import Job, Training, progress_of
from finetwo.train.memory import check_memory
from finetwo.train.optimizer import freeze, trainable
from finetwo.train.prepare import Prepared, detect_task, make_template, prepare_records, prepare_stream
from finetwo.train.report import Report
from finetwo.train.rng import seed_all
from finetwo.train.signals import Preparing

Say = Callable[[str], None]
ENVIRONMENT = "environment.json"
_DISK_PER_PARAMETER = 32
"""Bytes that must be free: two checkpoints (weights and two moments each), best/ and final/."""
_PACKAGES = ("finetwo", "torch", "numpy", "tokenizers", "tiktoken")
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
_FIXED = {"data", "tokenizer", "template", "base", "task", "size", "model", "precision", "optimizer"}


@dataclass
class Start:
    """What the job starts from."""

    network: Network
    tokenizer: Tokenizer
    extras: Extras
    base: str
    source: Path


def pick_device(name: str, where: str = "--device") -> torch.device:
    """Return the asked device, or the best there is for auto; InputError lists what is there."""
    there = (
        ["cpu"]
        + [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        + (["mps"] if torch.backends.mps.is_available() else [])
    )
    if name == "auto":
        return torch.device("cuda" if len(there) > 1 and there[1].startswith("cuda") else there[-1])
    if name not in there and not (name == "cuda" and "cuda:0" in there):
        raise InputError(where, "no such device here", name, f"available: {', '.join(there)}")
    return torch.device(name)


def train(
    config: TrainConfig, data: object = None, say: Say = lambda _: None, listeners: Sequence[Listener] = ()
) -> Report:
    """Run one training job and return its report.

    `data` (a path, records in memory or a DataFrame) stands for `config.data`. Raises InputError or EnvironmentFault
    before the first step, NumericError or Stopped (state saved) during the run.
    """
    data = config.data if data is None else data
    if data is None:
        raise InputError("--data", "no data given", None, "finetwo train DATA, or --data DATA")
    config = replace(config, data=str(data) if isinstance(data, str | Path) else None)
    config.check()
    pick_device(config.device)
    if config.deterministic:
        torch.use_deterministic_algorithms(True)
    task = detect_task(config, data)
    config = _decide(replace(config, task=cast(TaskName, task.name)), task, data, say)
    assert config.out is not None
    out = Path(config.out)
    inputs = [Path(config.data)] if config.data else []
    seed_all(config.seed)
    start = _fresh_start(config, say) if task.fresh else _given_start(config)
    config = _settle(config, start.network.config, task)
    size = sum(p.numel() for p in start.network.parameters())
    needed = 64 << 20 if start.network.lora or config.lora.enabled else _DISK_PER_PARAMETER * size
    with Preparing(), RunFolder.open(out, needed, inputs) as folder:
        return _run(config, data, task, start, folder, say, listeners)


def _run(
    config: TrainConfig,
    data: object,
    task: Task,
    start: Start,
    folder: RunFolder,
    say: Say,
    extra: Sequence[Listener],
) -> Report:
    assert config.max_length is not None and config.lr is not None
    device = pick_device(config.device)
    prepared = _prepare(config, data, task, start, folder, say)
    base_digest = state_digest(start.network.state()) if not task.fresh else "fresh"
    model = _model(config, start, prepared)
    _add_adapter(config, model.network, say)
    frozen = freeze(model.network, config.freeze) if config.freeze else 0
    model.network.to(device, torch.bfloat16 if config.precision == "bf16-true" else torch.float32)
    loader = Loader(prepared.train, config.batch_size, config.grad_accum, config.packing, config.seed)
    total = config.max_steps or max(1, round((config.epochs or 0) * loader.steps_per_epoch))
    say(
        f"plan: {total:,} steps of {config.batch_size * config.grad_accum} records ({loader.steps_per_epoch:,} steps "
        f"an epoch), lr {config.lr:g}, {config.precision}, {device}"
    )
    learn = sum(p.numel() for p in trainable(model.network).values())
    if device.type == "cpu":
        check_memory(12 * learn, f"the gradients and moments of {learn:,} parameters")
    held = sum(p.numel() for p in model.network.parameters()) - learn
    say(f"trainable {learn:,}, frozen {held:,}" + (f" ({frozen:,} by --freeze)" if frozen else ""))
    fingerprint = _fingerprint(config, prepared, start, base_digest, total)
    job = Job(
        config=config,
        network=model.network,
        loader=loader,
        lr=config.lr,
        total_steps=total,
        evaluate=_evaluator(config, model, prepared, say),
        sample=_sampler(config, model),
        save=_saver(config, model, start, base_digest),
        fingerprint=fingerprint,
        where_of=prepared.where_of,
    )
    named = [make_listener(name, folder.path) for name in config.track]
    heard = Listeners([*extra, *named], say)
    training = Training(job, folder, heard)
    checkpoint = _find_checkpoint(config, folder, fingerprint, say)
    write_yaml(folder.config, to_dict(config))
    write_json(folder.path / ENVIRONMENT, _environment(fingerprint, prepared))
    heard.tell(event="start", total_steps=total, folder=str(folder.path), resumed=checkpoint.step if checkpoint else 0)
    try:
        if checkpoint is not None and progress_of(checkpoint, config, total).finished and folder.final.is_dir():
            say(f"the run in {folder.path} is finished; nothing to do")
            training.restore(checkpoint)
            outcome = training.outcome()
        else:
            if checkpoint is None:
                folder.trim_metrics(-1)
            outcome = training.run(checkpoint)
        heard.tell(event="end", **{k: v for k, v in vars(outcome).items() if k != "peak"})
    finally:
        heard.close()
    model.network.eval()
    return Report(
        model,
        folder.path,
        outcome.steps,
        outcome.train_loss,
        outcome.first,
        outcome.best,
        outcome.last,
        outcome.tokens,
        outcome.seconds,
        learn,
        held,
        outcome.stopped_early,
    )


# --- deciding what was left open ----------------------------------------------------------------------------------


def _decide(config: TrainConfig, task: Task, data: object, say: Say) -> TrainConfig:
    """Fill in what needs no model: task, epochs, run folder; and refuse what contradicts itself."""
    if task.fresh and config.lora.enabled:
        raise InputError(
            "--lora",
            "an adapter on fresh weights learns nothing useful; --task pretrain trains them all",
            None,
            "leave --lora out, or give --task style",
        )
    if not task.fresh:
        for name in ("size", "tokenizer", "context"):
            if getattr(config, name) is not None:
                raise InputError(
                    f"--{name}", f"only for --task pretrain; this is {task.name}", getattr(config, name), "leave it out"
                )
        if config.post_norm or config.copy_share:
            raise InputError(
                "--post_norm" if config.post_norm else "--copy_share",
                f"only for --task pretrain; this is {task.name}",
                None,
                "leave it out",
            )
    if config.epochs is None and config.max_steps is None:
        config = replace(config, epochs=1.0 if task.fresh else 3.0)
    if config.out is None:
        stem = Path(str(data)).name.split(".")[0] if isinstance(data, str | Path) else "data"
        config = replace(config, out=str(Path("runs") / f"{stem or 'data'}-{task.name}"))
    say(f"task: {task.name} ({task.about})")
    if not task.fresh:
        say(
            f"model: {config.model}"
            + (" (the embedded base; --model gpt2 takes the published 124M)" if config.model == "tiny" else "")
        )
    say(f"run folder: {config.out}")
    return config


def _settle(config: TrainConfig, shape: GPT2Config, task: Task) -> TrainConfig:
    """Fill in what depends on the model: sequence length and learning rate."""
    length = config.max_length or shape.n_positions
    if length > shape.n_positions:
        raise InputError(
            "--max_length",
            f"the context of {config.model} is {shape.n_positions} tokens",
            length,
            f"give at most {shape.n_positions}",
        )
    small = 10.0 if shape.n_embd <= 320 else 1.0
    usual = 1e-3 if task.fresh else (3e-4 if config.lora.enabled else 5e-5) * small
    return replace(config, max_length=length, lr=config.lr if config.lr is not None else usual)


def _given_start(config: TrainConfig) -> Start:
    opened: Opened = open_model(config.model, config.base)
    if opened.is_adapter and config.lora.enabled:
        raise InputError(
            "--lora",
            f"{config.model} is an adapter already",
            None,
            "leave --lora out to go on training it, or merge it first",
        )
    return Start(opened.network, opened.tokenizer, opened.extras, opened.base, opened.folder)


def _fresh_start(config: TrainConfig, say: Say) -> Start:
    """Fresh weights of the asked shape, with the asked tokenizer or the embedded one."""
    folder = Path(config.tokenizer) if config.tokenizer else resolve("tiny")
    if config.tokenizer and not folder.is_dir():
        raise InputError(
            "--tokenizer",
            "no such folder",
            config.tokenizer,
            "make one: finetwo tokenizer train FILES --vocab 8192 --out DIR",
        )
    tokenizer = Tokenizer.load(folder)
    if config.size is not None:
        try:
            layers, width, heads = (int(n) for n in config.size.split(","))
        except ValueError:
            raise InputError("--size", "must be layers,width,heads", config.size, "for example 4,256,4") from None
        shape = GPT2Config(n_layer=layers, n_embd=width, n_head=heads)
    elif config.model in SIZES:
        shape = SIZES[config.model]
    else:
        raise InputError(
            "--model",
            "pretrain needs a size by name or --size layers,width,heads",
            config.model,
            f"use {', '.join(SIZES)}, or --size 4,256,4",
        )
    shape = replace(
        shape,
        vocab_size=tokenizer.vocab_size,
        eos_token_id=tokenizer.eot,
        n_positions=config.context or config.max_length or shape.n_positions,
        post_norm=config.post_norm,
    )
    shape.check("--size")
    check_memory(16 * shape.parameters, f"a network of {shape.parameters:,} parameters")
    network = Network.fresh(shape, config.seed)
    say(
        f"fresh network: {shape.n_layer} layers, width {shape.n_embd}, {shape.n_head} heads, context "
        f"{shape.n_positions}, vocabulary {shape.vocab_size:,}: {shape.parameters:,} parameters"
    )
    return Start(network, tokenizer, Extras(), config.size or config.model, folder)


# --- the parts of the job -----------------------------------------------------------------------------------------


def _prepare(config: TrainConfig, data: object, task: Task, start: Start, folder: RunFolder, say: Say) -> Prepared:
    assert config.max_length is not None
    if task.layout == "stream":
        make_template(task, config.template, None, Columns(), [])
        return prepare_stream(data, task, start.tokenizer, config, config.max_length, folder.path / CACHE, say)
    if isinstance(data, str | Path):
        loaded = load_splits(Path(data), config.rows, config.seed, say)
    else:
        loaded = load_rows(data, config.rows, config.seed, say)
    if loaded.columns.kind != task.kind:
        raise InputError(
            loaded.origin,
            f"the task {task.name} needs a prompt and a completion column",
            ", ".join(loaded.columns.roles.values()),
            "name them: --rows.columns.prompt NAME --rows.columns.completion NAME",
        )
    known = sorted({k for e in loaded.splits["train"][:1] for k in e.fields if k != "completion"})
    template = make_template(task, config.template, start.extras.template, loaded.columns, known)
    assert template is not None
    say(f"template: {template.name}")
    return prepare_records(loaded, task, template, start.tokenizer, config, config.max_length, say)


def _model(config: TrainConfig, start: Start, prepared: Prepared) -> Model:
    return Model(start.network, start.tokenizer, prepared.template, prepared.task.name, config.model)


def _add_adapter(config: TrainConfig, network: Network, say: Say) -> None:
    if config.lora.enabled:
        count = network.add_lora(config.lora, config.seed)
        lora = config.lora.resolved()
        say(f"lora: rank {lora.rank}, alpha {lora.alpha:g} on {count} linears ({lora.targets})")
    if network.lora is not None:
        network.freeze_all_but_lora()


def _evaluator(
    config: TrainConfig, model: Model, prepared: Prepared, say: Say
) -> Callable[[Callable[[], bool]], Any] | None:
    validation = prepared.validation
    if validation is None:
        unset = TrainConfig()
        for name, idle in (("patience", ()), ("eval_every", ("0",)), ("eval_limit", ())):
            value = getattr(config, name)
            if value != getattr(unset, name) and value not in idle:
                fix = f"give a validation file or --rows.split, or leave --{name} out"
                raise InputError(f"--{name}", "there is no validation data", value, fix)
        say("no validation data: the run cannot tell the best step, and keeps the last")
        return None
    lengths = byte_lengths(model.tokenizer)

    def run(stopping: Callable[[], bool]) -> Any:
        return evaluate(
            model.network,
            validation,
            config.batch_size,
            byte_lengths=lengths,
            precision=config.precision,
            packing=config.packing,
            limit=config.eval_limit,
            stopping=stopping,
        )

    return run


def _sampler(config: TrainConfig, model: Model) -> Callable[[], list[Mapping[str, Any]]] | None:
    if config.sample_prompts is None:
        return None
    prompts = read_prompts(Path(config.sample_prompts))
    sampling: SamplingConfig = config.sampling

    def run() -> list[Mapping[str, Any]]:
        was_training = model.network.training
        model.network.eval()
        try:
            answers = model.answers(prompts, sampling)
        finally:
            model.network.train(was_training)
        return [{"prompt": a.prompt, "texts": a.texts, "finish_reasons": a.finish_reasons} for a in answers]

    return run


def _saver(config: TrainConfig, model: Model, start: Start, base_digest: str) -> Callable[[Path], None]:
    extras = Extras(task=model.task, template=model.template)

    def save(folder: Path) -> None:
        if model.network.lora is None:
            save_model(folder, model.network, model.tokenizer, extras)
        else:
            save_adapter(
                folder, model.network, model.tokenizer, replace(extras, base=start.base, base_sha256=base_digest)
            )

    return save


# --- resume ---------------------------------------------------------------------------------------------------------


def _fingerprint(config: TrainConfig, prepared: Prepared, start: Start, base_digest: str, total: int) -> dict[str, Any]:
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


def _find_checkpoint(
    config: TrainConfig, folder: RunFolder, fingerprint: dict[str, Any], say: Say
) -> Checkpoint | None:
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
        path = Path(config.resume)
        if not path.is_dir():
            there = ", ".join(p.name for p in list_checkpoints(folder.path)) or "none"
            raise InputError("--resume", "no such checkpoint", config.resume, f"checkpoints here: {there}")
        found = open_checkpoint(path)
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


# --- what the run folder says of itself ------------------------------------------------------------------------------


def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a result."""
    found = {}
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


def _environment(fingerprint: dict[str, Any], prepared: Prepared) -> dict[str, Any]:
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "packages": package_versions(),
        "commit": code_commit(),
        "fingerprint": fingerprint,
        "counts": prepared.counts,
    }
