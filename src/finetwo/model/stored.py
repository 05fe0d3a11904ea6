"""The contract of a linear whose frozen weight is stored in fewer bits: what `base` is then, and its input's gradient.

A kind of storage says how a matrix is put away and taken out again; it knows no adapter, no optimizer and no file. Its
one invariant: the weight never learns and no full-precision copy of it outlives a product, forward or backward.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from finetwo.core.errors import InputError
from finetwo.model.linear import Linear


class StoredLinear(Linear):
    """A linear with another way of storing its weight; subclasses define `kind`, `store` and `dequantised`.

    The adapter's slot is `Linear`'s own, so QLoRA is a stored base and a LoRA adapter and needs no class.
    """

    kind: ClassVar[str]
    """The name users call it by."""

    def __init__(self, linear: Linear) -> None:
        """Take the weight of `linear` in the own form; its bias and adapter are taken over as they are."""
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias, self.adapter = linear.bias, linear.adapter
        self.bias.requires_grad_(False)
        self.training = linear.training
        self.store(linear.weight.detach().float())

    @classmethod
    def of(cls, linear: Linear) -> Self:
        """Return `linear` stored in this way."""
        return cls(linear)

    def store(self, weight: Tensor) -> None:
        """Keep `weight` (in, out) float32 in buffers; numbers that are not integers as their bits (see `bits`)."""
        raise NotImplementedError

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        """The weight as it computes, (in, out), newly made."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """`x @ weight` for x (M, in), in the precision of `x`; overridden where there is a faster way."""
        return x @ self.dequantised(x.dtype)

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight as it computes, (in, out): a copy, so that writing into it changes nothing here."""
        return self.dequantised(self.bias.dtype)

    @property
    def stored_bytes(self) -> int:
        """Bytes that the weight takes."""
        return sum(b.numel() * b.element_size() for b in self.buffers(recurse=False))

    def absorb(self, change: Tensor) -> None:
        """Refuse: a change as small as an adapter's would be lost in the rounding."""
        what = f"the base is stored as {self.kind}; an adapter is merged into full-precision weights only"
        raise InputError("merge", what, None, "load the run's folder, which takes the full-precision base, and merge")

    def working_copies(self, dtype: torch.dtype) -> None:
        """None: a copy in bfloat16 would take the memory that was saved."""

    def base(self, x: Tensor) -> Tensor:
        """The stored weight applied to `x` (N, in) -> (N, out), in the precision of `x`."""
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y + self.bias.to(x.dtype)


class _Product(torch.autograd.Function):
    """`x @ weight`, keeping for the way back neither `x` nor a dequantised weight: the weight is made again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, linear: StoredLinear) -> Tensor:
        """Return x (M, in) times the weight, (M, out)."""
        ctx.linear = linear
        return linear.product(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The gradient of `x`, (M, in), through the weight as it is stored."""
        (grad,) = grads
        return grad @ ctx.linear.dequantised(grad.dtype).t(), None


def bits(numbers: Tensor) -> Tensor:
    """Float32 numbers as int32 of the same bits: casting a network to bf16 rounds floats, and must not round these."""
    return numbers.float().contiguous().view(torch.int32)


def floats(stored: Tensor) -> Tensor:
    """What `bits` put away."""
    return stored.view(torch.float32)


def stored_linears(network: nn.Module) -> dict[str, StoredLinear]:
    """Every linear of the network with a weight in another form, by its dotted name."""
    return {name: m for name, m in network.named_modules() if isinstance(m, StoredLinear)}


def count_parameters(network: nn.Module) -> int:
    """Number of parameters, a weight in another form counted like any other."""
    away = sum(m.in_features * m.out_features for m in stored_linears(network).values())
    return away + sum(p.numel() for p in network.parameters())


def weight_bytes(network: nn.Module) -> int:
    """Bytes that the network's weights take as they are stored."""
    away = sum(m.stored_bytes for m in stored_linears(network).values())
    return away + sum(p.numel() * p.element_size() for p in network.parameters())
