"""Which sequences each step sees: a pure function of the seed and the step, so that resuming needs no replay.

It knows no network. Its one invariant: `batches(step)` depends on nothing but the data, the settings and `step`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

import numpy as np

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
    """The order of training: shuffled anew in each epoch, every record once an epoch, the last step shorter."""

    def __init__(
        self,
        data: Sequences,
        batch_size: int,
        grad_accum: int,
        packing: bool | None,
        seed: int,
        *,
        share: bool = False,
    ) -> None:
        self.data, self.batch_size, self.grad_accum = data, batch_size, grad_accum
        self.packing, self.seed, self.share = packing, seed, share
        self.steps_per_epoch = math.ceil(len(data) / (batch_size * grad_accum))
        self._order: tuple[int, np.ndarray] | None = None

    def _permutation(self, epoch: int) -> np.ndarray:
        cached = self._order
        if cached is None or cached[0] != epoch:
            cached = (epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.data)))
            self._order = cached
        return cached[1]

    def indices(self, step: int) -> list[int]:
        """Return the record numbers that step `step` (from 0) sees."""
        epoch, place = divmod(step, self.steps_per_epoch)
        size = self.batch_size * self.grad_accum
        return [int(i) for i in self._permutation(epoch)[place * size : (place + 1) * size]]

    def batches(self, step: int) -> list[Batch]:
        """Return the micro-batches of step `step` (from 0)."""
        chosen = [self.data.get(i, step // self.steps_per_epoch) for i in self.indices(step)]
        parts = [chosen[i : i + self.batch_size] for i in range(0, len(chosen), self.batch_size)]
        return [layout(part, self.packing, share=self.share) for part in parts]

    def stream(self, first: int, last: int, workers: int) -> Iterator[list[Batch]]:
        """Yield the batches of steps first..last-1, prepared ahead by `workers` threads (0: inline)."""
        yield from ahead(self.batches, range(first, last), workers)


def ahead(prepare: Callable[[int], list[Batch]], steps: range, workers: int) -> Iterator[list[Batch]]:
    """Yield `prepare(step)` for each step in order, up to 2 x workers of them being prepared in threads."""
    if workers == 0:
        for step in steps:
            yield prepare(step)
        return
    waiting: deque[Future[list[Batch]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="finetwo-data") as pool:
        try:
            for step in steps:
                waiting.append(pool.submit(prepare, step))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
