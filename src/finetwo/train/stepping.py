"""One update after the other: gradients, the guard against numbers that are none, the update, and what is told of it.

It knows batches and a network, and no schedule of evaluations and no checkpoints. Invariants: the loss of a step is one
sum over one global count of targets, and no weight changes by numbers that are not finite.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetwo.core.config import TrainConfig
from finetwo.core.errors import NumericError
from finetwo.data.batch import Batch
from finetwo.data.loader import Loader
from finetwo.model.network import Network
from finetwo.store.run import RunFolder
from finetwo.train.evaluate import ClassEvaluation, Evaluation
from finetwo.train.listeners import Listeners
from finetwo.train.optimizer import Optimizer, trainable
from finetwo.train.progress import Progress
from finetwo.train.replayed import Replayed
from finetwo.train.schedule import factor, warmup_steps
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


class Stepper:
    """Takes the steps of a job; how far they are stands in `progress`."""

    def __init__(self, job: Job, run: RunFolder, listeners: Listeners) -> None:
        self.job, self.folder, self.listeners, self.config = job, run, listeners, job.config
        device = job.network.head_weight.device
        self._replayed = Replayed.of(job.network, job.config)
        self.optimizer = Optimizer(job.network, job.config, job.lr, keeps=self._replayed is not None)
        self.parameters = list(trainable(job.network).values())
        weights = job.class_weights
        self.class_weights = None if weights is None else torch.tensor(weights, dtype=torch.float32, device=device)
        self.warm = warmup_steps(job.config.warmup, job.total_steps)
        self.progress = Progress()
        self.last_loss = math.nan
        self._ahead = goes_ahead(device, job.config, self.optimizer)
        self._bad = torch.zeros((), device=device)
        self._pending: _Taken | None = None
        self._told_at = time.monotonic()

    def take(self, batches: Sequence[Batch]) -> None:
        """Make one update over all micro-batches, their losses divided by the count of targets in all of them."""
        p, weights = self.progress, self.job.class_weights
        began, count, real = time.monotonic(), sum(b.learned for b in batches), sum(b.real for b in batches)
        mass = count if weights is None else sum(b.weight(weights) for b in batches)
        rate = factor(self.config.schedule, p.step, self.job.total_steps, self.warm)
        loss, norm, scale = self._gradients(batches, mass)
        taken = _Taken(p.step + 1, Numbers(torch.stack([loss, norm])), rate, p.tokens + real, count, real, began)
        if self._ahead:
            self.optimizer.step(rate, unseen(loss, norm, self.config.clip, self._bad))
            self.settle()  # of the step before, which has ended by now
            self._pending = taken
        else:
            self.optimizer.step(rate, shrinking(self._checked(taken)[1], self.config.clip) / scale)
        p.step, p.tokens, p.learned = taken.step, taken.tokens, p.learned + count
        if not self._ahead:
            self._record(taken)

    def settle(self) -> None:
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
