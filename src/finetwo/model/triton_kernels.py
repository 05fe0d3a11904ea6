"""Triton kernels for CUDA: what a training step does between its matrix products, each in one pass over its tensors.

The functions take and give plain tensors; they know no autograd and no module (see `model.passes`). Their one
invariant: they compute in float32 what PyTorch's operators compute, whatever precision they read and write.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

# Triton reads the kernels' annotations as its own, so they have no others.

_PROGRAMS = 8
"""Programs for each multiprocessor where one program takes many rows."""


@triton.jit
def _cross_entropy(
    logits, targets, weights, losses, scale, classes, width,
    WEIGHTED: tl.constexpr, GRADIENT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: its loss, and in place of its logits their gradient; the columns from `classes` to `width` become 0."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * width
    target = tl.load(targets + row)
    picked = tl.load(logits + target).to(tl.float32)
    top, mass = -float("inf"), 0.0
    for start in range(0, classes, BLOCK):
        at = start + tl.arange(0, BLOCK)
        x = tl.load(logits + at, mask=at < classes, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(x, 0))
        mass = mass * tl.exp(top - higher) + tl.sum(tl.exp(x - higher), 0)
        top = higher
    loss = tl.log(mass) + top - picked
    factor = scale
    if WEIGHTED:
        weight = tl.load(weights + row)
        loss *= weight
        factor *= weight
    tl.store(losses + row, loss)
    if GRADIENT:
        for start in range(0, width, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(logits + at, mask=at < classes, other=-float("inf")).to(tl.float32)
            p = tl.exp(x - top) / mass
            p = tl.where(at == target, p - 1.0, p) * factor
            tl.store(logits + at, p.to(logits.dtype.element_ty), mask=at < width)


def cross_entropy_(
    logits: Tensor, targets: Tensor, classes: int, weights: Tensor | None, scale: float, *, gradient: bool
) -> Tensor:
    """Return the losses (n,) float32, weighted; `logits` (n, width >= classes) become `scale` times their gradient.

    targets (n,) int64, weights (n,) float32; columns from `classes` on are filling.
    """
    rows, width = logits.shape
    losses = torch.empty(rows, dtype=torch.float32, device=logits.device)
    block = min(8192, triton.next_power_of_2(width))
    given = losses if weights is None else weights
    _cross_entropy[(rows,)](
        logits, targets, given, losses, scale, classes, width,
        WEIGHTED=weights is not None, GRADIENT=gradient, BLOCK=block, num_warps=16 if block >= 4096 else 4,
    )  # fmt: skip
    return losses


@triton.jit
def _norm_forward(
    x, delta, weight, bias, total, y, mean, rstd, width, eps,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row: x + delta, and that normalised."""
    row = tl.program_id(0).to(tl.int64)
    at = tl.arange(0, BLOCK)
    inside = at < width
    v = tl.load(x + row * width + at, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        v += tl.load(delta + row * width + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(total + row * width + at, v, mask=inside)
    m = tl.sum(v, 0) / width
    d = tl.where(inside, v - m, 0.0)
    r = 1.0 / tl.sqrt(tl.sum(d * d, 0) / width + eps)
    tl.store(mean + row, m)
    tl.store(rstd + row, r)
    w = tl.load(weight + at, mask=inside, other=0.0)
    b = tl.load(bias + at, mask=inside, other=0.0)
    tl.store(y + row * width + at, (d * r * w + b).to(y.dtype.element_ty), mask=inside)


@triton.jit
def _norm_backward(
    dy, dtotal, total, weight, mean, rstd, dx, dlow, parts,
    rows, width, BOTH: tl.constexpr, LOW: tl.constexpr, LEARN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Many rows: the gradient of x + delta, in two precisions, and this program's part of those of weight and bias."""
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    at = tl.arange(0, BLOCK)
    inside = at < width
    w = tl.load(weight + at, mask=inside, other=0.0)
    sum_w = tl.zeros([BLOCK], dtype=tl.float32)
    sum_b = tl.zeros([BLOCK], dtype=tl.float32)
    for index in range(program, rows, programs):
        row = tl.cast(index, tl.int64)
        g = tl.load(dy + row * width + at, mask=inside, other=0.0).to(tl.float32)
        v = tl.load(total + row * width + at, mask=inside, other=0.0).to(tl.float32)
        r = tl.load(rstd + row)
        h = tl.where(inside, (v - tl.load(mean + row)) * r, 0.0)
        if LEARN:
            sum_w += g * h
            sum_b += g
        wg = w * g
        d = (wg - (h * (tl.sum(wg * h, 0) / width) + tl.sum(wg, 0) / width)) * r
        if BOTH:
            d += tl.load(dtotal + row * width + at, mask=inside, other=0.0).to(tl.float32)
        tl.store(dx + row * width + at, d, mask=inside)
        if LOW:
            tl.store(dlow + row * width + at, d.to(dlow.dtype.element_ty), mask=inside)
    if LEARN:
        tl.store(parts + program * width + at, sum_w, mask=inside)
        tl.store(parts + (programs + program) * width + at, sum_b, mask=inside)


def add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x + delta (N, D) float32, its layer norm (N, D) in `dtype`, and each row's mean and 1/deviation (N,).

    x (N, D) float32, delta (N, D) in any precision or None, weight and bias (D,) float32; all contiguous.
    """
    rows, width = x.shape
    total = x if delta is None else torch.empty_like(x)
    y = torch.empty_like(x, dtype=dtype)
    mean, rstd = x.new_empty(rows), x.new_empty(rows)
    block = triton.next_power_of_2(width)
    given = x if delta is None else delta
    _norm_forward[(rows,)](
        x, given, weight, bias, total, y, mean, rstd, width, eps,
        ADDS=delta is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return total, y, mean, rstd


def add_norm_backward(
    dy: Tensor, dtotal: Tensor | None, total: Tensor, weight: Tensor, mean: Tensor, rstd: Tensor,
    low: torch.dtype | None, *, learn: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:  # fmt: skip
    """Return the gradients of x (N, D) float32, of delta in `low` (None: not wanted), of weight and of bias (D,).

    dy (N, D) is that of the norm, dtotal (N, D) that of the sum where it went on; all contiguous.
    """
    rows, width = total.shape
    dx = torch.empty_like(total)
    dlow = None if low is None else torch.empty_like(total, dtype=low)
    programs = min(rows, _PROGRAMS * _processors(total.device))
    parts = total.new_empty(2, programs, width) if learn else None
    block = triton.next_power_of_2(width)
    _norm_backward[(programs,)](
        dy, dy if dtotal is None else dtotal, total, weight, mean, rstd, dx, dx if dlow is None else dlow,
        dx if parts is None else parts, rows, width,
        BOTH=dtotal is not None, LOW=dlow is not None, LEARN=learn, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    if parts is None:
        return dx, dlow, None, None
    dw, db = parts.sum(1)
    return dx, dlow, dw, db


def _warps(block: int) -> int:
    return min(16, max(1, block // 256))


def _processors(device: torch.device) -> int:
    """Multiprocessors of the device; the interpreter that tests use has none."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
