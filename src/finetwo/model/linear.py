"""A linear layer with two independent slots: how the weight is stored, and what is added to its output.

`forward(x) = base(x) + adapter's part`: a quantised linear overrides `base`, LoRA fills `adapter`, and neither knows
the other. Its one invariant: the names `weight` and `bias`, and their shapes, are those of the checkpoint.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetwo.model.mixed import Lowerable, LowProduct


class Linear(Lowerable):
    """`y = x @ weight + bias`, the weight as (in, out): the layout of GPT-2's checkpoints, so nothing is transposed."""

    adapter: nn.Module | None

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.weight = nn.Parameter(torch.empty(in_features, out_features))
        self.bias = nn.Parameter(torch.empty(out_features))
        self.adapter = None

    def base(self, x: Tensor) -> Tensor:
        """The stored weight applied to `x` (N, in) -> (N, out)."""
        if self.copies is None:
            return torch.addmm(self.bias, x, self.weight)
        low = (self.copies[0](), self.copies[1]())
        y: Tensor = LowProduct.apply(x, self.weight, self.bias, low)  # type: ignore[no-untyped-call]
        return y

    def absorb(self, change: Tensor) -> None:
        """Add `change` (in, out) float32 to the weight, summed in float32."""
        self.weight.copy_((self.weight.float() + change).to(self.weight.dtype))

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        flat = x.reshape(-1, self.in_features)
        if self.lowered is not None:
            flat = flat.to(self.lowered)
        y = self.base(flat)
        if self.adapter is not None:
            y = self.adapter.add_to(y, flat)  # type: ignore[operator]
        return y.view(*x.shape[:-1], self.out_features)
