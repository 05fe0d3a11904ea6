"""Causal attention inside each sequence of a row as one call of compiled code, in bfloat16 on a CPU that has it.

It takes queries, keys and values where they lie, without a padded block, and drops while it computes. Its one
invariant: what it gives is what `Packed` gives, to the rounding of bfloat16; anything else goes there.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from finetwo.model.attend import Attend, Packed, Runs
from finetwo.model.native_passes import library, threshold
from finetwo.model.passes import aside

_CLOSE = 2e-2
_MOST_WIDTH = 256


class _Attention(ctypes.Structure):
    """`Attention` of native/attention.h."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in "rows heads width groups threads q_row k_row v_row".split()),
        *((name, ctypes.c_void_p) for name in "group begins shared size offset keys".split()),
        *((name, ctypes.c_void_p) for name in "q k v out lse grad dq dk dv".split()),
        ("seed", ctypes.c_uint64),
        ("scale", ctypes.c_float),
        ("more", ctypes.c_float),
        ("threshold", ctypes.c_uint32),
        ("unused", ctypes.c_uint32),
    )


class _Tables:
    """Which rows make up each run and what each sees, as the C code reads it."""

    def __init__(self, positions: Tensor) -> None:
        """`positions` (B, T) int64 on the CPU, as of `Runs`."""
        runs = Runs(positions.numpy())
        whole = runs.first + runs.size
        self.rows = len(runs.flat)
        self.group = np.append(np.flatnonzero(runs.first == 0), len(runs.begins))
        """(G + 1) the first run of each group that shares nothing with the others."""
        self.begins, self.shared, self.size = runs.begins, runs.first, runs.size
        self.offset = whole.cumsum(0) - whole
        self.keys = np.ascontiguousarray(runs.take[runs.inside])
        """The keys' rows, run after run."""

    def describe(self, heads: int, width: int) -> _Attention:
        """The tables' part of a call; they must outlive it."""
        described = _Attention(rows=self.rows, heads=heads, width=width, groups=len(self.group) - 1)
        described.threads = torch.get_num_threads()
        for name in ("group", "begins", "shared", "size", "offset", "keys"):
            setattr(described, name, getattr(self, name).ctypes.data)
        return described


class _Attend(torch.autograd.Function):
    """q, k, v (N, H, Dh) bfloat16 -> what each query sees, of that shape."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tables: _Tables, scale: float, dropout: float) -> Tensor:
        n, heads, width = q.shape
        out, lse = torch.empty(n, heads, width, dtype=q.dtype), torch.empty(heads, n)
        call = tables.describe(heads, width)
        call.scale, call.more = scale, 1.0 / (1.0 - dropout)
        if dropout:
            call.threshold, call.seed = threshold(dropout), int(torch.randint(2**62, ()))
        _run(call, q, k, v, out, lse)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.call, ctx.tables = call, tables
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors  # with recomputing others than forward had
        grad, found = grads[0].contiguous(), q.new_empty(q.shape[0], 3, *q.shape[1:])
        assert grad.dtype == q.dtype
        dq, dk, dv = found.unbind(1)
        ctx.call.grad = grad.data_ptr()
        ctx.call.dq, ctx.call.dk, ctx.call.dv = dq.data_ptr(), dk.data_ptr(), dv.data_ptr()
        _run(ctx.call, q, k, v, out, lse, back=True)
        return dq, dk, dv, None, None, None


def _run(call: _Attention, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, back: bool = False) -> None:
    found = library()
    assert found is not None and out.is_contiguous() and lse.is_contiguous()
    for name, x in (("q", q), ("k", k), ("v", v)):
        assert x.dtype == torch.bfloat16 and x.stride()[1:] == (x.shape[2], 1) and x.shape == out.shape
        setattr(call, name, x.data_ptr())
        setattr(call, f"{name}_row", x.stride(0))
    call.out, call.lse = out.data_ptr(), lse.data_ptr()
    if not found.ft_attend(ctypes.byref(call), back):
        raise MemoryError("attention")


class Native:
    """`Packed`, or `Causal` over rows, for a CPU in bfloat16."""

    def __init__(self, positions: Tensor, other: Attend | None = None) -> None:
        """`positions` (B, T) int64 as of `Runs`; `other`: what attends in another precision, if not `Packed`."""
        self._positions, self._other = positions, other
        self._tables = _Tables(positions)

    @staticmethod
    def usable(device: torch.device, width: int) -> bool:
        """Whether the processor has it, for heads of `width` numbers, and it computes there what PyTorch does."""
        return device.type == "cpu" and width % 16 == 0 and width <= _MOST_WIDTH and _proven()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return per-sequence causal attention, (B, H, T, Dh)."""
        if q.dtype != torch.bfloat16 or scale <= 0.0 or dropout >= 1.0:
            self._other = self._other or Packed(self._positions)
            return self._other(layer, q, k, v, scale, dropout)
        b, h, t, d = q.shape
        flat = [_rows(x.transpose(1, 2).reshape(b * t, h, d)) for x in (q, k, v)]
        out: Tensor = _Attend.apply(*flat, self._tables, scale, dropout)  # type: ignore[no-untyped-call]
        return out.view(b, t, h, d).transpose(1, 2)


def _rows(x: Tensor) -> Tensor:
    """The same (N, H, Dh) with its heads behind one another."""
    return x if x.stride()[1:] == (x.shape[2], 1) else x.contiguous()


@cache
@aside()
def _proven() -> bool:
    """Whether attention and its gradients are those of PyTorch, on sequences of which one begins as another does."""
    if library() is None:
        return False
    positions = torch.tensor([[*range(75), *range(9, 40), 0, *range(70)]])
    generator = torch.Generator().manual_seed(0)
    given = torch.randn(3, 1, 2, positions.numel(), 32, generator=generator).bfloat16()
    up = torch.randn(given.shape[1:], generator=generator).bfloat16()
    with torch.enable_grad():
        found, wanted = given.clone().requires_grad_(), given.float().requires_grad_()
        ours = Native(positions)(0, found[0], found[1], found[2], 0.2, 0.0)
        ours.backward(up)
        plain = _plainly(positions, wanted)
        plain.backward(up.float())
    assert found.grad is not None and wanted.grad is not None
    pairs = ((ours.detach(), plain.detach()), *zip(found.grad, wanted.grad, strict=True))
    return all(bool((a.float() - b).norm() <= _CLOSE * b.norm()) for a, b in pairs)


def _plainly(positions: Tensor, qkv: Tensor) -> Tensor:
    """Attention of the three sequences of `_proven`, each by itself."""
    runs, parts = Runs(positions.numpy()), []
    for r in range(len(runs.begins)):
        own = slice(int(runs.begins[r]), int(runs.begins[r] + runs.size[r]))
        keys = torch.from_numpy(runs.take[r][runs.inside[r]])
        mask = torch.ones(own.stop - own.start, keys.numel(), dtype=torch.bool).tril(int(runs.first[r]))
        q, k, v = qkv[0][:, :, own], qkv[1][:, :, keys], qkv[2][:, :, keys]
        parts.append(scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.2))
    return torch.cat(parts, dim=2)
