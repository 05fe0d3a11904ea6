"""What lies between the matrix products of a step in 16 bits, in single passes where there are kernels for it.

It knows which kernels there are and gives each its gradient; it knows no module. Its one invariant: a kernel is used
only after it gave on this device what PyTorch's operators give.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.functional import cross_entropy, layer_norm

from finetwo.model import native_passes

_log = logging.getLogger("finetwo")
_CLOSE = 2e-2  # of the largest value: what is compared is rounded to bfloat16


@contextmanager
def aside() -> Iterator[None]:
    """Take gradients as if nobody else did: whoever asks first may take none, or keep what is saved to recompute it."""
    with torch.inference_mode(False), torch.enable_grad(), saved_tensors_hooks(lambda x: x, lambda x: x):
        yield


@cache
@aside()
def kernels(device: torch.device, dtype: torch.dtype = torch.bfloat16) -> ModuleType | None:
    """The kernels for products in `dtype` on `device`, if they work there; None without the compiler they need.

    Triton's for CUDA; on a CPU compiled C, in bfloat16 alone and for a processor that has it.
    """
    if device.type == "cpu" and dtype == torch.bfloat16:
        return native_passes if native_passes.library() is not None and _proven_here(device) else None
    if device.type != "cuda":
        return None
    try:
        from finetwo.model import triton_kernels

        right = proven(triton_kernels, device)
        reason = "" if right else "they differ from PyTorch here"
    except Exception as error:  # not there, no C compiler, a GPU it does not know
        right, reason = False, str(error).strip().partition("\n")[0] or type(error).__name__
    if not right:
        _log.warning("the Triton kernels are not used: %s; PyTorch's operators do the same, slower", reason)
        return None
    return triton_kernels


def proven(found: ModuleType, device: torch.device) -> bool:
    """Whether the kernels compute what PyTorch does, on some numbers."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    def close(a: Tensor, b: Tensor) -> bool:
        return bool((a.float() - b.float()).abs().max() <= _CLOSE * b.abs().max())

    logits, targets = draw(5, 64).to(torch.bfloat16), torch.tensor([0, 1, 7, 40, 49], device=device)
    with torch.enable_grad():
        leaf = logits[:, :50].float().requires_grad_()
        wanted = cross_entropy(leaf, targets, reduction="none")
        (wanted.sum() * 2).backward()
        losses = found.cross_entropy_(logits, targets, 50, None, 2.0, gradient=True)
        assert leaf.grad is not None
        if not (close(losses, wanted.detach()) and close(logits[:, :50], leaf.grad) and not bool(logits[:, 50:].any())):
            return False
        x, delta, w, b, up = draw(7, 48), draw(7, 48), draw(48), draw(48), draw(7, 48)
        leaves = [t.clone().requires_grad_() for t in (x, delta, w, b)]
        total = leaves[0] + leaves[1]
        y = layer_norm(total, (48,), leaves[2], leaves[3], 1e-5)
        (y * up + total * up).sum().backward()
    ours = found.add_norm(x, delta, w, b, 1e-5, torch.bfloat16)
    back = found.add_norm_backward(up, up, ours[0], w, ours[2], ours[3], torch.bfloat16, learn=True)
    wants = (total.detach(), y.detach(), *(leaf.grad for leaf in leaves))
    return all(close(a, b) for a, b in zip((*ours[:2], *back), wants, strict=True) if b is not None)


def _proven_here(device: torch.device) -> bool:
    """Whether the C code computes what PyTorch does: what it has in common with Triton's, and GELU."""
    x = torch.linspace(-9.0, 9.0, 611).bfloat16()
    with torch.enable_grad():
        leaf = x.float().requires_grad_()
        wanted = torch.nn.functional.gelu(leaf, approximate="tanh")
        wanted.sum().backward()
    assert leaf.grad is not None
    pairs = (
        (native_passes.gelu(x), wanted.detach()),
        (native_passes.gelu_backward(x, torch.ones_like(x)), leaf.grad),
    )
    return all(bool((a.float() - b).abs().max() <= _CLOSE) for a, b in pairs) and proven(native_passes, device)


class Gelu(torch.autograd.Function):
    """The tanh form of GELU in bfloat16 on a CPU, where PyTorch's takes four times as long."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        """Return gelu(x)."""
        x = x.contiguous()
        ctx.save_for_backward(x)
        return native_passes.gelu(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        """The gradient of x."""
        (x,) = ctx.saved_tensors
        return native_passes.gelu_backward(x, grads[0].contiguous())


class Dropout(torch.autograd.Function):
    """Dropout in bfloat16 on a CPU: PyTorch draws one number after the other, by one thread."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, probability: float) -> Tensor:
        """Return x with some numbers 0; which ones follows from PyTorch's generator."""
        ctx.given = probability, int(torch.randint(2**62, ()))
        return native_passes.dropped(x.contiguous(), *ctx.given)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        """The same ones of the gradient."""
        return native_passes.dropped(grads[0].contiguous(), *ctx.given), None


def gelu(x: Tensor) -> Tensor:
    """The tanh form of GELU (Hendrycks & Gimpel 2016)."""
    if x.device.type != "cpu" or kernels(x.device, x.dtype) is None:
        return torch.nn.functional.gelu(x, approximate="tanh")
    y: Tensor = Gelu.apply(x)  # type: ignore[no-untyped-call]
    return y


def dropout(x: Tensor, probability: float) -> Tensor:
    """Dropout."""
    here = x.device.type == "cpu" and 0.0 < probability < 1.0
    if not here or kernels(x.device, x.dtype) is None:
        return torch.nn.functional.dropout(x, probability)
    y: Tensor = Dropout.apply(x, probability)  # type: ignore[no-untyped-call]
    return y


class AddNorm(torch.autograd.Function):
    """`total = x + delta` and `layer_norm(total)` in 16 bits, forward and backward in one pass each."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Any:
        """Return total (N, D) float32 and its norm (N, D) in `dtype`; without delta the norm alone."""
        found = kernels(x.device, dtype)
        assert found is not None
        total, y, mean, rstd = found.add_norm(x, delta, weight, bias, eps, dtype)
        ctx.save_for_backward(total, weight, mean, rstd)
        ctx.set_materialize_grads(False)
        ctx.dtype = dtype
        ctx.low = None if delta is None else delta.dtype
        return y if delta is None else (total, y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of x, delta, weight and bias."""
        total, weight, mean, rstd = ctx.saved_tensors
        (dtotal, dy) = grads if ctx.low is not None else (None, grads[0])
        if dy is None:
            return dtotal, None if dtotal is None else dtotal.to(ctx.low), None, None, None, None
        found = kernels(total.device, ctx.dtype)
        assert found is not None
        low = ctx.low if ctx.needs_input_grad[1] else None
        onward = None if dtotal is None else dtotal.contiguous()
        learn = ctx.needs_input_grad[2] or ctx.needs_input_grad[3]
        dx, dlow, dw, db = found.add_norm_backward(dy.contiguous(), onward, total, weight, mean, rstd, low, learn=learn)
        return dx, dlow, dw, db, None, None
