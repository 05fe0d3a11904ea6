"""The one training loop: steps, evaluations, samples, checkpoints, and a clean stop.

It knows tensors, batches and the run folder, and neither tasks nor files of data. Invariants: the loss of a step
is one sum over one global count of targets, and a run that was stopped and resumed ends with the same bits.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetwo.core.config import TrainConfig, parse_every
from finetwo.core.errors import InputError, NumericError, Stopped
from finetwo.core.files import fsync_dir
from finetwo.data.batch import Batch
from finetwo.data.loader import Loader
from finetwo.model.network import Network
from finetwo.store.checkpoint import Checkpoint, write_checkpoint
from finetwo.store.run import RunFolder
from finetwo.train import rng
from finetwo.train.evaluate import ClassEvaluation, Evaluation
from finetwo.train.listeners import Listeners
from finetwo.train.optimizer import Optimizer, trainable
from finetwo.train.progress import Outcome, Progress, progress_of, rank
from finetwo.train.replayed import Replayed
from finetwo.train.schedule import factor, warmup_steps
from finetwo.train.signals import Signals
from finetwo.train.step import Numbers, backward, gradient_norm, shrinking, unseen

_SCALE_STEPS, _MOST_SCALE = 2000, 2.0**24
"""Steps without overflow after which fp16 doubles its loss scale, and the largest."""


@dataclass
class Job:
    """Everything one run of the loop needs; `config` is resolved (nothing left to detect)."""

    config: TrainConfig
    network: Network
    loader: Loader
    lr: float
    total_steps: int
    evaluate: Callable[[Callable[[], bool]], Evaluation | ClassEvaluation | None] | None
    sample: Callable[[], list[Mapping[str, Any]]] | None
    save: Callable[[Path, Mapping[str, Any] | None], None]
    """Writes the model folder for `best/` and `final/`, given the evaluation of these weights if there was one."""
    fingerprint: dict[str, Any]
    """Hashes and settings that a resumed run must share."""
    where_of: Callable[[int], str]
    """Names the record behind a sequence's number, for error messages."""
    class_weights: Sequence[float] | None = None
    """What a record of each class counts in the loss; None: all the same."""


@dataclass
class _Taken:
    """A step that was taken, and what is told of it when its numbers are there."""

    step: int
    numbers: Numbers
    """The loss, and the length of the gradients."""
    rate: float
    tokens: int
    learned: int
    real: int
    began: float


def goes_ahead(device: torch.device, config: TrainConfig, optimizer: Optimizer) -> bool:
    """Whether the next step is begun while this one's numbers are on their way: on a GPU, if nothing needs them."""
    return device.type == "cuda" and config.precision != "fp16" and not optimizer.sees


class Training:
    """One run: `run()` goes from the given checkpoint (or the start) to the end."""

    def __init__(self, job: Job, run: RunFolder, listeners: Listeners) -> None:
        self.job, self.folder, self.listeners = job, run, listeners
        self.config = job.config
        self.device = next(job.network.parameters()).device
        self._replayed = self._replays()
        self.optimizer = Optimizer(job.network, job.config, job.lr, keeps=self._replayed is not None)
        self.parameters = list(trainable(job.network).values())
        weights = job.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=self.device)
        self.warm = warmup_steps(job.config.warmup, job.total_steps)
        self.progress = Progress()
        self.last_loss = math.nan
        self._ahead = goes_ahead(self.device, job.config, self.optimizer)
        self._bad = torch.zeros((), device=self.device)
        self._pending: _Taken | None = None
        self._told_at = time.monotonic()

    def _replays(self) -> Replayed | None:
        """Steps that are recorded and played again, where they can be."""
        config, network = self.job.config, self.job.network
        if not Replayed.usable(network, config.precision):
            return None
        return Replayed(network, config.precision, record=not (config.recompute or config.deterministic))

    # --- cadence -------------------------------------------------------------------------------------------------

    def _due(self, name: str, step: int) -> bool:
        value, unit = parse_every(f"--{name}", getattr(self.config, name))
        if value == 0:
            return False
        every = max(1, round(value * self.job.loader.steps_per_epoch)) if unit == "epochs" else int(value)
        return step % every == 0

    # --- the loop ------------------------------------------------------------------------------------------------

    def run(self, checkpoint: Checkpoint | None) -> Outcome:
        """Train to the end; raise Stopped after a signal (state saved), NumericError before bad numbers are applied."""
        network, job = self.job.network, self.job
        network.train()
        network.transformer.dropout, network.head_dropout = self.config.dropout, self.config.head_dropout
        network.transformer.recompute = self.config.recompute
        if checkpoint is not None:
            self.restore(checkpoint)
        p = self.progress
        with Signals() as signals:
            started = time.monotonic() - p.seconds
            if self._between_steps(signals) and checkpoint is not None:
                self.checkpoint()  # with what a signal had cut short
            workers = self.config.workers or int(self.device.type == "cuda")
            stream = job.loader.stream(p.step, job.total_steps, workers)
            for batches in stream if not p.finished else ():
                self._step(batches)
                p.seconds = time.monotonic() - started
                self._between_steps(signals)
                p.seconds = time.monotonic() - started
                if p.finished or self._due("save_every", p.step):
                    self.checkpoint()
                self._leave_if_asked(signals)
                if p.finished:
                    break
        self._tell_step()
        network.raised()
        self._write_folder(self.folder.final)
        return self.outcome()

    def outcome(self) -> Outcome:
        """How the run stands."""
        p = self.progress
        return Outcome(p.step, p.first, p.best, p.last, self.last_loss, p.tokens, p.seconds, p.stopped_early)

    def _between_steps(self, signals: Signals) -> bool:
        """Evaluate and sample where it is due and not yet done, and see whether the run is over.

        Returns whether any of this changed what a checkpoint remembers.
        """
        p = self.progress
        before = (p.evaluated_at, p.sampled_at, p.finished)
        end = p.step == self.job.total_steps
        if p.evaluated_at != p.step and (p.step == 0 or end or self._due("eval_every", p.step)):
            self._evaluate(signals)
        if p.sampled_at != p.step and (p.step == 0 or end or self._due("sample_every", p.step)):
            self._sample(signals)
        self._leave_if_asked(signals)
        p.finished = p.finished or end or p.stopped_early
        return before != (p.evaluated_at, p.sampled_at, p.finished)

    def _step(self, batches: Sequence[Batch]) -> None:
        """One update over all micro-batches, their losses divided by the count of targets in all of them."""
        p, weights = self.progress, self.job.class_weights
        began, count, real = time.monotonic(), sum(b.learned for b in batches), sum(b.real for b in batches)
        mass = count if weights is None else sum(b.weight(weights) for b in batches)
        rate = factor(self.config.schedule, p.step, self.job.total_steps, self.warm)
        loss, norm, scale = self._gradients(batches, mass)
        taken = _Taken(p.step + 1, Numbers(torch.stack([loss, norm])), rate, p.tokens + real, count, real, began)
        if self._ahead:
            self.optimizer.step(rate, unseen(loss, norm, self.config.clip, self._bad))
            self._tell_step()  # of the step before, which has ended by now
            self._pending = taken
        else:
            self.optimizer.step(rate, shrinking(self._checked(taken)[1], self.config.clip) / scale)
        p.step, p.tokens, p.learned = taken.step, taken.tokens, p.learned + count
        if not self._ahead:
            self._record(taken)

    def _tell_step(self) -> None:
        """Wait for the numbers of the step that is under way, if one is; NumericError when they are not finite."""
        taken, self._pending = self._pending, None
        if taken is not None:
            self._checked(taken)
            self._record(taken)

    def _checked(self, taken: _Taken) -> tuple[float, float]:
        """A step's loss and the length of its gradients; NumericError when they are not finite."""
        loss, norm = taken.numbers.read()
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self._refuse_numbers(taken.step - 1, loss, norm, taken.rate)
        return loss, norm

    def _record(self, taken: _Taken) -> None:
        """Write a step down and tell of it."""
        self.last_loss, norm = taken.numbers.read()
        now = time.monotonic()
        speed = taken.real / max(1e-9, now - max(taken.began, self._told_at))
        self._told_at = now
        record = {
            "event": "step",
            "step": taken.step,
            "epoch": round(taken.step / self.job.loader.steps_per_epoch, 4),
            "loss": self.last_loss,
            "lr": self.job.lr * taken.rate,
            "grad_norm": norm,
            "tokens": taken.tokens,
            "learned": taken.learned,
            "tokens_per_second": round(speed, 1),
        }
        self.folder.append_metrics(record)
        self.listeners.tell(**record, total_steps=self.job.total_steps)

    def _gradients(self, batches: Sequence[Batch], mass: float) -> tuple[Tensor, Tensor, float]:
        """The step's loss, the length of its gradients, and by what these are multiplied (not 1 in fp16 alone).

        Where gradients overflow under their scale (Micikevicius et al. 2018, arXiv:1710.03740) that is halved and the
        same batches are computed again, so that no record is passed over; after 2,000 steps without it is doubled.
        """
        p, network, precision = self.progress, self.job.network, self.config.precision
        if precision == "fp16" and p.step - p.scaled_at >= _SCALE_STEPS and p.loss_scale < _MOST_SCALE:
            p.loss_scale, p.scaled_at = 2 * p.loss_scale, p.step
        while True:
            scale = p.loss_scale if precision == "fp16" else 1.0
            if self._replayed is None:
                loss = backward(network, batches, precision, mass, self.class_weights, scale)
            else:
                loss = self._replayed(batches, mass, self.job.class_weights, scale)
            norm = gradient_norm(self.parameters) / scale
            if precision != "fp16" or scale <= 1.0 or math.isfinite(norm) or not math.isfinite(loss):
                return loss, norm, scale
            self.optimizer.zero_grad()
            p.loss_scale, p.scaled_at = scale / 2, p.step

    def _refuse_numbers(self, step: int, loss: float, norm: float, rate: float) -> None:
        self.optimizer.zero_grad()
        records = [self.job.where_of(i) for i in self.job.loader.indices(step)]
        shown = ", ".join(records[:3]) + (f" and {len(records) - 3} more" if len(records) > 3 else "")
        what = (
            f"step {step + 1}: loss {loss:g}, gradient norm {norm:g} at learning rate {self.job.lr * rate:g} "
            f"on {shown}; the weights were not changed"
        )
        raise NumericError(
            "train", what, None, "lower --lr, set --clip 1, or look at these records; the last checkpoint is good"
        )

    # --- evaluation, samples -------------------------------------------------------------------------------------

    def _evaluate(self, signals: Signals) -> None:
        """Evaluate, keep the best and see whether to stop early; a signal cuts it short without a trace."""
        self._tell_step()
        result = self.job.evaluate(lambda: signals.received is not None) if self.job.evaluate else None
        if result is None:
            return
        p = self.progress
        p.evaluated_at = p.step
        record = {"event": "evaluation", "step": p.step, **result.to_dict()}
        if not math.isfinite(result.loss):
            fix = "lower --lr; the last checkpoint is good" if p.step else "take another base, or --precision float32"
            raise NumericError("train", f"step {p.step}: the validation loss is {result.loss:g}", None, fix)
        p.first = p.first or record
        p.last = record
        better = p.best is None or rank(record) < rank(p.best)
        p.waited = 0 if better else p.waited + 1
        if better:
            p.best = record
            if p.step > 0:
                self._write_folder(self.folder.best)
        self.folder.append_metrics(record)
        self.listeners.tell(**record, best=better)
        p.stopped_early = 0 < self.config.patience <= p.waited

    def _sample(self, signals: Signals) -> None:
        if self.job.sample is None or signals.received is not None:
            return
        self._tell_step()
        self.progress.sampled_at = self.progress.step
        for answer in self.job.sample():
            record = {"event": "sample", "step": self.progress.step, **answer}
            self.folder.append_metrics(record)
            self.listeners.tell(**record)

    def _write_folder(self, target: Path) -> None:
        """Write a model folder beside `target`, then swap it in; the old one is kept until the new one is whole."""
        new, old = target.with_name(f".tmp-{target.name}"), target.with_name(f".tmp-old-{target.name}")
        for leftover in (new, old):
            shutil.rmtree(leftover, ignore_errors=True)
        last = self.progress.last if self.progress.evaluated_at == self.progress.step else None
        self.job.save(new, last)
        if target.exists():
            target.rename(old)
        new.rename(target)
        fsync_dir(target.parent)
        shutil.rmtree(old, ignore_errors=True)

    # --- checkpoints ---------------------------------------------------------------------------------------------

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds: the weights that learn, and the optimizer's state."""
        weights = {n: p.detach() for n, p in trainable(self.job.network).items()}
        return {"weights": weights, "optimizer": self.optimizer.tensors()}

    def checkpoint(self) -> Path:
        """Write a checkpoint of this moment."""
        self._tell_step()
        state = {
            "progress": vars(self.progress),
            "rng": rng.capture(),
            "fingerprint": self.job.fingerprint,
            "loss": self.last_loss,
        }
        path = write_checkpoint(self.folder.path, self.progress.step, self.tensors(), _finite(state), self.config.keep)
        self.listeners.tell(event="checkpoint", step=self.progress.step, path=str(path))
        return path

    def restore(self, checkpoint: Checkpoint) -> None:
        """Take back a checkpoint; InputError when its weights are not those that learn here."""
        weights, named = checkpoint.tensors("weights"), trainable(self.job.network)
        if set(weights) != set(named) or any(weights[n].shape != p.shape for n, p in named.items()):
            raise InputError(
                str(checkpoint.path),
                "its weights are not those that are trained here",
                f"{len(weights)} tensors, {len(named)} wanted",
                "resume with the settings of the first start",
            )
        with torch.no_grad():
            for name, p in named.items():
                p.copy_(weights[name])
        self.optimizer.load_tensors(checkpoint.tensors("optimizer"), str(checkpoint.path))
        done = self.progress = progress_of(checkpoint, self.config, self.job.total_steps)
        loss = checkpoint.state.get("loss")
        self.last_loss = math.nan if loss is None else loss
        rng.restore(checkpoint.state["rng"])
        events = (("evaluation", done.evaluated_at), ("sample", done.sampled_at))
        self.folder.trim_metrics(done.step, {name for name, at in events if at != done.step})

    def _leave_if_asked(self, signals: Signals) -> None:
        if signals.received is None:
            return
        if self.progress.step == 0:
            self.folder.trim_metrics(-1)
            raise Stopped(signals.received, "stopped before the first step; nothing to keep")
        self.checkpoint()
        done = f"step {self.progress.step} of {self.job.total_steps}"
        what = f"stopped after {done}; the state is saved in {self.folder.path}"
        raise Stopped(signals.received, what, "run the same command again to go on")


def _finite(value: Any) -> Any:
    """NaN (a loss not yet known) as None, for strict JSON."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
