"""What a run will take: steps, tokens, disk, time and memory, from a formula and from a few steps that are timed.

It knows networks, loaders and settings, and no run folder. Its one invariant: nothing is written, and no weight
changes: the timed steps are whole ones, at a learning rate of zero.
"""

from __future__ import annotations

import math
import resource
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from finetwo.core.config import TrainConfig, parse_every
from finetwo.data.batch import Batch
from finetwo.data.loader import Loader, Sequences
from finetwo.model.network import Network
from finetwo.model.stored import count_parameters, weight_bytes
from finetwo.train.evaluate import attend_for, autocast, to_device
from finetwo.train.machine import resident_bytes
from finetwo.train.optimizer import Optimizer, trainable

_STEPS = 3
_OVERHEAD = 330 << 20
"""Bytes of the interpreter, its packages and the tokenizer."""
_STATES = 18
"""Floats of the width that a layer keeps of each token for the way back, the four-fold ones counted four times."""
_CHUNKS = 3 * 32 << 20
_DISK_SPEED = 250e6
_FORWARD = 1 / 3
"""Share of a training step's time that evaluation of as many tokens takes."""


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
    """Of the run from its first step on: steps, evaluations and checkpoints; None measured gives NaN."""
    step_seconds: float
    tokens_per_second: float
    memory_bytes: int
    """Largest memory of the process (on a GPU: of the GPU), measured over the timed steps and the formula's if more."""
    memory_formula: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        """As JSON content."""
        return asdict(self)

    def lines(self) -> list[str]:
        """The estimate as lines for a person."""
        each = f"{self.step_seconds:.2f} s a step, {self.tokens_per_second:,.0f} tokens/s"
        return [
            f"parameters: {self.trainable:,} of {self.parameters:,} are trained",
            f"steps: {self.steps:,} ({self.steps_per_epoch:,} an epoch), {self.tokens:,} tokens; "
            f"{self.evaluations} evaluations, {self.checkpoints} checkpoints",
            f"time: about {_words(self.seconds)} on {self.device} ({each}, of {_STEPS} timed steps)",
            f"memory: about {self.memory_bytes / 2**20:,.0f} MiB at most "
            f"(by formula {self.memory_formula / 2**20:,.0f} MiB)",
            f"disk: about {self.disk_bytes / 2**20:,.0f} MiB in the run folder",
        ]


def grade(estimate: Estimate, seconds: float, peak_bytes: int) -> dict[str, float]:
    """Return how far an estimate lay from what a run took, as shares: 0.1 is ten per cent too much."""
    return {"time": estimate.seconds / seconds - 1, "memory": estimate.memory_bytes / peak_bytes - 1}


def _words(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def estimate(network: Network, loader: Loader, validation: Sequences | None, config: TrainConfig) -> Estimate:
    """Time three steps of the job that `config` describes, and reckon with them; the weights of `network` stay."""
    device = next(network.parameters()).device
    total = config.max_steps or max(1, round((config.epochs or 0) * loader.steps_per_epoch))
    sizes = _step_sizes(loader)
    read = _tokens_of(sizes, total)
    learned = sum(p.numel() for p in trainable(network).values())
    size = count_parameters(network)
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    formula = _formula(network, learned, size, loader.batches(largest), device)
    per_token, fixed, peak = _timed(network, loader, config, largest, sizes)
    evaluations = _times(config.eval_every, total, loader.steps_per_epoch) + 1 if validation is not None else 0
    saves = max(1, _times(config.save_every, total, loader.steps_per_epoch))
    count = 0 if validation is None else min(len(validation), config.eval_limit or len(validation))
    looked = sum(len(validation.get(i, 0)) for i in range(count)) if validation is not None else 0
    checkpoint = 12 * learned
    folders = (4 * size if network.lora is None else 4 * learned) * (2 if validation is not None else 1)
    seconds = total * fixed + read * per_token + evaluations * looked * per_token * _FORWARD
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
        memory_bytes=max(peak, formula) if device.type != "cpu" else peak or formula,
        memory_formula=formula,
        device=str(device),
    )


def _step_sizes(loader: Loader) -> list[int]:
    """Tokens of each step of the first epoch."""
    return [sum(len(loader.data.get(i, 0)) for i in loader.indices(step)) for step in range(loader.steps_per_epoch)]


def _tokens_of(sizes: list[int], total: int) -> int:
    whole, rest = divmod(total, len(sizes))
    return whole * sum(sizes) + sum(sizes[:rest])


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


def _timed(
    network: Network, loader: Loader, config: TrainConfig, largest: int, sizes: list[int]
) -> tuple[float, float, int]:
    """Seconds a token, seconds a step beside them, and the largest memory, of one step to warm up and three more."""
    assert config.lr is not None
    device = next(network.parameters()).device
    optimizer = Optimizer(network, config, config.lr)
    network.train()
    network.transformer.dropout, network.head_dropout = config.dropout, config.head_dropout
    order = sorted(range(len(sizes)), key=sizes.__getitem__)
    middle = order[len(order) // 2]
    _forget_peak(device)
    _step(network, optimizer, loader.batches(largest), config)
    taken = [(sizes[s], _step(network, optimizer, loader.batches(s), config)) for s in (middle, order[0], middle)]
    network.eval()
    fixed = _update_seconds(optimizer, network)
    tokens, seconds = sum(t for t, _ in taken), sum(s for _, s in taken)
    fixed = min(fixed, seconds / len(taken) / 2)
    return max(1e-12, (seconds - len(taken) * fixed) / max(1, tokens)), fixed, _peak(device)


def _step(network: Network, optimizer: Optimizer, batches: list[Batch], config: TrainConfig) -> float:
    """One step as the loop does it, at a learning rate of zero; return its seconds."""
    device, started = next(network.parameters()).device, time.perf_counter()
    count = max(1, sum(b.learned for b in batches))
    for batch in batches:
        tokens, positions, targets = to_device(batch, device)
        with autocast(config.precision, device):
            loss = network.loss(tokens, positions, targets, attend_for(batch, positions))
        (loss / count).backward()
    torch.nn.utils.clip_grad_norm_(list(trainable(network).values()), config.clip or math.inf)
    optimizer.step(0.0)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started


def _update_seconds(optimizer: Optimizer, network: Network) -> float:
    """Seconds of an update alone, which does not depend on the number of tokens."""
    parameters = list(trainable(network).values())
    for p in parameters:
        p.grad = torch.zeros_like(p)
    started = time.perf_counter()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step(0.0)
    return time.perf_counter() - started


def _forget_peak(device: torch.device) -> None:
    """Let the system count the largest memory from now on, where it can."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif sys.platform == "linux":
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _peak(device: torch.device) -> int:
    """The largest memory since `_forget_peak`, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return max(resident_bytes(), peak if sys.platform == "darwin" else peak * 1024)
