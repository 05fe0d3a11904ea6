"""A linear layer with two independent slots: how the weight is stored, and what is added to its output.

`forward(x) = base(x) + adapter(x)`: a quantised linear overrides `base`, LoRA fills `adapter`, and neither knows
the other. Its one invariant: the names `weight` and `bias`, and their shapes, are those of the checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Linear(nn.Module):
    """`y = x @ weight + bias`, the weight as (in, out): the layout of GPT-2's checkpoints, so nothing is transposed."""

    adapter: nn.Module | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.adapter = None

    def base(self, x: Tensor) -> Tensor:
        """The stored weight applied to `x` (..., in) -> (..., out)."""
        flat = x.reshape(-1, self.in_features)
        return torch.addmm(self.bias, flat, self.weight).view(*x.shape[:-1], self.out_features)

    def absorb(self, change: Tensor) -> None:
        """Add `change` (in, out) float32 to the weight, summed in float32."""
        self.weight.copy_((self.weight.float() + change).to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y = self.base(x)
        return y if self.adapter is None else y + self.adapter(x)
