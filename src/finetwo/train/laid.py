"""A batch laid out for a GPU: its numbers in two arrays, every length filled up to one of few.

It knows no network. Its one invariant: what is filled up carries no loss and is seen by no real token, so the loss and
its gradients are those of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetwo.data.batch import Batch
from finetwo.data.sequences import IGNORE
from finetwo.model.attend import Int64, Ragged

_FILLER = 64
"""The longest sequence of filling tokens: attention to itself is all that they cost."""
_SHORTEST = 256
"""The most tokens of a sequence is told as this, or twice, four times ... as much; too much costs next to nothing."""
_FINE, _COARSE, _COARSER = 4, 3, 2
"""Sizes come in so many powers of 2 to each doubling: where filling costs time they are near, elsewhere few."""


@dataclass(frozen=True)
class Shape:
    """The sizes of a batch's arrays; batches of one shape run the same kernels."""

    rows: int
    columns: int
    learned: int
    """How many places carry loss, filled up; 0: every place, in order."""
    ends: int
    """Length of a row of `Ragged.ends`, filled up; 0: the rows are not packed."""
    most: tuple[int, int]
    shares: tuple[int, ...]
    """Lengths of `Ragged.shares`, filled up."""

    def sizes(self) -> Iterator[int]:
        """The lengths of tokens, positions, places that learn, targets, ends and shares, in order."""
        every = self.rows * self.columns
        yield from (every, every, self.learned, self.learned or every, 2 * self.ends, *self.shares)


@dataclass(frozen=True)
class Laid:
    """A batch's arrays."""

    shape: Shape
    numbers: Int64
    """All of them behind one another, as `Shape.sizes` says."""
    weights: NDArray[np.float32]
    """What each target's loss counts; 0 where it is filling."""


def lay(batch: Batch, context: int, factor: float, class_weights: Sequence[float] | None = None) -> Laid:
    """Lay out a batch whose losses count `factor`, times the weight of their class if they have one."""
    tokens, positions = batch.tokens, batch.positions
    if batch.packed:
        more = _up(tokens.shape[1], _FINE) - tokens.shape[1]
        fill = np.arange(more, dtype=np.int64) % min(context, _FILLER)
        tokens = np.append(tokens, np.zeros((1, more), dtype=np.int64), axis=1)
        positions = np.append(positions, fill[None], axis=1)
    targets = batch.targets.reshape(-1)
    places = np.flatnonzero(targets != IGNORE)
    every = len(places) == tokens.size
    weights = np.full(len(places), factor, dtype=np.float64)
    if class_weights is not None:
        weights *= np.asarray(class_weights)[targets[places]]
    size = len(places) if every else _up(len(places), _COARSE)
    chosen = _filled(targets[places], size, 0)
    keep = [] if every else [_filled(places, size, 0)]
    ragged = Ragged.of(positions) if batch.packed else None
    laid = _laid(ragged, tokens.size) if ragged else []
    ends, shares = (laid[0].shape[1], tuple(len(a) for a in laid[1:])) if laid else (0, ())
    most = tuple(1 << (max(n, _SHORTEST) - 1).bit_length() for n in ragged.most) if ragged else (0, 0)
    rows, columns = tokens.shape
    shape = Shape(rows, columns, 0 if every else size, ends, (most[0], most[1]), shares)
    numbers = np.concatenate([a.reshape(-1) for a in (tokens, positions, *keep, chosen, *laid)])
    return Laid(shape, numbers, _filled(weights, size, 0).astype(np.float32))


def _laid(ragged: Ragged, tokens: int) -> list[Int64]:
    """The arrays of `Ragged`, filled up: runs without tokens, keys that are nobody's, repeats of no row at all."""
    runs = _up(ragged.ends.shape[1], _COARSER)
    ends = np.concatenate([ragged.ends, np.repeat(ragged.ends[:, -1:], runs - ragged.ends.shape[1], axis=1)], axis=1)
    if not ragged.shares:
        return [ends]
    take, slot, again, group, owners = ragged.shares
    repeats, count = _up(len(again), _COARSER), _up(len(owners) + 1, _COARSER)
    filled = _filled(take, _up(len(take), _COARSE), 0), slot, _filled(again, repeats, 0)
    return [ends, *filled, _filled(group, repeats, count - 1), _filled(owners, count, tokens)]


def _up(count: int, grain: int) -> int:
    """The next of the sizes that are told apart: 2**grain to each doubling, and multiples of 16."""
    step = max(16, 1 << max(0, (count - 1).bit_length() - grain))
    return -(-max(1, count) // step) * step


def _filled(array: NDArray[np.generic], size: int, value: float) -> NDArray[np.generic]:
    return np.concatenate([array, np.full(size - len(array), value, dtype=array.dtype)])
