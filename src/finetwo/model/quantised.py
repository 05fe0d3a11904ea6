"""Matrices kept as int8 or int4 codes with scales, and the linear and the embedding that use them for a weight.

It knows numbers and shapes, and must not know files, caches or tokens. Its one invariant: a product's rows each depend
on their own row of the input alone, by the compiled kernel as by torch (where bits may differ with the shape).

int8: codes -127..127, one float32 scale an output (a row of the matrix). int4: codes -8..7, one bfloat16 scale for each
32 inputs of an output. The input of a product is itself rounded to int8, a scale for each 32 numbers of a row: the
error bounds that the tests state hold for both roundings together.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, pad

from finetwo.core.errors import InputError
from finetwo.model import kernel
from finetwo.model.linear import Linear
from finetwo.model.lora import merge_lora
from finetwo.model.network import Network

Kind = Literal["int8", "int4"]
KINDS: tuple[Kind, ...] = ("int8", "int4")
BLOCK, TILE = 32, 16
"""Inputs that share a scale; outputs that the kernel computes together."""
_ROWS = 2048  # of a matrix, a multiple of TILE: quantised or packed at a time, so that what is needed between is small


def check_kind(where: str, kind: str) -> Kind:
    """Return `kind` if it is one of ours; InputError for another."""
    for known in KINDS:
        if kind == known:
            return known
    raise InputError(where, "must be int8 or int4", kind, "int8 is nearly exact, int4 smaller and less exact")


def rounded(x: Tensor) -> Tensor:
    """Return `x` (..., K) as the kernel sees it: in blocks of 32, rounded to -127..127 times a scale, float32."""
    width = x.shape[-1]
    blocks = pad(x.float(), (0, -width % BLOCK)).unflatten(-1, (-1, BLOCK))  # (..., blocks, 32)
    largest = blocks.abs().amax(-1, keepdim=True)
    by = torch.where(largest > 1e-30, 127.0 / largest, torch.zeros_like(largest))
    seen: Tensor = ((blocks * by).round() * (largest / 127.0)).flatten(-2)
    return seen[..., :width]


class Codes(nn.Module):
    """A matrix (outputs, inputs) in codes, in the plain layout of files or in the packed layout of the kernel.

    Plain codes are int8 (N, K), or for int4 uint8 (N, blocks * 16): byte j of a block holds inputs j (low) and j + 16.
    """

    codes: Tensor
    scales: Tensor

    def __init__(self, kind: Kind, shape: tuple[int, int], codes: Tensor, scales: Tensor) -> None:
        super().__init__()
        self.kind: Kind = kind
        self.outputs, self.inputs = shape
        self.packed = False
        self.register_buffer("codes", codes, persistent=False)
        self.register_buffer("scales", scales, persistent=False)

    @staticmethod
    def shapes(kind: Kind, outputs: int, inputs: int) -> tuple[tuple[int, int], tuple[int, ...]]:
        """The shapes of plain codes and scales."""
        blocks = -(-inputs // BLOCK)
        return ((outputs, inputs), (outputs,)) if kind == "int8" else ((outputs, blocks * 16), (outputs, blocks))

    @classmethod
    @torch.no_grad()
    def of(cls, weight: Tensor, kind: Kind) -> Codes:
        """Quantise a matrix (outputs, inputs) of any float type."""
        parts = [(_int8 if kind == "int8" else _int4)(rows.float()) for rows in weight.detach().split(_ROWS)]
        codes, scales = (torch.cat(found) for found in zip(*parts, strict=True))
        return cls(kind, (weight.shape[0], weight.shape[1]), codes, scales)

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return sum(t.numel() * t.element_size() for t in (self.codes, self.scales))

    def plain(self) -> Tensor:
        """Return the codes in the plain layout."""
        return _unpacked(self) if self.packed else self.codes

    @property
    def packed_bytes(self) -> int:
        """Size of the codes in the kernel's layout."""
        blocks = -(-self.inputs // BLOCK) * -(-self.outputs // TILE)
        return blocks * (TILE * BLOCK if self.kind == "int8" else TILE * BLOCK // 2 + 2 * TILE)

    def pack(self, into: Tensor | None = None) -> None:
        """Change to the kernel's layout, which the codes keep, `into` memory of `packed_bytes` if some is given."""
        if self.packed:
            return
        packed = torch.empty(self.packed_bytes, dtype=torch.uint8) if into is None else into
        at = 0
        for codes, scales in zip(self.codes.split(_ROWS), self.scales.split(_ROWS), strict=True):
            part = _packed(self.kind, self.inputs, codes, scales)
            packed[at : at + part.numel()] = part
            at += part.numel()
        self.codes, self.packed = packed, True

    def weight(self) -> Tensor:
        """Return the matrix (N, K) in float32."""
        codes = self.plain()
        if self.kind == "int8":
            return codes.float().mul_(self.scales[:, None])
        low, high = (codes & 15).view(-1, 16), (codes >> 4).view(-1, 16)
        blocks = torch.cat([low, high], 1).float().sub_(8).view(self.outputs, -1, BLOCK)
        return blocks.mul_(self.scales.float()[..., None]).flatten(1)[:, : self.inputs]

    def rows(self, index: Tensor) -> Tensor:
        """Return rows of an int8 matrix, (..., K) float32, for `index` of any shape."""
        if self.packed:
            flat = self.codes.view(-1, -(-self.inputs // BLOCK) * BLOCK // 4, TILE, 4)  # (tiles, quads, 16, 4)
            codes = flat[index // TILE, :, index % TILE].flatten(-2)[..., : self.inputs].float() - kernel.zero()
            signed = torch.where(codes > 127, codes - 256, codes)  # where the kernel's zero is 0, a byte is signed
            return signed * self.scales[index][..., None]
        return embedding(index, self.codes).float() * self.scales[index][..., None]

    def multiply(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return `x` (..., K) rounded, times the matrix transposed, (..., N) float32."""
        flat = x.reshape(-1, self.inputs).float()
        if self.packed and flat.is_cpu:
            y = kernel.multiply(self.described(bias), flat.detach())
        else:
            y = rounded(flat) @ self.weight().t()
            y = y if bias is None else y + bias
        return y.view(*x.shape[:-1], self.outputs)

    def described(self, bias: Tensor | None, outputs: int | None = None) -> kernel.CLinear:
        """The packed matrix, or its first `outputs` rows, as the kernel takes it; it must outlive that."""
        return kernel.linear(self.kind, (outputs or self.outputs, self.inputs), self.codes, self.scales, bias)


def _int8(w: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales of rows (R, K): the largest number of a row becomes 127."""
    scales = w.abs().amax(1) / 127.0
    by = torch.where(scales > 0, 1.0 / scales, torch.zeros_like(scales))
    return (w * by[:, None]).round_().clamp_(-127, 127).to(torch.int8), scales


def _int4(w: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (two a byte) and scales of rows (R, K): for each 32, of a few scales that with the least squared error."""
    groups = pad(w, (0, -w.shape[1] % BLOCK)).view(w.shape[0], -1, BLOCK)
    size, index = groups.abs().max(-1)
    signed = groups.gather(-1, index[..., None]).squeeze(-1)  # the largest number, with its sign: -8 has no opposite
    best = torch.full_like(size, float("inf"))
    codes, scales = torch.zeros_like(groups), torch.zeros_like(size)
    for span in (signed / -8, size / 7):
        for part in (1.0, 0.92, 0.84):
            scale = (span * part).bfloat16().float()
            by = torch.where(scale != 0, 1.0 / scale, torch.zeros_like(scale))
            tried = (groups * by[..., None]).round_().clamp_(-8, 7)
            error = (tried * scale[..., None]).sub_(groups).square_().sum(-1)
            better = error < best
            best = torch.where(better, error, best)
            scales = torch.where(better, scale, scales)
            codes = torch.where(better[..., None], tried, codes)
    nibbles = (codes + 8).to(torch.uint8)
    return (nibbles[..., :16] | nibbles[..., 16:] << 4).flatten(1), scales.bfloat16()


def _packed(kind: Kind, inputs: int, codes: Tensor, scales: Tensor) -> Tensor:
    """Plain rows -> bytes by tile of 16 outputs and block of 32 inputs, as native/codes.h has them; zeros fill up."""
    blocks, tall = -(-inputs // BLOCK), (0, 0, 0, -codes.shape[0] % TILE)
    if kind == "int8":
        wide = pad(codes, (0, blocks * BLOCK - inputs, *tall[2:])).view(-1, TILE, blocks, 8, 4)
        return wide.permute(0, 2, 3, 1, 4).contiguous().flatten().view(torch.uint8).add_(kernel.zero())
    quads = pad(codes, tall).view(-1, TILE, blocks, 4, 4).permute(0, 2, 3, 1, 4).flatten(2)  # (T, B, 256)
    groups = pad(scales, tall).view(-1, TILE, blocks).transpose(1, 2).contiguous().view(torch.uint8)
    return torch.cat([quads, groups], 2).flatten()  # (T, B, 288)


def _unpacked(matrix: Codes) -> Tensor:
    blocks = -(-matrix.inputs // BLOCK)
    if matrix.kind == "int8":
        codes = (matrix.codes - kernel.zero()).view(torch.int8).view(-1, blocks, 8, TILE, 4)
        return codes.permute(0, 3, 1, 2, 4).reshape(-1, blocks * BLOCK)[: matrix.outputs, : matrix.inputs]
    quads = matrix.codes.view(-1, blocks, 288)[..., :256].reshape(-1, blocks, 4, TILE, 4)
    return quads.permute(0, 3, 1, 2, 4).reshape(-1, blocks * 16)[: matrix.outputs]


class QuantisedLinear(Linear):
    """A linear whose weight is stored as codes; what is added to it is the adapter's slot, as ever."""

    def __init__(self, matrix: Codes, bias: Tensor) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = matrix.inputs, matrix.outputs
        self.matrix, self.adapter = matrix, None
        self.bias = nn.Parameter(bias.detach(), requires_grad=False)

    def working_copies(self, dtype: torch.dtype) -> None:
        """None: the codes are what computes."""

    def base(self, x: Tensor) -> Tensor:
        """The stored weight applied to `x` (..., in) -> (..., out)."""
        return self.matrix.multiply(x, self.bias).to(x.dtype)


class QuantisedEmbedding(nn.Module):
    """A table of rows stored as codes, in int8 always: it is the head as well, whose errors nothing corrects."""

    def __init__(self, matrix: Codes) -> None:
        super().__init__()
        self.matrix = matrix
        self._weight: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """The table (V, D) in float32, made when it is first asked for: decoding with the kernel never does."""
        if self._weight is None:
            self._weight = self.matrix.weight()
        return self._weight

    def forward(self, tokens: Tensor) -> Tensor:  # noqa: D102
        return self.matrix.rows(tokens)

    def project(self, hidden: Tensor) -> Tensor:
        """Return logits (..., V) for hidden states (..., D)."""
        return self.matrix.multiply(hidden)


def block_linears(network: Network) -> Iterator[tuple[nn.Module, str]]:
    """Where the linears of the blocks stand: the part of a block, and the name in it."""
    block: Any
    for block in network.transformer.h:
        yield from ((block.attn, "c_attn"), (block.attn, "c_proj"), (block.mlp, "c_fc"), (block.mlp, "c_proj"))


@torch.no_grad()
def quantise(network: Network, kind: Kind) -> None:
    """Turn a network into codes, in place: linears in `kind`, the token embedding in int8; an adapter is merged first.

    Raises:
        InputError: the network is quantised already.
    """
    if network.quantised is not None:
        raise InputError("--quantize", f"the model is quantised already, in {network.quantised}", kind, "leave it out")
    if network.lora is not None:
        merge_lora(network)
        network.lora = None
    trunk = network.transformer
    setattr(trunk, "wte", QuantisedEmbedding(Codes.of(trunk.wte.weight, "int8")))  # noqa: B010 - a stand-in
    for part, name in block_linears(network):
        linear = getattr(part, name)
        setattr(part, name, QuantisedLinear(Codes.of(linear.weight.t(), kind), linear.bias))
    network.quantised = kind
    network.requires_grad_(False)
    network.raised()
