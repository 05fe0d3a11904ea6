"""What one step computes: the loss over all micro-batches with its gradients, and the gradients' length.

It knows a network and batches, and no run, no schedule and no optimizer. Its one invariant: the loss is one sum over
one global mass of targets, so k micro-batches of 1 are 1 of k.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from finetwo.data.batch import Batch
from finetwo.model.network import Network
from finetwo.train.evaluate import attend_for, lowered, to_device


def backward(
    network: Network,
    batches: Sequence[Batch],
    precision: str,
    mass: float,
    class_weights: Tensor | None = None,
    scale: float = 1.0,
) -> float:
    """Return the mean loss over `batches`, a mean over `mass`, and add `scale` times its gradients to those there.

    Whether the numbers are finite is for the caller to see.
    """
    device = next(network.parameters()).device
    total = torch.zeros((), dtype=torch.float32, device=device)
    with lowered(precision, network):
        for batch in batches:
            tokens, positions, targets = to_device(batch, device)
            loss = network.loss(tokens, positions, targets, attend_for(batch, positions), class_weights, scale / mass)
            loss.backward()
            total += loss.detach()
    return float(total) / scale


def gradient_norm(parameters: Iterable[Tensor]) -> float:
    """The length of all gradients together."""
    return float(torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]))


def shrinking(norm: float, limit: float) -> float:
    """What gradients of length `norm` are to be multiplied with, to be no longer than `limit` (0: any length is)."""
    return min(1.0, limit / (norm + 1e-6)) if limit else 1.0
