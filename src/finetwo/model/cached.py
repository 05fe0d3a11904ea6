"""Attention over keys and values kept from earlier forwards: the two kinds of `Attend` that generation needs.

`Fill` stores a prompt, `Decode` adds one token to every slot; neither knows tokens, sampling or when a sequence ends.
Invariant: in float32 what a slot gets does not depend, bit for bit, on what the other slots hold.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from finetwo.model.attend import Causal
from finetwo.model.config import GPT2Config

BLOCK = 64
"""Positions come in blocks of this many, so that a longer neighbour only adds whole blocks of exact zeros."""
_ALIGN = 16  # numbers: a head padded with zeros to 64 bytes starts aligned in every slot, and BLAS rounds alike


def round_up(value: int, multiple: int) -> int:
    """Return the smallest multiple of `multiple` that is >= `value`."""
    return -(-value // multiple) * multiple


class KVCache:
    """Keys and values of every layer, for `slots` sequences of at most `capacity` tokens (rounded up to a block)."""

    def __init__(
        self, config: GPT2Config, slots: int, capacity: int, *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.heads, self.slots, self.capacity = config.n_head, slots, round_up(capacity, BLOCK)
        self.width = round_up(config.n_embd // config.n_head, _ALIGN)
        shape = (config.n_layer, slots * self.heads, self.capacity, self.width)  # (L, R*H, S, Dh)
        # Zeros, not empty: a masked position counts 0 x value, and that must not be 0 x NaN.
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)

    @staticmethod
    def slot_bytes(config: GPT2Config, capacity: int, dtype: torch.dtype) -> int:
        """Memory of one slot in bytes."""
        width = round_up(config.n_embd // config.n_head, _ALIGN)
        return 2 * config.n_layer * config.n_head * round_up(capacity, BLOCK) * width * dtype.itemsize

    def rows(self, first: int, count: int) -> slice:
        """Where the heads of `count` slots from `first` on lie in dimension 1."""
        return slice(first * self.heads, (first + count) * self.heads)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of one slot to another."""
        for store in (self.keys, self.values):
            store[:, self.rows(target, 1), :length] = store[:, self.rows(source, 1), :length]


class Fill:
    """Causal attention over one whole prompt that also stores its keys and values in `slot`."""

    def __init__(self, cache: KVCache, slot: int) -> None:
        self._cache, self._rows, self._causal = cache, cache.rows(slot, 1), Causal()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return causal attention, (1, H, T, Dh), for q, k, v of that shape."""
        length, width = k.shape[2], k.shape[3]
        self._cache.keys[layer, self._rows, :length, :width] = k[0]
        self._cache.values[layer, self._rows, :length, :width] = v[0]
        return self._causal(layer, q, k, v, scale, dropout)


class Decode:
    """One new token in each of the slots from `first` on: it is stored at its position and sees all up to itself.

    Rows beyond those with a position only fill up the shape that the linears want: they see nothing. Every head of
    every slot is one product of fixed shape in a batched multiplication. (The fused CPU kernel is not used: measured
    with torch 2.13, its result for a row changes with the number of rows.)
    """

    def __init__(self, cache: KVCache, first: int, positions: Tensor, span: int) -> None:
        """`positions` (R,) int64 of the new tokens; `span`: how many positions are looked at, a multiple of BLOCK."""
        self._cache, self._live, self._span = cache, positions.numel(), span
        self._rows = cache.rows(first, self._live)
        self._places = positions.repeat_interleave(cache.heads)  # (R*H,)
        self._heads = torch.arange(self._rows.start, self._rows.stop, device=positions.device)
        hidden = torch.arange(span, device=positions.device) > self._places[:, None]
        mask = torch.zeros(hidden.shape, device=positions.device, dtype=cache.keys.dtype)
        self._mask = mask.masked_fill_(hidden, float("-inf")).unsqueeze(1)  # (R*H, 1, S)

    def _flat(self, x: Tensor) -> Tensor:
        """(B, H, 1, Dh) -> (R*H, Dh) of the live rows, padded with zeros to the cache's width."""
        flat = x[: self._live].reshape(-1, x.shape[-1])
        return flat if flat.shape[1] == self._cache.width else pad(flat, (0, self._cache.width - flat.shape[1]))

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return what each new token sees, (B, H, 1, Dh), for q, k, v of that shape, B >= R; there is no dropout."""
        keys, values = self._cache.keys[layer], self._cache.values[layer]
        keys.index_put_((self._heads, self._places), self._flat(k))
        values.index_put_((self._heads, self._places), self._flat(v))
        seen_keys = keys[self._rows, : self._span].transpose(1, 2)  # (R*H, Dh, S)
        scores = torch.baddbmm(self._mask, self._flat(q).unsqueeze(1), seen_keys, alpha=scale)
        weights = scores.softmax(-1, dtype=torch.float32).to(values.dtype)
        seen = torch.bmm(weights, values[self._rows, : self._span])  # (R*H, 1, Dh)
        live = seen[..., : q.shape[3]].view(-1, *q.shape[1:])
        return live if self._live == q.shape[0] else pad(live, (0, 0, 0, 0, 0, 0, 0, q.shape[0] - self._live))
