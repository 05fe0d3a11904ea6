"""Muon: momentum, made orthogonal by a Newton-Schulz iteration, as the update of a matrix (Jordan et al. 2024).

`torch.optim.Muon` iterates in bfloat16 whatever the processor: here that is done where bfloat16 is at home, to the same
bits, and in float32 where it would be imitated, some thirty times slower. It knows tensors only. Its one invariant is
that equality.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # the quintic's coefficients, and how often it is applied
_STEPS, _EPSILON, _MOMENTUM = 5, 1e-7, 0.95


class Muon:
    """The update of matrices; `state` and `param_groups` are laid out as PyTorch lays them out."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float, dtype: torch.dtype) -> None:
        """`dtype`: what the iteration is made in, bfloat16 or float32."""
        self.param_groups: list[dict[str, Any]] = [{"params": list(params), "lr": lr, "weight_decay": weight_decay}]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)
        self._dtype = dtype

    @torch.no_grad()
    def step(self, shrink: float = 1.0) -> None:
        """Update every matrix that has a gradient, by `shrink` times that gradient."""
        for group in self.param_groups:
            lr = group["lr"]
            for p in (p for p in group["params"] if p.grad is not None):
                grad = p.grad if shrink == 1.0 else p.grad * shrink
                momentum = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                momentum.lerp_(grad, 1 - _MOMENTUM)
                update = orthogonal(grad.lerp(momentum, _MOMENTUM), self._dtype)  # Nesterov's look ahead
                p.mul_(1 - lr * group["weight_decay"])
                p.add_(update, alpha=-lr * math.sqrt(max(1, p.shape[0] / p.shape[1])))

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to 0."""
        for group in self.param_groups:
            for p in group["params"]:
                if set_to_none:
                    p.grad = None
                elif p.grad is not None:
                    p.grad.zero_()


def orthogonal(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return nearly the orthogonal factor of `matrix` (M, N), in `dtype`: its singular values become 0.7 to 1.2."""
    x = matrix.to(dtype, copy=True)
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x.div_(x.norm().clamp(min=_EPSILON))  # the largest singular value is at most 1
    for _ in range(_STEPS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=_B, alpha=_C), x, beta=_A)
    return x.T if tall else x
