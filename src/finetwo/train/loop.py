"""The one training loop: steps, evaluations, samples, checkpoints, and a clean stop.

It knows tensors, batches and the run folder, and neither tasks nor files of data. Invariants: the loss of a step
is one sum over one global count of targets, and a run that was stopped and resumed ends with the same bits.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetwo.core.config import parse_every
from finetwo.core.errors import InputError, NumericError, Stopped
from finetwo.core.files import fsync_dir
from finetwo.store.checkpoint import Checkpoint, write_checkpoint
from finetwo.store.run import RunFolder
from finetwo.train import rng
from finetwo.train.listeners import Listeners
from finetwo.train.optimizer import trainable
from finetwo.train.progress import Outcome, Progress, progress_of, rank
from finetwo.train.signals import Signals
from finetwo.train.stepping import Job, Stepper


class Training:
    """One run: `run()` goes from the given checkpoint (or the start) to the end."""

    def __init__(self, job: Job, run: RunFolder, listeners: Listeners) -> None:
        self.job, self.folder, self.listeners = job, run, listeners
        self.config = job.config
        self.device = next(job.network.parameters()).device
        self.steps = Stepper(job, run, listeners)
        self.optimizer = self.steps.optimizer

    @property
    def progress(self) -> Progress:
        """How far the run is."""
        return self.steps.progress

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
                self.steps.take(batches)
                p.seconds = time.monotonic() - started
                self._between_steps(signals)
                p.seconds = time.monotonic() - started
                if p.finished or self._due("save_every", p.step):
                    self.checkpoint()
                self._leave_if_asked(signals)
                if p.finished:
                    break
        self.steps.settle()
        network.raised()
        self._write_folder(self.folder.final)
        return self.outcome()

    def outcome(self) -> Outcome:
        """How the run stands."""
        p = self.progress
        return Outcome(p.step, p.first, p.best, p.last, self.steps.last_loss, p.tokens, p.seconds, p.stopped_early)

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

    # --- evaluation, samples -------------------------------------------------------------------------------------

    def _evaluate(self, signals: Signals) -> None:
        """Evaluate, keep the best and see whether to stop early; a signal cuts it short without a trace."""
        self.steps.settle()
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
        self.steps.settle()
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
        self.steps.settle()
        state = {
            "progress": vars(self.progress),
            "rng": rng.capture(),
            "fingerprint": self.job.fingerprint,
            "loss": self.steps.last_loss,
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
        done = self.steps.progress = progress_of(checkpoint, self.config, self.job.total_steps)
        loss = checkpoint.state.get("loss")
        self.steps.last_loss = math.nan if loss is None else loss
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
