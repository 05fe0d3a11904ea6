"""Losses of short passages under a network, summed or token by token.

It knows token ids and a network, and neither files nor names. Its one invariant: a passage's figures do not depend on
which others are measured with it, beyond rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from finetwo.model.attend import Causal
from finetwo.model.network import Network

Floats = NDArray[np.float64]
Scored = tuple[NDArray[np.generic], int]
"""A passage's tokens, and the place in it (1 or more) from which on they are scored: behind a prompt, say."""


def passage_losses(
    network: Network, passages: Sequence[Scored], batch_size: int = 8
) -> tuple[Floats, NDArray[np.int64]]:
    """Return for each passage the summed nats (N,) of its scored tokens, and how many these are (N,).

    Passages without a scored token count none; each must fit the context.
    """
    nats, counts = np.zeros(len(passages)), np.array([max(0, len(t) - first) for t, first in passages], dtype=np.int64)
    for number, losses in _losses(network, passages, batch_size):
        nats[number] = losses.sum()
    return nats, counts


def token_nats(network: Network, passages: Sequence[Scored], batch_size: int = 8) -> list[Floats]:
    """Return for each passage the nats of each of its scored tokens, (its length - first,)."""
    found: list[Floats] = [np.zeros(0)] * len(passages)
    for number, losses in _losses(network, passages, batch_size):
        found[number] = losses
    return found


@torch.no_grad()
def _losses(network: Network, passages: Sequence[Scored], batch_size: int) -> Iterator[tuple[int, Floats]]:
    """The losses of each passage that has any, the longest first, beside its number."""
    order = [int(i) for i in np.argsort([-len(t) for t, _ in passages], kind="stable")]
    order = [i for i in order if len(passages[i][0]) > passages[i][1]]
    was_training = network.training
    network.eval()
    try:
        for i in range(0, len(order), batch_size):
            rows = order[i : i + batch_size]
            yield from zip(rows, _batch(network, [passages[r] for r in rows]), strict=True)
    finally:
        network.train(was_training)


def _batch(network: Network, passages: Sequence[Scored]) -> list[Floats]:
    device = next(network.parameters()).device
    length = max(len(t) for t, _ in passages)
    tokens = torch.zeros(len(passages), length, dtype=torch.int64)  # right padding is invisible to real tokens
    scored = torch.zeros(len(passages), length, dtype=torch.bool)
    for i, (passage, first) in enumerate(passages):
        tokens[i, : len(passage)] = torch.from_numpy(np.asarray(passage, dtype=np.int64))
        scored[i, first : len(passage)] = True
    tokens, keep = tokens.to(device), scored[:, 1:].to(device)
    hidden = network.hidden(tokens[:, :-1], None, Causal())
    losses = network.token_losses(hidden[keep], tokens[:, 1:][keep]).cpu().double().numpy()
    return np.split(losses, np.cumsum([len(t) - first for t, first in passages])[:-1])
