"""AdamW in one fused call for each group of parameters, as `torch.optim.AdamW(fused=True)` computes it, to the bit.

It knows tensors only. Its one invariant is that equality. PyTorch's own class would do, but making one imports
PyTorch's compiler, which takes longer than everything else between a command and its first step.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Unseen:
    """What a GPU found of a step's gradients and nobody has waited for."""

    divisor: Tensor | None
    """What they are to be divided by, a float32 scalar on the device; None: 1."""
    skip: Tensor
    """1.0 where the weights are to stay as they are, else 0.0; likewise."""


class AdamW:
    """The update of some groups of parameters; `state` and `param_groups` are laid out as PyTorch lays them out."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        """Take groups of `params` and `weight_decay`."""
        self.param_groups = [{"lr": lr, "betas": betas, "eps": eps, **group} for group in groups]
        self.state: defaultdict[Tensor, dict[str, Tensor]] = defaultdict(dict)

    def step(self, shrink: float | Unseen = 1.0) -> None:
        """Update every parameter that has a gradient, by `shrink` times that gradient, in the same pass."""
        with torch.no_grad():
            for group in self.param_groups:
                kinds: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
                for p in group["params"]:
                    if p.grad is not None:
                        kinds[p.device, p.dtype].append(p)
                for params in kinds.values():
                    self._update(params, group, shrink)

    def _update(self, params: list[Tensor], group: dict[str, Any], shrink: float | Unseen) -> None:
        """One call for parameters of one kind."""
        for p in params:
            if not self.state[p]:
                self.state[p] = {
                    "step": torch.zeros((), dtype=torch.float32, device=p.device),
                    "exp_avg": torch.zeros_like(p, memory_format=torch.preserve_format),
                    "exp_avg_sq": torch.zeros_like(p, memory_format=torch.preserve_format),
                }
        steps, means, squares = ([self.state[p][k] for p in params] for k in ("step", "exp_avg", "exp_avg_sq"))
        torch._foreach_add_(steps, 1)
        beta1, beta2 = group["betas"]
        divisor, skip = _guard(shrink, params[0].device)
        torch._fused_adamw_(
            params,
            [p.grad for p in params if p.grad is not None],
            means,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=beta1,
            beta2=beta2,
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=divisor,
            found_inf=skip,
        )

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients, or set them to 0."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    if set_to_none:
                        p.grad = None
                    else:
                        p.grad.zero_()


def _guard(shrink: float | Unseen, device: torch.device) -> tuple[Tensor | None, Tensor | None]:
    """What the fused call divides gradients by, and what tells it to do nothing."""
    if isinstance(shrink, Unseen):
        return shrink.divisor, shrink.skip
    return None if shrink == 1.0 else torch.tensor(1 / shrink, device=device), None
