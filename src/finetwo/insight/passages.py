"""Losses of short passages under a network, one sum and count each.

It knows token ids and a network, and neither files nor names. Its one invariant: a passage's figures do not depend on
which others are measured with it, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from finetwo.model.attend import Causal
from finetwo.model.loss import token_losses
from finetwo.model.network import Network

Floats = NDArray[np.float64]
Scored = tuple[NDArray[np.generic], int]
"""A passage's tokens, and the place in it (1 or more) from which on they are scored: behind a prompt, say."""


@torch.no_grad()
def passage_losses(
    network: Network, passages: Sequence[Scored], batch_size: int = 8
) -> tuple[Floats, NDArray[np.int64]]:
    """Return for each passage the summed nats (N,) of its scored tokens, and how many these are (N,).

    Passages without a scored token count none; each must fit the context.
    """
    nats, counts = np.zeros(len(passages)), np.array([max(0, len(t) - first) for t, first in passages], dtype=np.int64)
    order = [int(i) for i in np.argsort([-len(t) for t, _ in passages], kind="stable") if counts[i]]
    was_training = network.training
    network.eval()
    try:
        for i in range(0, len(order), batch_size):
            rows = order[i : i + batch_size]
            nats[rows] = _batch(network, [passages[r] for r in rows])
    finally:
        network.train(was_training)
    return nats, counts


def _batch(network: Network, passages: Sequence[Scored]) -> Floats:
    device = network.head_weight.device
    length = max(len(t) for t, _ in passages)
    tokens = torch.zeros(len(passages), length, dtype=torch.int64)  # right padding is invisible to real tokens
    scored = torch.zeros(len(passages), length, dtype=torch.bool)
    for i, (passage, first) in enumerate(passages):
        tokens[i, : len(passage)] = torch.from_numpy(np.asarray(passage, dtype=np.int64))
        scored[i, first : len(passage)] = True
    tokens, keep = tokens.to(device), scored[:, 1:].to(device)
    hidden = network.hidden(tokens[:, :-1], None, Causal())
    losses = token_losses(hidden[keep], tokens[:, 1:][keep], network.head_weight).cpu().double().numpy()
    owner = np.repeat(np.arange(len(passages)), [len(t) - first for t, first in passages])
    return np.bincount(owner, losses, len(passages)).astype(np.float64)
