"""Low-rank adapters for the linears of a network (Hu et al. 2021, arXiv:2106.09685).

An adapter fills a linear's `adapter` slot and knows nothing of how the weight is stored. Invariants: a fresh
adapter changes nothing (B is zero), and merging is one-way: it returns plain linears.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from finetwo.core.config import LoraConfig
from finetwo.core.errors import InputError
from finetwo.model.linear import Linear


class LowRank(nn.Module):
    """One of the two small matrices, in PEFT's layout (out, in)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(out_features, in_features))


class _AddLowRank(torch.autograd.Function):
    """`y += scale * (x A^T) B^T` inside the second product: the scale and the sum take no pass of their own.

    The products are made in the precision of x; A and B get their gradients in their own.
    """

    @staticmethod
    def forward(ctx: Any, y: Tensor, x: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        ctx.precisions, ctx.scale = (a.dtype, b.dtype), scale
        a, b = a.to(x.dtype), b.to(x.dtype)
        inner = x @ a.t()  # (N, r)
        ctx.save_for_backward(x, inner, a, b)
        ctx.mark_dirty(y)
        return y.addmm_(inner, b.t(), alpha=scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (g,) = grads
        x, inner, a, b = ctx.saved_tensors
        back = (g @ b).mul_(ctx.scale)  # (N, r)
        return (
            g,
            back @ a if ctx.needs_input_grad[1] else None,
            (back.t() @ x).to(ctx.precisions[0]) if ctx.needs_input_grad[2] else None,
            (g.t() @ inner).mul_(ctx.scale).to(ctx.precisions[1]) if ctx.needs_input_grad[3] else None,
            None,
        )


class LoraAdapter(nn.Module):
    """`scale * B(A(dropout(x)))` with A (r, in) drawn at random and B (out, r) zero."""

    def __init__(self, in_features: int, out_features: int, config: LoraConfig) -> None:
        super().__init__()
        lora = config.resolved()
        assert lora.rank is not None and lora.alpha is not None and lora.dropout is not None
        self.lora_A = LowRank(in_features, lora.rank)
        self.lora_B = LowRank(lora.rank, out_features)
        self.scale = lora.alpha / (math.sqrt(lora.rank) if lora.rslora else lora.rank)
        self.probability = lora.dropout

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Return y (N, out) with this adapter's part for x (N, in) added, in place."""
        if self.training and self.probability:
            x = dropout(x, self.probability)
        x = x.to(y.dtype)
        summed: Tensor = _AddLowRank.apply(y, x, self.lora_A.weight, self.lora_B.weight, self.scale)  # type: ignore[no-untyped-call]
        return summed

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Draw A as PEFT does, uniform in +-sqrt(1/in) (Kaiming with a = sqrt 5), and set B to zero."""
        bound = 1.0 / math.sqrt(self.lora_A.weight.shape[1])
        self.lora_A.weight.uniform_(-bound, bound, generator=generator)
        self.lora_B.weight.zero_()

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The change of the weight that the adapter stands for, (in, out) float32."""
        return (self.lora_B.weight.float() @ self.lora_A.weight.float()).t() * self.scale


def linears(network: nn.Module) -> dict[str, Linear]:
    """Every linear of the network by its dotted name, in order."""
    return {name: m for name, m in network.named_modules() if isinstance(m, Linear)}


def find_targets(network: nn.Module, targets: str, where: str = "--lora.targets") -> dict[str, Linear]:
    """Return the linears that the comma-separated `targets` name; InputError when one of them matches none.

    A target is a layer's name without its block (`attn.c_attn`), its last part (`c_attn`), a full dotted name, or
    `all-linear`.
    """
    known = linears(network)
    if targets.strip() == "all-linear":
        return known
    found: dict[str, Linear] = {}
    for target in (t.strip() for t in targets.split(",")):
        matches = {n: m for n, m in known.items() if target and (n == target or n.endswith("." + target))}
        if not matches:
            names = sorted({n.split(".h.", 1)[-1].split(".", 1)[-1] for n in known})
            raise InputError(where, "no layer has this name", target, f"use {', '.join(names)} or all-linear")
        found.update(matches)
    return {n: m for n, m in known.items() if n in found}


def lora_config(settings: Mapping[str, object]) -> LoraConfig:
    """Settings from keyword arguments; InputError for an unknown name or a wrong type. Targets may be a list."""
    known: dict[str, Any] = {
        "rank": int,
        "alpha": (int, float),
        "dropout": (int, float),
        "targets": str,
        "rslora": bool,
    }
    given = dict(settings)
    if isinstance(given.get("targets"), list | tuple):
        given["targets"] = ",".join(map(str, given["targets"]))  # type: ignore[call-overload]
    for name, value in given.items():
        if name not in known:
            hint = "rank" if name == "r" else ", ".join(known)
            raise InputError(f"add_lora({name})", "no such setting", None, f"use {hint}")
        wanted = known[name]
        if value is not None and (not isinstance(value, wanted) or (isinstance(value, bool) and wanted is not bool)):
            raise InputError(f"add_lora({name})", "has the wrong type", value, "rank=8, alpha=16, targets='c_attn'")
    return LoraConfig(**given)  # type: ignore[arg-type]


def add_lora(network: nn.Module, config: LoraConfig, seed: int = 0) -> int:
    """Fill the adapter slot of every targeted linear; return how many. InputError on bad targets or a used slot."""
    config.check()
    lora = config.resolved()
    assert lora.targets is not None and lora.rank is not None
    generator = torch.Generator().manual_seed(seed)
    chosen = find_targets(network, lora.targets)
    for name, module in chosen.items():
        if module.adapter is not None:
            raise InputError(
                "--lora", "the model already carries an adapter", name, "merge it first: finetwo export --to merged"
            )
        if lora.rank > min(module.in_features, module.out_features):
            raise InputError(
                "--lora.rank", f"larger than the layer {name} ({module.in_features} x {module.out_features})", lora.rank
            )
        adapter = LoraAdapter(module.in_features, module.out_features, lora)
        adapter.initialise(generator)
        module.adapter = adapter.to(module.weight.device, module.weight.dtype).train(module.training)
    return len(chosen)


def freeze_all_but_lora(network: nn.Module) -> None:
    """Let only adapter parameters learn; InputError when there are none."""
    adapted = [n for n, _ in network.named_parameters() if ".adapter." in n]
    if not adapted:
        raise InputError("freeze_all_but_lora", "the model has no adapter", None, "call add_lora(...) first")
    for name, p in network.named_parameters():
        p.requires_grad_(".adapter." in name)


@torch.no_grad()
def merge_lora(network: nn.Module) -> int:
    """Add each adapter's change to its weight (summed in float32) and empty the slot; return how many were merged."""
    merged = 0
    for module in linears(network).values():
        if isinstance(module.adapter, LoraAdapter):
            module.absorb(module.adapter.delta())
            module.adapter = None
            merged += 1
    return merged
