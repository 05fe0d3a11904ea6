"""The compiled passes (native/passes.c) of a step in bfloat16, for a processor that multiplies bfloat16 by itself.

The counterpart of `triton_kernels` on a CPU: functions of plain tensors that know no autograd and no module (see
`model.passes`). Its one invariant: only contiguous CPU tensors of the wanted type are passed on.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from finetwo.core.compiled import Refused, load

_FOLDER = Path(__file__).resolve().parent / "native"
_SOURCES = tuple(_FOLDER / name for name in ("passes.c", "lanes.h", "attention.h"))
_P, _N, _L, _F = ctypes.c_void_p, ctypes.c_int, ctypes.c_long, ctypes.c_float
_TAKES = {
    "ft_gelu": (_P, _P, _L, _N),
    "ft_gelu_backward": (_P, _P, _P, _L, _N),
    "ft_widen": (_P, _P, _L, _N, _N),
    "ft_sum_rows": (_P, _P, _L, _L, _N),
    "ft_cross_entropy": (_P, _P, _P, _P, _L, _L, _L, _F, _N, _N),
    "ft_add_norm": (*(_P,) * 8, _L, _L, _F, _N, _N),
    "ft_add_norm_backward": (*(_P,) * 9, _L, _L, _N, _N),
    "ft_dropout": (_P, _P, _L, ctypes.c_uint64, ctypes.c_uint32, _F, _N),
    "ft_attend": (_P, _N),
}


@cache
def library() -> ctypes.CDLL | None:
    """The compiled library; None without a compiler, and on a processor that has no products in bfloat16."""
    try:
        found = load(_SOURCES)
    except Refused:
        return None
    if not found.ft_able():
        return None
    for name, takes in _TAKES.items():
        function = getattr(found, name)
        function.argtypes, function.restype = takes, ctypes.c_int if name == "ft_attend" else None
    return found


def _call(name: str, *given: float | Tensor | None) -> None:
    """Call a function, with the count of threads behind what is given."""
    passed: list[float | None] = []
    for one in given:
        if isinstance(one, Tensor):
            assert one.is_cpu and one.is_contiguous()
            passed.append(one.data_ptr())
        else:
            passed.append(one)
    getattr(library(), name)(*passed, torch.get_num_threads())


def _low(x: Tensor) -> bool:
    """Whether x is bfloat16; it must be float32 else."""
    assert x.dtype in (torch.bfloat16, torch.float32)
    return x.dtype == torch.bfloat16


def gelu(x: Tensor) -> Tensor:
    """Return GELU's tanh form of x, bfloat16."""
    y = torch.empty_like(x)
    assert _low(x)
    _call("ft_gelu", x, y, x.numel())
    return y


def gelu_backward(x: Tensor, dy: Tensor) -> Tensor:
    """Return the gradient of x, given that of its GELU."""
    dx = torch.empty_like(x)
    assert _low(x) and _low(dy) and x.shape == dy.shape
    _call("ft_gelu_backward", x, dy, dx, x.numel())
    return dx


def widen_(to: Tensor, x: Tensor, *, add: bool) -> None:
    """Write x, bfloat16, to `to`, float32, or add it there."""
    assert _low(x) and not _low(to) and x.shape == to.shape
    _call("ft_widen", to, x, x.numel(), add)


def sum_rows(x: Tensor) -> Tensor:
    """Return the sum of the rows of x (N, D), bfloat16, as (D,) float32."""
    found = torch.empty(x.shape[1], dtype=torch.float32)
    assert _low(x)
    _call("ft_sum_rows", x, found, *x.shape)
    return found


def dropped(x: Tensor, probability: float, seed: int) -> Tensor:
    """Return x with some of its numbers 0 and the others larger, bfloat16; the same ones for the same seed."""
    y = torch.empty_like(x)
    assert _low(x)
    _call("ft_dropout", x, y, x.numel(), seed, threshold(probability), 1.0 / (1.0 - probability))
    return y


def threshold(probability: float) -> int:
    """Below it a drawn number of 32 bits drops."""
    return min(2**32 - 1, round(probability * 2**32))


def cross_entropy_(
    logits: Tensor, targets: Tensor, classes: int, weights: Tensor | None, scale: float, *, gradient: bool
) -> Tensor:
    """Return the losses (n,) float32, weighted; `logits` (n, width >= classes) become `scale` times their gradient.

    targets (n,) int64, weights (n,) float32; columns from `classes` on are filling.
    """
    rows, width = logits.shape
    losses = torch.empty(rows, dtype=torch.float32)
    assert _low(logits) and targets.dtype == torch.int64 and (weights is None or not _low(weights))
    if rows and not 0 <= int(targets.min()) <= int(targets.max()) < classes:
        raise IndexError(f"a target that is none of {classes} classes")  # C would write where it points
    given = None if weights is None else weights.contiguous()
    _call("ft_cross_entropy", logits, targets.contiguous(), given, losses, rows, classes, width, scale, gradient)
    return losses


def add_norm(
    x: Tensor, delta: Tensor | None, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x + delta (N, D) float32, its layer norm (N, D) in bfloat16, and each row's mean and 1/deviation (N,).

    x (N, D) float32, delta (N, D) in either precision or None, weight and bias (D,) float32; all contiguous.
    """
    rows, width = x.shape
    total = x if delta is None else torch.empty_like(x)
    y = torch.empty_like(x, dtype=dtype)
    mean, rstd = x.new_empty(rows), x.new_empty(rows)
    assert _low(y) and not any(map(_low, (x, weight, bias)))
    low = delta is not None and _low(delta)
    _call("ft_add_norm", x, delta, weight, bias, total, y, mean, rstd, rows, width, eps, low)
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
    rounded = torch.empty_like(total, dtype=low) if low == torch.bfloat16 else None
    parts = total.new_zeros(torch.get_num_threads(), 2, width) if learn else None
    given = (dy, dtotal, total, weight, mean, rstd, dx, rounded, parts)
    assert not any(_low(t) for t in given[1:7] if t is not None)
    _call("ft_add_norm_backward", *given, rows, width, _low(dy))
    dlow = dx if low == torch.float32 else rounded
    if parts is None:
        return dx, dlow, None, None
    dw, db = parts.sum(0)
    return dx, dlow, dw, db
