"""Weights in 8 bits: one symmetric scale for each output.

It must not know what is computed with the weights. Invariant: a weight is off by at most half its output's scale, and
the gradient of the input goes through the very weight that the plain product uses.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from finetwo.model.stored import StoredLinear, bits, floats


def integer_products_are_fast(x: Tensor) -> bool:
    """Whether 8-bit products beat float32 ones: on a CPU with VNNI. Without, and in bf16, the weight is widened."""
    told = getattr(torch.cpu, "_is_vnni_supported", None)
    return x.device.type == "cpu" and x.dtype == torch.float32 and told is not None and bool(told())


class Int8Linear(StoredLinear):
    """A linear whose weight takes 8 bits a number, and a float32 for each output."""

    kind: ClassVar[str] = "int8"
    numbers: Tensor
    scales: Tensor
    sums: Tensor

    def store(self, weight: Tensor) -> None:  # noqa: D102
        scales = (weight.abs().amax(0) / 127).clamp(min=1e-38)  # (out,)
        numbers = torch.round(weight / scales).to(torch.int8)  # (in, out)
        self.register_buffer("numbers", numbers)
        self.register_buffer("scales", bits(scales))
        self.register_buffer("sums", numbers.sum(0, dtype=torch.int32))  # (out,) takes out the zero point of the input

    def dequantised(self, dtype: torch.dtype) -> Tensor:  # noqa: D102
        return self.numbers.to(dtype).mul_(floats(self.scales).to(dtype))

    def product(self, x: Tensor) -> Tensor:  # noqa: D102
        if integer_products_are_fast(x):
            return self.integer_product(x)
        return (x @ self.numbers.to(x.dtype)).mul_(floats(self.scales).to(x.dtype))

    def integer_product(self, x: Tensor) -> Tensor:
        """`x @ weight` with each row of `x` (M, in) in 8 bits too, between its smallest and its largest number.

        A row is x = step * (q - zero), so x @ w = step * (q @ w - zero * sums). The zero point matters: behind GELU
        nearly all numbers lie on one side, and a symmetric grid would waste half its values.
        """
        low, high = torch.aminmax(x, dim=1, keepdim=True)  # (M, 1)
        low, high = low.clamp_(max=0), high.clamp_(min=0)  # 0 is on the grid, so the zero point fits into 8 bits
        step = ((high - low) / 255).clamp_(min=1e-30)
        zero = torch.round(low / step).neg_().sub_(128)
        q = torch.round(x / step).add_(zero).clamp_(-128, 127).to(torch.int8)  # (M, in)
        y = torch._int_mm(q, self.numbers).to(x.dtype)  # summed in 32-bit integers: exact, whatever the order
        return y.addcmul_(zero, self.sums.to(x.dtype), value=-1).mul_(step).mul_(floats(self.scales))
