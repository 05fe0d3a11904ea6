"""How far a run is, and how it ended.

It knows numbers and the form of a checkpoint's state, and no tensors. Its one invariant: `Progress` is plain JSON, so
a checkpoint holds it whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetwo.core.config import TrainConfig
from finetwo.store.checkpoint import Checkpoint


@dataclass
class Progress:
    """What a checkpoint remembers besides tensors."""

    step: int = 0
    tokens: int = 0
    learned: int = 0
    seconds: float = 0.0
    best: dict[str, Any] | None = None
    waited: int = 0
    first: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    evaluated_at: int = -1
    """Step of the last whole evaluation: one that a signal cut short is made up for after resuming."""
    sampled_at: int = -1
    loss_scale: float = 65536.0
    """By what gradients are multiplied on their way, in fp16 alone, whose small numbers would be lost."""
    scaled_at: int = 0
    """The step at which that was set last."""
    finished: bool = False
    stopped_early: bool = False


def progress_of(checkpoint: Checkpoint, config: TrainConfig, total_steps: int) -> Progress:
    """The progress in a checkpoint; `finished` only if the run as it is asked for now ends there."""
    progress = Progress(**checkpoint.state["progress"])
    progress.stopped_early = 0 < config.patience <= progress.waited
    progress.finished = progress.finished and (progress.step >= total_steps or progress.stopped_early)
    return progress


def rank(evaluation: Mapping[str, Any]) -> tuple[float, ...]:
    """What makes one evaluation better than another, the smaller the better: a classifier's errors, then the loss."""
    loss = float(evaluation["loss"])
    return (-float(evaluation["accuracy"]), loss) if "accuracy" in evaluation else (loss,)


@dataclass
class Outcome:
    """How the loop ended."""

    steps: int
    first: dict[str, Any] | None
    best: dict[str, Any] | None
    last: dict[str, Any] | None
    train_loss: float
    tokens: int
    seconds: float
    stopped_early: bool
