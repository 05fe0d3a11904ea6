"""Sequences laid out for the network: one row without padding, or padded rows.

It knows no network. Its one invariant: both layouts hold the same tokens, positions and targets, so the loss is
the same whichever is used.
"""

from __future__ import annotations

from collections.abc import Sequence as Sequences
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetwo.data.sequences import IGNORE, Sequence

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """tokens, positions, targets, each (B, T) int64; `packed` when positions restart inside a row."""

    tokens: Int64
    positions: Int64
    targets: Int64
    packed: bool
    real: int
    """Number of tokens of the sequences, padding not counted."""
    shared: int = 0
    """Number of them that stand in the row once for several sequences."""

    @property
    def learned(self) -> int:
        """Number of targets that carry loss."""
        return int((self.targets != IGNORE).sum())

    def weight(self, class_weights: Sequences[float]) -> float:
        """Sum of the weights of the classes that carry loss."""
        return float(np.asarray(class_weights)[self.targets[self.targets != IGNORE]].sum())


def pack(sequences: Sequences[Sequence], *, share: bool = False) -> Batch:
    """One row (1, N) holding every sequence in turn; positions restart at each.

    With `share` what a sequence begins with in common with the one before it is left out, as far as it carries no
    loss, and its positions begin there. In order of their tokens each then stands behind the one it shares most with.
    """
    rows = sorted(sequences, key=lambda s: s.tokens.tolist()) if share else sequences
    skip = [_common(a, b) if share else 0 for a, b in zip([None, *rows], rows, strict=False)]
    tokens = np.concatenate([s.tokens[p:] for s, p in zip(rows, skip, strict=True)]).astype(np.int64)
    targets = np.concatenate([s.targets[p:] for s, p in zip(rows, skip, strict=True)]).astype(np.int64)
    positions = np.concatenate([np.arange(p, len(s), dtype=np.int64) for s, p in zip(rows, skip, strict=True)])
    return Batch(tokens[None], positions[None], targets[None], True, len(tokens) + sum(skip), sum(skip))


def _common(before: Sequence | None, after: Sequence) -> int:
    """How many tokens both begin with, of those at which `after` has nothing to learn."""
    if before is None:
        return 0
    n = min(len(before), len(after))
    other = (before.tokens[:n] != after.tokens[:n]) | (after.targets[:n] != IGNORE)
    return int(other.argmax()) if other.any() else n


def pad(sequences: Sequences[Sequence]) -> Batch:
    """Rows (B, T) padded on the right, where causal attention never looks."""
    longest = max(len(s) for s in sequences)
    tokens = np.zeros((len(sequences), longest), dtype=np.int64)
    targets = np.full((len(sequences), longest), IGNORE, dtype=np.int64)
    for i, s in enumerate(sequences):
        tokens[i, : len(s)] = s.tokens
        targets[i, : len(s)] = s.targets
    positions = np.broadcast_to(np.arange(longest, dtype=np.int64), tokens.shape).copy()
    return Batch(tokens, positions, targets, False, sum(len(s) for s in sequences))


def layout(sequences: Sequences[Sequence], packing: bool | None, *, share: bool = False) -> Batch:
    """Pack or pad as asked; by default pack unless all sequences have one length (then there is no padding to save).

    With `share`, pack in any case where that saves tokens, unless `packing` is False.
    """
    if packing is False:
        return pad(sequences)
    if share and (packed := pack(sequences, share=True)).shared:
        return packed
    same = len({len(s) for s in sequences}) == 1
    return pad(sequences) if packing is None and same else pack(sequences)
