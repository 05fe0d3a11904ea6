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
from finetwo.train.adamw import Unseen
from finetwo.train.evaluate import lowered, place


def backward(
    network: Network,
    batches: Sequence[Batch],
    precision: str,
    mass: float,
    class_weights: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Return the mean loss over `batches`, a mean over `mass`, and add `scale` times its gradients to those there.

    A scalar on the network's device, which is not waited for; whether the numbers are finite is for the caller to see.
    """
    total = torch.zeros((), dtype=torch.float32, device=next(network.parameters()).device)
    with lowered(precision, network):
        for batch in batches:
            on = place(batch, network, precision)
            given = (on.tokens, on.positions, on.targets, on.attend)
            loss = network.loss(*given, class_weights, scale / mass, on.keep)
            loss.backward()
            total += loss.detach()
    return total / scale


def gradient_norm(parameters: Iterable[Tensor]) -> Tensor:
    """The length of all gradients together, a float32 scalar on their device, as the fused update wants it."""
    return torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None]).float()


def shrinking(norm: float, limit: float) -> float:
    """What gradients of length `norm` are to be multiplied with, to be no longer than `limit` (0: any length is)."""
    return min(1.0, limit / (norm + 1e-6)) if limit else 1.0


def unseen(loss: Tensor, norm: Tensor, limit: float, bad: Tensor) -> Unseen:
    """The same for numbers that stay on a GPU; `bad`, 0 or 1, becomes and stays 1 when one of them is not finite."""
    bad.copy_(torch.maximum(bad, 1.0 - torch.isfinite(loss + norm).to(bad.dtype)))
    return Unseen(((norm + 1e-6) / limit).clamp(min=1.0) if limit else None, bad)


class Numbers:
    """A few numbers on their way from the device: read at once, or when whatever follows them has been begun."""

    def __init__(self, values: Tensor) -> None:
        """`values` (N,) float32; what is computed after this is not waited for."""
        self._values, self._there = values, None
        if values.device.type == "cuda":
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._there = torch.cuda.Event()
            self._there.record()

    def read(self) -> list[float]:
        """Wait for the numbers alone."""
        if self._there is not None:
            self._there.synchronize()
        found: list[float] = self._values.tolist()
        return found
