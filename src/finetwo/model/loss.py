"""The one loss: summed cross-entropy of the head at the positions where a target stands.

`sum of w * CE(head(features), targets)`, with w = 1 unless classes are weighted, to be divided by the global sum of w
over kept targets by whoever knows it. The head runs on kept positions only, in chunks, so that logits of a whole batch
never exist at once.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

IGNORE = -100
"""A target that means: nothing to learn here."""
_CHUNK_BYTES = 32 * 1024 * 1024


def kept(targets: Tensor) -> Tensor:
    """Return the places (K,) of the targets that carry loss, in the flattened `targets` (B, T)."""
    return torch.nonzero(targets.reshape(-1) != IGNORE).squeeze(1)


def summed_loss(features: Tensor, targets: Tensor, weight: Tensor, class_weights: Tensor | None = None) -> Tensor:
    """Return the (weighted) sum of the losses, a float32 scalar.

    features (K, D) at the kept positions; targets (K,) int64; weight (V, D), the head's matrix; class_weights (V,).
    """
    if features.shape[0] == 0:
        return features.sum().float()
    rows = None if class_weights is None else class_weights.to(features.device, torch.float32)[targets]
    total: Tensor = LinearCrossEntropy.apply(features, weight, targets, rows)  # type: ignore[no-untyped-call]
    return total


def token_losses(hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Return the loss of each kept target (N,) float32, without gradients; N is small enough by the caller's choice."""
    chunk = _rows(weight)
    parts = []
    for i in range(0, hidden.shape[0], chunk):
        logits = (hidden[i : i + chunk] @ weight.to(hidden.dtype).t()).float()
        parts.append(cross_entropy(logits, targets[i : i + chunk], reduction="none"))
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _rows(weight: Tensor) -> int:
    return max(16, _CHUNK_BYTES // (4 * weight.shape[0]))


class LinearCrossEntropy(torch.autograd.Function):
    """Sum over rows of CE(hidden @ weight^T, target), its gradient taken in the forward pass chunk by chunk.

    The gradient of softmax cross-entropy, softmax - onehot, needs only the chunk's own logits, so they can be dropped
    before the next chunk; backward merely scales (the idea of Liger and Apple's cut cross-entropy).
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, row_weights: Tensor | None = None) -> Tensor:
        """Return the sum, a float32 scalar, for hidden (N, D), weight (V, D), targets and row_weights (N,)."""
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        dtype = (
            torch.get_autocast_dtype(hidden.device.type)
            if torch.is_autocast_enabled(hidden.device.type)
            else hidden.dtype
        )
        w = weight.to(dtype)
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=torch.float32) if needs_weight else None
        total = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for i in range(0, hidden.shape[0], _rows(weight)):
                rows = slice(i, i + _rows(weight))
                x, y = hidden[rows].to(dtype), targets[rows]
                logits = (x @ w.t()).float()
                at = (torch.arange(y.shape[0], device=y.device), y)
                top = logits.amax(dim=1, keepdim=True)
                picked = logits[at] - top.squeeze(1)
                p = logits.sub_(top).exp_()
                mass = p.sum(dim=1, keepdim=True)
                losses = mass.squeeze(1).log() - picked
                total += losses.sum() if row_weights is None else (losses * row_weights[rows]).sum()
                if grad_hidden is None and grad_weight is None:
                    continue
                p.div_(mass)
                p[at] -= 1.0
                if row_weights is not None:
                    p.mul_(row_weights[rows].unsqueeze(1))
                g = p.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[rows] = g @ w
                if grad_weight is not None:
                    grad_weight += g.t() @ x
        ctx.save_for_backward(grad_hidden, grad_weight)
        ctx.weight_dtype = weight.dtype
        return total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        """Scale the stored gradients by the upstream scalar."""
        grad_hidden, grad_weight = ctx.saved_tensors
        scale = grads[0]
        return (
            None if grad_hidden is None else grad_hidden * scale,
            None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype),
            None,
            None,
        )
