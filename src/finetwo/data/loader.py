"""Which sequences each step sees: a pure function of the seed and the step, so that resuming needs no replay.

It knows no network. Its one invariant: `batches(step)` depends on nothing but the data, the settings and `step`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Protocol

import numpy as np

from finetwo.core.errors import InputError
from finetwo.core.turns import in_turn
from finetwo.data.batch import Batch, layout
from finetwo.data.sequences import Sequence


class Sequences(Protocol):
    """A set of sequences that may look different in each epoch (random offsets)."""

    def __len__(self) -> int: ...

    def get(self, index: int, epoch: int) -> Sequence:
        """Return sequence `index` as it looks in `epoch`."""


class InMemory:
    """A list of sequences, the same in each epoch."""

    def __init__(self, sequences: list[Sequence]) -> None:
        self.sequences = sequences

    def __len__(self) -> int:
        return len(self.sequences)

    def get(self, index: int, epoch: int) -> Sequence:
        """Return sequence `index`."""
        return self.sequences[index]


class Loader:
    """The order of training: shuffled anew in each epoch, every record once an epoch, the last step shorter.

    With `batch_tokens` a micro-batch holds as many records as fit that many tokens (padding counted where there is
    any), records of like length together. How many records each micro-batch holds is told by the lengths alone and is
    the same in each epoch; which of them it holds, and in which order micro-batches come, is drawn.
    """

    def __init__(
        self,
        data: Sequences,
        batch_size: int,
        grad_accum: int,
        packing: bool | None,
        seed: int,
        *,
        share: bool = False,
        batch_tokens: int | None = None,
    ) -> None:
        self.data, self.grad_accum = data, grad_accum
        self.packing, self.seed, self.share = packing, seed, share
        self._lengths = self._cuts = None
        count = math.ceil(len(data) / batch_size)
        self.batch_size = batch_size
        if batch_tokens is not None:
            self._lengths = np.array([len(data.get(i, 0)) for i in range(len(data))])
            self._cuts = _cuts(np.sort(self._lengths)[::-1], batch_tokens, padded=packing is False)
            count = len(self._cuts) + 1
        self.steps_per_epoch = math.ceil(count / grad_accum)
        self._order: tuple[int, np.ndarray, list[np.ndarray] | None] | None = None

    def _drawn(self, epoch: int) -> tuple[np.ndarray, list[np.ndarray] | None]:
        """The record numbers of `epoch` in their order, and those of each micro-batch where they are not even."""
        cached = self._order
        if cached is None or cached[0] != epoch:
            rng = np.random.default_rng([self.seed, epoch])
            order, parts = rng.permutation(len(self.data)), None
            if self._lengths is not None and self._cuts is not None:
                order = order[np.argsort(-self._lengths[order], kind="stable")]
                parts = np.split(order, self._cuts)
                parts = [parts[i] for i in rng.permutation(len(parts))]
            self._order = cached = (epoch, order, parts)
        return cached[1:]

    def _step(self, step: int) -> list[np.ndarray]:
        """The record numbers of each micro-batch of a step; an array for every one of an epoch's would be much."""
        epoch, place = divmod(step, self.steps_per_epoch)
        order, parts = self._drawn(epoch)
        first, last = place * self.grad_accum, (place + 1) * self.grad_accum
        if parts is not None:
            return parts[first:last]
        size = self.batch_size
        return [order[i : i + size] for i in range(first * size, min(last * size, len(order)), size)]

    def indices(self, step: int) -> list[int]:
        """Return the record numbers that step `step` (from 0) sees."""
        return [int(i) for part in self._step(step) for i in part]

    def batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of step `step` (from 0)."""
        epoch = step // self.steps_per_epoch
        parts = [[self.data.get(int(i), epoch) for i in part] for part in self._step(step)]
        return [layout(part, self.packing, share=self.share) for part in parts]

    def stream(self, first: int, last: int, workers: int) -> Iterator[list[Batch]]:
        """Yield the batches of steps first..last-1, prepared ahead by `workers` threads (0: inline)."""
        yield from in_turn(self.batches, range(first, last), workers, "finetwo-data")


def _cuts(lengths: np.ndarray, budget: int, *, padded: bool) -> list[int]:
    """Where to cut `lengths`, which fall, so that each stretch keeps to `budget` tokens; InputError if one cannot."""
    if lengths[0] > budget:
        what = f"the longest sequence has {lengths[0]:,} tokens"
        raise InputError("--batch_tokens", what, budget, f"give {lengths[0]} or more, or a smaller --max_length")
    cuts: list[int] = []
    first = total = 0
    for i, length in enumerate(lengths.tolist()):
        total = (i + 1 - first) * int(lengths[first]) if padded else total + length
        if total > budget:
            cuts.append(i)
            first, total = i, length
    return cuts
