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


@torch.no_grad()
def passage_losses(
    network: Network, passages: Sequence[NDArray[np.generic]], batch_size: int = 8
) -> tuple[Floats, NDArray[np.int64]]:
    """Return for each passage the summed nats (N,) of its tokens after the first, and how many these are (N,).

    Passages shorter than two tokens count none; each must fit the context.
    """
    nats, counts = np.zeros(len(passages)), np.array([max(0, len(p) - 1) for p in passages], dtype=np.int64)
    order = [int(i) for i in np.argsort([-len(p) for p in passages], kind="stable") if counts[i]]
    was_training = network.training
    network.eval()
    try:
        for i in range(0, len(order), batch_size):
            rows = order[i : i + batch_size]
            nats[rows] = _batch(network, [passages[r] for r in rows])
    finally:
        network.train(was_training)
    return nats, counts


def _batch(network: Network, passages: Sequence[NDArray[np.generic]]) -> Floats:
    device = network.head_weight.device
    length = max(len(p) for p in passages)
    tokens = torch.zeros(len(passages), length, dtype=torch.int64)  # right padding is invisible to real tokens
    real = torch.zeros(len(passages), length, dtype=torch.bool)
    for i, passage in enumerate(passages):
        tokens[i, : len(passage)] = torch.from_numpy(np.asarray(passage, dtype=np.int64))
        real[i, : len(passage)] = True
    tokens, keep = tokens.to(device), real[:, 1:].to(device)
    hidden = network.hidden(tokens[:, :-1], None, Causal())
    losses = token_losses(hidden[keep], tokens[:, 1:][keep], network.head_weight).cpu().double().numpy()
    owner = np.repeat(np.arange(len(passages)), [len(p) - 1 for p in passages])
    return np.bincount(owner, losses, len(passages)).astype(np.float64)
