"""How queries see keys: the one argument of the trunk's forward that carries masks, packing and caches.

An `Attend` is called once per layer with queries, keys and values; the trunk knows nothing of what it does with
them. Invariant: `Packed` equals `Causal` on each sequence taken alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

Int64 = NDArray[np.int64]
_LOW = (torch.bfloat16, torch.float16)


def _slow_in_16_bits(length: int) -> bool:
    """Whether a CPU attends in float32 sooner than in bfloat16: to few tokens, or without AVX-512 to any number.

    (torch 2.13: 8 sequences of 57 tokens take 3 times as long in bfloat16 with AVX2, and with AVX-512 a share of the
    step that is 3 times as large.)
    """
    return length <= 256 or torch.backends.cpu.get_cpu_capability() in ("AVX2", "DEFAULT")


class Attend(Protocol):
    """Anything callable like `Causal`."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return what each query sees, (B, H, T, Dh), given q, k, v of that shape in layer `layer`."""


class Causal:
    """Each position sees itself and all before it; right padding is invisible to real tokens."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return causal attention, (B, H, T, Dh)."""
        if q.dtype in _LOW and q.device.type == "cpu" and _slow_in_16_bits(q.shape[2]):
            low, q, k, v = q.dtype, q.float(), k.float(), v.float()
            return self(layer, q, k, v, scale, dropout).to(low)
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=dropout)


def pinned(array: Tensor) -> Tensor:
    """A tensor of the CPU in memory that a GPU reads by itself, where there is one."""
    return array.pin_memory() if torch.cuda.is_available() else array


def sent(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return int64 tensors of the CPU on `device`, in one copy; a GPU goes on computing meanwhile."""
    if device.type == "cpu":
        return list(tensors)
    flat = torch.cat([t.reshape(-1) for t in tensors])
    moved = pinned(flat).to(device, non_blocking=True)
    parts = moved.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


class Runs:
    """The runs of a packed row, told by its positions alone.

    A run begins where a position is not the one before plus 1. One that begins at 0 is a sequence. One that begins at
    p > 0 is the rest of a sequence whose first p tokens are those of the sequence before it (that one's own shared
    tokens counted in), so that what several sequences begin with stands, and is computed, once: exactly what it would
    be in each, as causal attention never looks ahead.
    """

    def __init__(self, positions: Int64) -> None:
        """`positions` (B, T); the first of each row must be 0."""
        self.flat = flat = positions.reshape(-1)
        """(N,) the positions."""
        self.begins = np.flatnonzero(np.diff(flat, prepend=flat[0]) != 1)
        """(R,) where each run begins in the row."""
        self.first = flat[self.begins]
        """(R,) the position of each run's first token."""
        self.size = np.diff(self.begins, append=len(flat))
        """(R,) the number of its own tokens."""
        self.run = np.repeat(np.arange(len(self.begins)), self.size)
        """(N,) the run of each token."""
        place = np.arange(int((self.first + self.size).max()))  # (L,)
        rows = np.arange(len(self.begins))[:, None]
        source = np.maximum.accumulate(np.where(place >= self.first[:, None], rows, 0), axis=0)  # (R, L) who holds it
        self.take = self.begins[source] + place - self.first[source]
        """(R, L) where in the row each place of a sequence stands, as far as `inside`."""
        self.inside = place < (self.first + self.size)[:, None]
        """(R, L) whether the sequence has that place."""
        self.shared = place < self.first[:, None]
        """(R, L) whether it is another run's."""


@dataclass(frozen=True)
class Shares:
    """How the rows of a packed row (N, D) are laid out where a shared beginning stands in every sequence it is of."""

    take: Tensor
    """(M,) the row of each place; filling: any row."""
    slot: Tensor
    """(N,) each row's own place."""
    again: Tensor
    """(S,) the places that hold another run's row."""
    group: Tensor
    """(S,) which of the owners each of these is of."""
    owners: Tensor
    """(U,) the rows that stand in several places, each once; N: none."""

    @staticmethod
    def arrays(take: Int64, slot: Int64, again: Int64) -> tuple[Int64, ...]:
        """Return the five, told by the first three."""
        owners, group = np.unique(take[again], return_inverse=True)
        return take, slot, again, group.reshape(-1), owners

    def of(self, x: Tensor) -> Tensor:
        """Lay out x (N, D) as (M, D)."""
        found: Tensor = _Spread.apply(x, self)  # type: ignore[no-untyped-call]
        return found


class _Spread(torch.autograd.Function):
    """Rows (N, D) laid out, (M, D).

    Backward reads each row's own place and adds the places where it is repeated, summed in float32; a plain index
    would add them all, filling included, one by one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, shares: Shares) -> Tensor:
        ctx.shares = shares
        return x.index_select(0, shares.take)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        g, shares = grads[0], ctx.shares
        if not shares.again.numel():
            return g.index_select(0, shares.slot), None
        rows, width = shares.slot.numel(), g.shape[1]
        found = g.new_empty(rows + 1, width)  # the last takes what is nobody's
        torch.index_select(g, 0, shares.slot, out=found[:rows])
        found[rows:] = 0
        more = torch.zeros(shares.owners.numel(), width, dtype=torch.float32, device=g.device)
        more.index_add_(0, shares.group, g.index_select(0, shares.again).float())
        return found.index_add_(0, shares.owners, more.to(g.dtype))[:rows], None


class Packed:
    """Causal attention inside each sequence of a packed row (see `Runs`).

    The sequences are laid side by side as rows of a padded block for the attention alone, so that everything else in
    the network works on real tokens only.
    """

    def __init__(self, positions: Tensor, device: torch.device | None = None) -> None:
        """`positions` (B, T) int64 as of `Runs`; `device`: where attention is computed, if not there."""
        runs = Runs(positions.cpu().numpy())
        self._block = runs.inside.shape
        take = np.where(runs.inside, runs.take, 0).reshape(-1)  # padding: any token
        slot = runs.run * self._block[1] + runs.flat
        arrays = [torch.from_numpy(a) for a in Shares.arrays(take, slot, np.flatnonzero(runs.shared))]
        self._keys = Shares(*sent(arrays, device or positions.device))
        none = self._keys.again[:0]  # what a query of another run's token sees is read there: it takes no gradient here
        self._queries = replace(self._keys, again=none, group=none)
        self._causal = Causal()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return per-sequence causal attention, (B, H, T, Dh)."""
        b, h, t, d = q.shape
        pq, pk, pv = (
            shares.of(x.transpose(1, 2).reshape(b * t, h * d)).view(*self._block, h, d).transpose(1, 2)
            for x, shares in ((q, self._queries), (k, self._keys), (v, self._keys))
        )
        out = self._causal(layer, pq, pk, pv, scale, dropout)  # (R, H, L, Dh)
        flat: Tensor = _Collect.apply(out.transpose(1, 2).reshape(-1, h * d), self._keys.slot)  # type: ignore[no-untyped-call]
        return flat.view(b, t, h, d).transpose(1, 2)


class _Collect(torch.autograd.Function):
    """Rows (N, D) taken back from the block (R*L, D); each place is taken once, so backward copies."""

    @staticmethod
    def forward(ctx: Any, block: Tensor, slot: Tensor) -> Tensor:
        ctx.save_for_backward(slot)
        ctx.rows = block.shape[0]
        return block.index_select(0, slot)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (slot,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.rows, grads[0].shape[1]).index_copy_(0, slot, grads[0]), None


@dataclass(frozen=True)
class Ragged:
    """What `Varlen` needs of a packed row, as arrays of the CPU."""

    ends: Int64
    """(2, R + 1) where each run's own tokens end, and where its sequence's keys do, after a 0."""
    most: tuple[int, int]
    """The most tokens of a run, and of a sequence."""
    shares: tuple[Int64, ...]
    """take, slot, again, group and owners of `Shares`; empty where no beginning is shared."""

    @classmethod
    def of(cls, positions: Int64) -> Ragged:
        """`positions` (B, T) as of `Runs`."""
        runs = Runs(positions)
        whole = runs.first + runs.size  # (R,) the sequences' lengths
        ends = np.zeros((2, len(whole) + 1), dtype=np.int64)
        np.cumsum([runs.size, whole], axis=1, out=ends[:, 1:])
        shares: tuple[Int64, ...] = ()
        if runs.shared.any():
            slot = ends[1, :-1][runs.run] + runs.flat
            shares = Shares.arrays(runs.take[runs.inside], slot, np.flatnonzero(runs.shared[runs.inside]))
        return cls(ends, (int(runs.size.max()), int(whole.max())), shares)


class Varlen:
    """`Packed` for a GPU in 16 bits: its kernel takes sequences of any lengths behind one another, without a block."""

    def __init__(self, ends: Tensor, most: tuple[int, int], shares: Shares | None) -> None:
        """Everything as of `Ragged`, on the GPU; `most` may be more than there is."""
        self._ends, self._most, self._shares = ends.to(torch.int32), most, shares

    @classmethod
    def of(cls, positions: Int64, device: torch.device) -> Varlen:
        """`positions` (B, T) as of `Runs`."""
        ragged = Ragged.of(positions)
        ends, *shares = sent([torch.from_numpy(a) for a in (ragged.ends, *ragged.shares)], device)
        return cls(ends, ragged.most, Shares(*shares) if shares else None)

    @staticmethod
    def usable(device: torch.device, width: int) -> bool:
        """Whether the device has the kernel for heads of `width` numbers: flash attention, from Ampere on."""
        if device.type != "cuda" or width % 8 or width > 256:
            return False
        able = torch.cuda.get_device_capability(device)[0] >= 8
        return able and torch.backends.cuda.is_flash_attention_available()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return per-sequence causal attention, (B, H, T, Dh); a query's last key is its own place's."""
        b, h, t, d = q.shape
        q, k, v = (x.transpose(1, 2).reshape(b * t, h, d) for x in (q, k, v))
        if self._shares is not None:
            k, v = (self._shares.of(x.reshape(b * t, h * d)).view(-1, h, d) for x in (k, v))
        return _flash(q, k, v, self._ends, self._most, dropout, scale).view(b, t, h, d).transpose(1, 2)


def _flash(
    q: Tensor, k: Tensor, v: Tensor, ends: Tensor, most: tuple[int, int], dropout: float, scale: float
) -> Tensor:
    """Flash attention (Dao 2023, arXiv:2307.08691) of q (N, H, Dh) to k, v (M, H, Dh) between the `ends` (2, R + 1)."""
    found: Tensor = torch.ops.aten._flash_attention_forward(
        q, k, v, ends[0], ends[1], *most, dropout, True, False, scale=scale
    )[0]
    return found
