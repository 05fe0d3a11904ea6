"""Weights in 4 bits: NormalFloat4 in blocks of 64 with 8-bit scales (QLoRA, Dettmers et al. 2023, arXiv:2305.14314).

Written in plain torch and not left to a library: it is these lines against 125 MB of bitsandbytes (26 MB of torchao)
and their import, runs wherever torch does, and adds no dependency to the install; both libraries' speed is spent on
16-bit CUDA decoding, whereas in training the matrix product outweighs unpacking by far. It must not know what is
computed with the weights. Invariant: the 4-bit codes are bit for bit those of bitsandbytes for the same matrix.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad

from finetwo.model.stored import StoredLinear, bits, floats

BLOCK, SCALES = 64, 256
"""Weights that share a scale, and scales that share one of their own."""
CODE = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""The 16 values: quantiles of a normal distribution, scaled to [-1, 1], one of them 0."""


def encode(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes (N,) uint8 in 0..15 and the largest absolute value of each block (N / 64,), N a multiple of 64."""
    flat = weight.detach().float().reshape(-1)
    blocks = pad(flat, (0, -flat.numel() % BLOCK)).view(-1, BLOCK)
    largest = blocks.abs().amax(1)
    code = weight.new_tensor(CODE, dtype=torch.float32)
    scaled = (blocks * (1.0 / largest.clamp(min=1e-38)).unsqueeze(1)).clamp_(-1, 1)
    middles = (code[:-1] + code[1:]) / 2
    return torch.bucketize(scaled.view(-1), middles, out_int32=True).to(torch.uint8), largest


class NF4Linear(StoredLinear):
    """A linear whose weight takes 4.13 bits a number.

    The scales are stored in 8 bits as well, evenly spaced in their logarithm between the smallest and the largest of
    256 (the paper takes an 8-bit float): a scale is then off by a small share of itself, whatever its neighbours are.
    """

    kind: ClassVar[str] = "nf4"
    packed: Tensor
    scales: Tensor
    lowest: Tensor
    steps: Tensor
    pairs: Tensor

    def store(self, weight: Tensor) -> None:  # noqa: D102
        codes, largest = encode(weight)
        groups = pad(largest, (0, -largest.numel() % SCALES)).view(-1, SCALES)
        filled = torch.where(groups > 0, groups, groups.amax(1, keepdim=True))  # zeros need no scale: their code is 0
        logs = filled.clamp(min=1e-38).log2()
        lowest, highest = torch.aminmax(logs, dim=1, keepdim=True)
        steps = ((highest - lowest) / 255).clamp(min=1e-12)
        code = torch.tensor(CODE, device=weight.device)
        both = torch.stack([code.repeat_interleave(16), code.repeat(16)], 1)  # (256, 2): a byte's two values
        self.register_buffer("packed", codes[::2] << 4 | codes[1::2])  # (N / 2,)
        self.register_buffer("scales", torch.round((logs - lowest) / steps).to(torch.uint8))  # (G, 256)
        self.register_buffer("lowest", bits(lowest))  # (G, 1)
        self.register_buffer("steps", bits(steps))
        self.register_buffer("pairs", both.contiguous().view(torch.int64).squeeze(1))

    def largest(self) -> Tensor:
        """The scale of each block as it was stored, (blocks,) float32."""
        scales = torch.exp2(self.scales * floats(self.steps) + floats(self.lowest))
        return scales.view(-1)[: self.packed.numel() * 2 // BLOCK]

    def dequantised(self, dtype: torch.dtype) -> Tensor:  # noqa: D102
        # One look-up a byte brings both values as one 64-bit number.
        values = torch.index_select(self.pairs, 0, self.packed.int()).view(torch.float32)
        values = values.view(-1, BLOCK).mul_(self.largest().unsqueeze(1)).view(-1)
        size = self.in_features * self.out_features
        return values[:size].view(self.in_features, self.out_features).to(dtype)
