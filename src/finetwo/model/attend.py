"""How queries see keys: the one argument of the trunk's forward that carries masks, packing and caches.

An `Attend` is called once per layer with queries, keys and values; the trunk knows nothing of what it does with
them. Invariant: `Packed` equals `Causal` on each run taken alone.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention


class Attend(Protocol):
    """Anything callable like `Causal`."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return what each query sees, (B, H, T, Dh), given q, k, v of that shape in layer `layer`."""


class Causal:
    """Each position sees itself and all before it; right padding is invisible to real tokens."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return causal attention, (B, H, T, Dh)."""
        return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, dropout_p=dropout)


class Packed:
    """Causal attention inside each run of a packed row; runs begin where `positions` is 0 again.

    The runs are laid side by side as rows of a padded block for the attention alone, so that everything else in the
    network works on real tokens only.
    """

    def __init__(self, positions: Tensor) -> None:
        """`positions` (B, T) int64; the first column must be 0."""
        flat = positions.reshape(-1)
        starts = torch.nonzero(flat == 0).squeeze(1)  # (R,)
        run = torch.cumsum((flat == 0).long(), 0) - 1  # (N,)
        lengths = torch.diff(starts, append=starts.new_tensor([flat.numel()]))
        self._runs, self._longest = starts.numel(), int(lengths.max())
        self._slot = run * self._longest + flat  # (N,) row-major place of each token in the (R, L) block
        self._causal = Causal()

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        """Return per-run causal attention, (B, H, T, Dh)."""
        b, h, t, d = q.shape
        qkv = torch.stack((q, k, v)).permute(1, 3, 0, 2, 4).reshape(b * t, 3, h, d)  # (N, 3, H, Dh)
        block = qkv.new_zeros(self._runs * self._longest, 3, h, d).index_copy(0, self._slot, qkv)
        pq, pk, pv = block.view(self._runs, self._longest, 3, h, d).permute(2, 0, 3, 1, 4)
        out = self._causal(layer, pq, pk, pv, scale, dropout)  # (R, H, L, Dh)
        flat = out.transpose(1, 2).reshape(self._runs * self._longest, h, d).index_select(0, self._slot)
        return flat.view(b, t, h, d).transpose(1, 2)
