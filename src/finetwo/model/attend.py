"""How queries see keys: the one argument of the trunk's forward that carries masks, packing and caches.

An `Attend` is called once per layer with queries, keys and values; the trunk knows nothing of what it does with
them. Invariant: `Packed` equals `Causal` on each sequence taken alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

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


def sent(tensors: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Return int64 tensors of the CPU on `device`, in one copy; a GPU goes on computing meanwhile."""
    if device.type == "cpu":
        return list(tensors)
    flat = torch.cat([t.reshape(-1) for t in tensors])
    moved = (flat.pin_memory() if device.type == "cuda" else flat).to(device, non_blocking=True)
    parts = moved.split([t.numel() for t in tensors])
    return [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]


class Runs:
    """The runs of a packed row, told by its positions alone.

    A run begins where a position is not the one before plus 1. One that begins at 0 is a sequence. One that begins at
    p > 0 is the rest of a sequence whose first p tokens are those of the sequence before it (that one's own shared
    tokens counted in), so that what several sequences begin with stands, and is computed, once: exactly what it would
    be in each, as causal attention never looks ahead.
    """

    def __init__(self, positions: Tensor) -> None:
        """`positions` (B, T) int64; the first of each row must be 0."""
        self.flat = positions.reshape(-1)
        """(N,) the positions."""
        flat = self.flat
        self.begins = torch.nonzero(torch.diff(flat, prepend=flat[:1]) != 1).squeeze(1)
        """(R,) where each run begins in the row."""
        self.first = flat[self.begins]
        """(R,) the position of each run's first token."""
        self.size = torch.diff(self.begins, append=self.begins.new_tensor([flat.numel()]))
        """(R,) the number of its own tokens."""
        self.run = torch.repeat_interleave(torch.arange(self.begins.numel(), device=flat.device), self.size)
        """(N,) the run of each token."""
        self.longest = int((self.first + self.size).max())
        place = torch.arange(self.longest, device=flat.device)  # (L,)
        rows = torch.arange(self.begins.numel(), device=flat.device).unsqueeze(1)
        source = torch.where(place >= self.first.unsqueeze(1), rows, 0).cummax(0).values  # (R, L) the run that holds it
        self.take = self.begins[source] + place - self.first[source]
        """(R, L) where in the row each place of a sequence stands, as far as `inside`."""
        self.inside = place < (self.first + self.size).unsqueeze(1)
        """(R, L) whether the sequence has that place."""
        self.shared = place < self.first.unsqueeze(1)
        """(R, L) whether it is another run's."""


class Packed:
    """Causal attention inside each sequence of a packed row (see `Runs`).

    The sequences are laid side by side as rows of a padded block for the attention alone, so that everything else in
    the network works on real tokens only.
    """

    def __init__(self, positions: Tensor, device: torch.device | None = None) -> None:
        """`positions` (B, T) int64 as of `Runs`; `device`: where attention is computed, if not there."""
        runs = Runs(positions)
        self._runs, self._longest = runs.inside.shape
        slot = runs.run * self._longest + runs.flat  # (N,) row-major place of each token in the (R, L) block
        take = torch.where(runs.inside, runs.take, 0).reshape(-1)  # (R*L,) padding: any token
        again = torch.nonzero(runs.shared.reshape(-1)).squeeze(1)  # (S,) another run's tokens
        laid = [slot, take, again]
        self._slot, self._take, self._again = laid if device is None else sent(laid, device)
        self._causal = Causal()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return per-sequence causal attention, (B, H, T, Dh)."""
        b, h, t, d = q.shape
        none = self._again[:0]  # what a query of another run's token sees is read there, so it takes no gradient here
        pq, pk, pv = (
            _Spread.apply(x.transpose(1, 2).reshape(b * t, h * d), self._take, self._slot, again)  # type: ignore[no-untyped-call]
            .view(self._runs, self._longest, h, d)
            .transpose(1, 2)
            for x, again in ((q, none), (k, self._again), (v, self._again))
        )
        out = self._causal(layer, pq, pk, pv, scale, dropout)  # (R, H, L, Dh)
        flat: Tensor = _Collect.apply(out.transpose(1, 2).reshape(-1, h * d), self._slot)  # type: ignore[no-untyped-call]
        return flat.view(b, t, h, d).transpose(1, 2)


class _Spread(torch.autograd.Function):
    """Rows (N, D) laid out in the block, (R*L, D).

    Backward reads each token's own place and adds the places `again` where it was repeated; a plain index would add
    them all, padding included, one by one.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, take: Tensor, slot: Tensor, again: Tensor) -> Tensor:
        ctx.save_for_backward(take, slot, again)
        return x.index_select(0, take)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        take, slot, again = ctx.saved_tensors
        found = grads[0].index_select(0, slot)
        if again.numel():
            found.index_add_(0, take[again], grads[0].index_select(0, again))
        return found, None, None, None


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


class Varlen:
    """`Packed` for a GPU in 16 bits: its kernel takes sequences of any lengths behind one another, without a block."""

    def __init__(self, positions: Tensor, device: torch.device) -> None:
        """`positions` (B, T) int64 on the CPU, as of `Runs`."""
        runs = Runs(positions)
        whole = runs.first + runs.size  # (R,) the sequences' lengths
        none = runs.begins[:0]
        ends = torch.cat([torch.zeros(2, 1, dtype=torch.int64), torch.stack([runs.size, whole]).cumsum(1)], dim=1)
        shares = bool(runs.shared.any())
        take = runs.take[runs.inside] if shares else none  # (M,) the row's place of every key
        slot = ends[1, :-1][runs.run] + runs.flat if shares else none  # (N,) a token's own place among the keys
        again = torch.nonzero(runs.shared[runs.inside]).squeeze(1) if shares else none
        ends, self._take, self._slot, self._again = sent([ends, take, slot, again], device)
        self._ends, self._shares = ends.to(torch.int32), shares
        self._most = int(runs.size.max()), runs.longest

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
        if self._shares:
            k, v = (
                _Spread.apply(x.reshape(b * t, h * d), self._take, self._slot, self._again).view(-1, h, d)  # type: ignore[no-untyped-call]
                for x in (k, v)
            )
        found: Tensor = torch.ops.aten._flash_attention_forward(
            q, k, v, self._ends[0], self._ends[1], *self._most, dropout, True, False, scale=scale
        )[0]
        return found.view(b, t, h, d).transpose(1, 2)
