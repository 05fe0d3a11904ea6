"""What a run will take: steps, tokens, disk, time and memory, from formulas and from a few steps that are timed.

It knows networks, loaders and settings, and no run folder. Its one invariant: nothing is written, and no weight
changes: the timed steps are whole ones, with the loader's and the optimizer's work, at a learning rate of zero.
"""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from finetwo.core.config import TrainConfig, parse_every
from finetwo.data.batch import Batch
from finetwo.data.loader import Loader, Sequences
from finetwo.insight.pages import walk
from finetwo.model.network import Network
from finetwo.model.stored import count_parameters, weight_bytes
from finetwo.train.evaluate import class_logits, evaluate
from finetwo.train.machine import peak_bytes
from finetwo.train.optimizer import Optimizer, trainable
from finetwo.train.replayed import Replayed
from finetwo.train.step import backward, gradient_norm, shrinking

_LEAST, _MOST, _ENOUGH = 3, 24, 6.0
"""Steps that are timed: at least 3, and on until 6 seconds or 24 steps are over."""
_LOOKED = 4
"""Batches of the validation data that are timed."""
_OVERHEAD = 330 << 20
"""Bytes of the interpreter, its packages and the tokenizer."""
_STATES = 18
"""Floats of the width that a layer keeps of each token for the way back, the four-fold ones counted four times."""
_CHUNKS = 3 * 32 << 20
_LATER = 24 << 20
"""Bytes by which runs on a CPU were seen to grow after their first steps: checkpoints, listeners, gaps."""
_DISK_SPEED = 250e6
_GOLDEN = 0.618033988749895
"""Its multiples, whole parts left out, lie evenly between 0 and 1 however many there are."""


@dataclass(frozen=True)
class Estimate:
    """What a run will take."""

    parameters: int
    trainable: int
    steps: int
    steps_per_epoch: int
    tokens: int
    """Tokens read in all steps, padding left out."""
    evaluations: int
    checkpoints: int
    disk_bytes: int
    seconds: float
    """Of the run once its data is prepared: steps, evaluations and checkpoints, without sample generations."""
    step_seconds: float
    """Mean over the run's steps."""
    tokens_per_second: float
    timed_steps: int
    memory_bytes: int
    """The most that this process had while it prepared the data and took the timed steps; on a GPU, of the GPU."""
    memory_formula: int
    """The same by a formula: weights, gradients, moments, and what the layers keep of the largest batch."""
    device: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON content."""
        return asdict(self) | {"words": self.lines()}

    def lines(self) -> list[str]:
        """The estimate as lines for a person."""
        each = f"{self.step_seconds:.2f} s a step, {self.tokens_per_second:,.0f} tokens/s"
        return [
            f"parameters: {self.trainable:,} of {self.parameters:,} are trained",
            f"steps: {self.steps:,} ({self.steps_per_epoch:,} an epoch), {self.tokens:,} tokens; "
            f"evaluations: {self.evaluations}, checkpoints: {self.checkpoints}",
            f"time: about {_words(self.seconds)} on {self.device} ({each}, by {self.timed_steps} timed steps)",
            f"memory: about {self.memory_bytes / 2**20:,.0f} MiB at most "
            f"(by formula {self.memory_formula / 2**20:,.0f} MiB)",
            f"disk: about {self.disk_bytes / 2**20:,.0f} MiB in the run folder",
        ]


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(network: Network, loader: Loader, validation: Sequences | None, config: TrainConfig) -> Estimate:
    """Time a few steps of the job that `config` describes, and reckon with them; the weights of `network` stay."""
    device = next(network.parameters()).device
    total = config.max_steps or max(1, round((config.epochs or 0) * loader.steps_per_epoch))
    lengths = np.fromiter((len(s) for s in walk(loader.data)), dtype=np.int64, count=len(loader.data))
    sizes = _sizes(loader, range(loader.steps_per_epoch), lengths)
    whole, rest = divmod(total, loader.steps_per_epoch)
    read = whole * sum(sizes) + sum(_sizes(loader, range(total - rest, total), lengths))
    learned = sum(p.numel() for p in trainable(network).values())
    size = count_parameters(network)
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    formula = _formula(network, learned, size, loader.batches(largest), device)
    evaluations = _times(config.eval_every, total, loader.steps_per_epoch) + 1 if validation is not None else 0
    saves = max(1, _times(config.save_every, total, loader.steps_per_epoch))
    taken = _timed(network, loader, config, largest, sizes, validation)
    fixed, per_token, looked = taken.fixed, taken.per_token, taken.evaluation
    checkpoint = 12 * learned
    folders = (4 * size if network.lora is None else 4 * learned) * (2 if validation is not None else 1)
    seconds = total * fixed + read * per_token + evaluations * looked
    seconds += (saves * checkpoint + evaluations * folders / 2) / _DISK_SPEED
    step = fixed + per_token * read / total
    return Estimate(
        parameters=size,
        trainable=learned,
        steps=total,
        steps_per_epoch=loader.steps_per_epoch,
        tokens=read,
        evaluations=evaluations,
        checkpoints=saves,
        disk_bytes=min(config.keep, saves) * checkpoint + folders + 8 * sum(sizes),
        seconds=seconds,
        step_seconds=step,
        tokens_per_second=read / total / step,
        timed_steps=taken.steps,
        memory_bytes=peak_bytes(device) + (_LATER if device.type == "cpu" else 0),
        memory_formula=formula,
        device=str(device),
    )


def _sizes(loader: Loader, steps: range, lengths: NDArray[np.int64]) -> list[int]:
    """Tokens of each of some steps."""
    return [int(lengths[loader.indices(step)].sum()) for step in steps]


def _times(every: str, total: int, steps_per_epoch: int) -> int:
    """How often something happens that is due every so many steps, the end included."""
    value, unit = parse_every("", every)
    if value == 0:
        return 1
    each = max(1, round(value * steps_per_epoch)) if unit == "epochs" else int(value)
    return math.ceil(total / each)


def _formula(network: Network, learned: int, size: int, batches: list[Batch], device: torch.device) -> int:
    """Weights, gradients, moments, what the layers keep of the largest batch, and the head's chunks."""
    shape = network.config
    tokens = max(b.tokens.size for b in batches)
    floats = weight_bytes(network) + 12 * learned + 4 * tokens * shape.n_layer * shape.n_embd * _STATES + _CHUNKS
    head = 4 * shape.vocab_size * shape.n_embd
    return floats + head + (_OVERHEAD if device.type == "cpu" else 0)


@dataclass(frozen=True)
class _Taken:
    """Seconds a step beside its tokens, a token, and an evaluation; and how many steps that was told from."""

    fixed: float
    per_token: float
    evaluation: float
    steps: int


def _timed(
    network: Network,
    loader: Loader,
    config: TrainConfig,
    largest: int,
    sizes: list[int],
    validation: Sequences | None,
) -> _Taken:
    """Take some steps, and a part of an evaluation.

    The largest step comes first, to make the room that the others need; those that are timed are of all sizes.
    """
    assert config.lr is not None
    recorded = Replayed.of(network, config)
    optimizer = Optimizer(network, config, config.lr, keeps=recorded is not None)
    network.train()
    network.transformer.dropout, network.head_dropout = config.dropout, config.head_dropout
    network.transformer.recompute = config.recompute
    _step(network, optimizer, loader.batches(largest), config, recorded)
    order = np.argsort(sizes, kind="stable")
    taken: list[tuple[int, float]] = []
    started = time.perf_counter()
    for i in range(_MOST):
        if i >= _LEAST and time.perf_counter() - started > _ENOUGH:
            break
        step = int(order[int((i * _GOLDEN + 0.5) % 1 * len(order))])
        if recorded is not None:  # a run records a shape once and plays it many times
            _step(network, optimizer, loader.batches(step), config, recorded)
        begun = time.perf_counter()
        _step(network, optimizer, loader.batches(step), config, recorded)
        taken.append((sizes[step], time.perf_counter() - begun))
    network.eval()
    tokens, seconds = sum(t for t, _ in taken), sum(s for _, s in taken)
    fixed = min(_update_seconds(optimizer, network), seconds / len(taken) / 2)
    optimizer.zero_grad()
    looked = _evaluation_seconds(network, validation, config) if validation is not None else 0.0
    return _Taken(fixed, max(1e-12, (seconds - len(taken) * fixed) / max(1, tokens)), looked, len(taken))


def _evaluation_seconds(network: Network, validation: Sequences, config: TrainConfig) -> float:
    """Seconds of one evaluation, told from its first batches."""
    count = min(len(validation), config.eval_limit or len(validation))
    some = min(count, _LOOKED * config.batch_size)
    settings: dict[str, Any] = {"precision": config.precision, "packing": config.packing, "limit": some}
    started = time.perf_counter()
    if network.config.labels:
        class_logits(network, validation, config.batch_size, **settings)
    else:
        lengths = np.ones(network.config.vocab_size, dtype=np.int64)
        evaluate(network, validation, config.batch_size, byte_lengths=lengths, **settings)
    spent = time.perf_counter() - started
    sizes = [len(validation.get(i, 0)) for i in range(count)]
    return spent * sum(sizes) / sum(sizes[:some])


def _step(
    network: Network, optimizer: Optimizer, batches: list[Batch], config: TrainConfig, recorded: Replayed | None
) -> None:
    """One step as a run does it, at a learning rate of zero."""
    device = next(network.parameters()).device
    count = max(1, sum(b.learned for b in batches))
    if recorded is None:
        backward(network, batches, config.precision, count)
    else:
        recorded(batches, count, None, 1.0)
    optimizer.step(0.0, shrinking(float(gradient_norm(trainable(network).values())), config.clip))
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _update_seconds(optimizer: Optimizer, network: Network) -> float:
    """Seconds of an update alone, which does not depend on the number of tokens."""
    parameters = list(trainable(network).values())
    for p in parameters:
        p.grad = torch.zeros_like(p)
    started = time.perf_counter()
    optimizer.step(0.0, shrinking(float(gradient_norm(parameters)), 1.0))
    return time.perf_counter() - started
