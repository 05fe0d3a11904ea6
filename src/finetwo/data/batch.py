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
    """tokens, positions, targets, each (B, T) int64; `packed` when runs restart inside a row."""

    tokens: Int64
    positions: Int64
    targets: Int64
    packed: bool
    real: int
    """Number of tokens that are no padding."""

    @property
    def learned(self) -> int:
        """Number of targets that carry loss."""
        return int((self.targets != IGNORE).sum())

    def weight(self, class_weights: Sequences[float]) -> float:
        """Sum of the weights of the classes that carry loss."""
        return float(np.asarray(class_weights)[self.targets[self.targets != IGNORE]].sum())


def pack(sequences: Sequences[Sequence]) -> Batch:
    """One row (1, N) holding every sequence in turn; positions restart at each."""
    tokens = np.concatenate([s.tokens for s in sequences]).astype(np.int64)
    targets = np.concatenate([s.targets for s in sequences]).astype(np.int64)
    positions = np.concatenate([np.arange(len(s), dtype=np.int64) for s in sequences])
    return Batch(tokens[None], positions[None], targets[None], True, len(tokens))


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


def layout(sequences: Sequences[Sequence], packing: bool | None) -> Batch:
    """Pack or pad as asked; by default pack unless all sequences have one length (then there is no padding to save)."""
    same = len({len(s) for s in sequences}) == 1
    return pad(sequences) if packing is False or (packing is None and same) else pack(sequences)
