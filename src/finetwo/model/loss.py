"""The one loss: summed cross-entropy of the head at the positions where a target stands.

`sum of w * CE(head(features), targets)`, with w = 1 unless classes are weighted, to be divided by the global sum of w
over kept targets by whoever knows it. The head runs on kept positions only, in chunks, so that logits of a whole batch
never exist at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from finetwo.model.mixed import summed_product
from finetwo.model.passes import kernels

IGNORE = -100
"""A target that means: nothing to learn here."""
_CHUNK_BYTES = 64 * 1024 * 1024
_GPU_CHUNK_BYTES = 2 * 1024 * 1024 * 1024
"""A GPU is idle in small products, and its memory is there for that."""


def kept(targets: Tensor) -> Tensor:
    """Return the places (K,) of the targets that carry loss, in the flattened `targets` (B, T)."""
    return torch.nonzero(targets.reshape(-1) != IGNORE).squeeze(1)


def summed_loss(
    features: Tensor,
    targets: Tensor,
    weight: Tensor,
    row_weights: Tensor | None = None,
    *,
    low: Tensor | None = None,
    scale: float = 1.0,
) -> Tensor:
    """Return `scale` times the (weighted) sum of the losses, a float32 scalar.

    features (K, D) at the kept positions; targets (K,) int64; weight (V, D), the head's matrix; row_weights (K,);
    low (V or more, D), a copy of the weight from which the products are made in its precision; further rows are 0.
    """
    if features.shape[0] == 0:
        return features.sum().float() + 0.0 * weight.sum()
    total: Tensor = LinearCrossEntropy.apply(features, weight, targets, row_weights, low, scale)  # type: ignore[no-untyped-call]
    return total


def token_losses(hidden: Tensor, targets: Tensor, weight: Tensor) -> Tensor:
    """Return the loss of each kept target (N,) float32, without gradients; N is small enough by the caller's choice."""
    return losses_of(lambda x: x @ weight.to(x.dtype).t(), hidden, targets, weight.shape[0])


def losses_of(head: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor, size: int) -> Tensor:
    """The same for a head that gives `size` logits a row by whatever way it has."""
    chunk = max(16, _rows(size) // 4)  # every token has a loss here, a few have one in training: not to need more
    parts = [
        _losses(head(hidden[i : i + chunk]).float(), targets[i : i + chunk])[0]
        for i in range(0, hidden.shape[0], chunk)
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _rows(size: int, w: Tensor | None = None) -> int:
    """How many rows of `size` logits are held at a time, `w` being the head's matrix.

    Logits in float32 stand between two copies in 16 bits; where they become their gradient as they are, and need half
    of float32's room, as many bytes hold four times as many rows.
    """
    if w is not None and w.device.type == "cuda":
        return max(16, _GPU_CHUNK_BYTES // (4 * size))
    one = w is not None and w.dtype != torch.float32 and kernels(w.device, w.dtype) is not None
    return max(16, _CHUNK_BYTES // ((1 if one else 4) * size))


class LinearCrossEntropy(torch.autograd.Function):
    """Sum over rows of CE(hidden @ weight^T, target), its gradient taken in the forward pass chunk by chunk.

    The gradient of softmax cross-entropy, softmax - onehot, needs only the chunk's own logits, so they can be dropped
    before the next chunk; backward merely scales (the idea of Liger and Apple's cut cross-entropy).
    """

    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        targets: Tensor,
        row_weights: Tensor | None = None,
        low: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        """Return `scale` times the sum, float32.

        hidden (N, D), weight (V, D), low (V or more, D), targets and row_weights (N,).
        """
        needs_hidden, needs_weight = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
        w = weight.to(hidden.dtype) if low is None else low
        grad_hidden = torch.empty_like(hidden) if needs_hidden else None
        grad_weight: Tensor | None = None
        total = hidden.new_zeros((), dtype=torch.float32)
        size = _rows(weight.shape[0], w)
        for i in range(0, hidden.shape[0], size):
            rows = slice(i, i + size)
            x, weights = hidden[rows].to(w.dtype), None if row_weights is None else row_weights[rows]
            chunk = (x, w, targets[rows], weights, weight.shape[0], scale)
            part, g = _chunk(*chunk, gradient=needs_hidden or needs_weight)
            total += part
            if g is None:
                continue
            if grad_hidden is not None:
                grad_hidden[rows] = g @ w
            if needs_weight:
                grad_weight = summed_product(g.t(), x, torch.float32, grad_weight)
        if grad_weight is not None:
            grad_weight = grad_weight[: weight.shape[0]]
        ctx.gradients, ctx.weight_dtype = (grad_hidden, grad_weight), weight.dtype
        return total * scale

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Hand the gradients on, once: what is kept here would make the sums in `.grad` copy them."""
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("the loss can be taken backward once")
        one = grads[0].device.type == "cpu" and float(grads[0]) == 1.0
        hidden, weight = (g if g is None or one else g.mul_(grads[0]) for g in gradients)
        return hidden, None if weight is None else weight.to(ctx.weight_dtype), None, None, None, None


def _chunk(
    x: Tensor, w: Tensor, y: Tensor, weights: Tensor | None, classes: int, scale: float, *, gradient: bool
) -> tuple[Tensor, Tensor | None]:
    """Return the loss of a chunk x (n, D), summed, and with `gradient` its gradient for the logits, times `scale`.

    That is (n, rows of w), in the precision of w.
    """
    logits = x @ w.t()
    fused = kernels(x.device, logits.dtype) if logits.dtype != torch.float32 else None
    if fused is not None:
        each: Tensor = fused.cross_entropy_(logits, y, classes, weights, scale, gradient=gradient)
        return each.sum(), logits if gradient else None
    losses, p, mass = _losses(logits[:, :classes].float(), y)
    total = losses.sum() if weights is None else (losses * weights).sum()
    if not gradient:
        return total, None
    p.div_(mass)
    p[torch.arange(y.shape[0], device=y.device), y] -= 1.0
    g = (p if weights is None else p.mul_(weights.unsqueeze(1))).mul_(scale).to(w.dtype)
    return total, g if classes == w.shape[0] else pad(g, (0, w.shape[0] - classes))


def _losses(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the losses (n,) of `logits` (n, V), and their softmax as p (n, V) / mass (n, 1), in their place."""
    top = logits.amax(dim=1, keepdim=True)
    picked = logits[torch.arange(y.shape[0], device=y.device), y] - top.squeeze(1)
    p = logits.sub_(top).exp_()
    mass = p.sum(dim=1, keepdim=True)
    return mass.squeeze(1).log() - picked, p, mass
