"""The numeric proof: with the real model, labels outside of the mask and the content of padding change nothing.

It knows networks and prepared records, and no files. Its one invariant: it compares losses and gradients that were
computed, on the network as it is, and leaves weights and gradients as it found them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from finetwo.data.sequences import IGNORE
from finetwo.model.attend import Causal
from finetwo.model.network import Network
from finetwo.train.optimizer import trainable

TOLERANCE = 1e-5
"""Largest relative change that passes for none: the sums may run in another order."""


@dataclass(frozen=True)
class Sample:
    """Records as a network is given them: tokens, targets and `may`, all (B, T); targets are IGNORE where none is.

    `may` tells where a target is allowed: at the tokens before an answer's tokens and its end, told from the texts.
    `real` (B, T) tells what is no padding.
    """

    tokens: Tensor
    targets: Tensor
    may: Tensor
    real: Tensor


def sample_of(
    rows: Sequence[tuple[Sequence[int], Sequence[int], Sequence[bool], Sequence[bool]]], limit: int = 256
) -> Sample:
    """Return rows of (tokens, targets, may, real), each cut at `limit` tokens, padded on the right."""
    width = min(limit, max(len(r[0]) for r in rows)) + 1  # a column of padding is always there
    tokens = torch.zeros(len(rows), width, dtype=torch.int64)
    targets = torch.full((len(rows), width), IGNORE, dtype=torch.int64)
    may, real = torch.zeros(len(rows), width, dtype=torch.bool), torch.zeros(len(rows), width, dtype=torch.bool)
    for i, row in enumerate(rows):
        n = min(limit, len(row[0]))
        for whole, part in zip((tokens, targets, may, real), row, strict=True):
            whole[i, :n] = torch.as_tensor([*part[:n]], dtype=whole.dtype)
    return Sample(tokens, targets, may, real)


def prove(network: Network, sample: Sample) -> dict[str, Any]:
    """Return what changes when labels outside of the mask and the tokens of padding are replaced by others.

    `loss_change` and `gradient_change` are relative; `outside_gradient` is the largest gradient at a hidden state where
    nothing may be learned; `control_change` shows that a label inside of the mask does matter.
    """
    device, was_training = next(network.parameters()).device, network.training
    network.eval()
    tokens, targets, may, real = (t.to(device) for t in (sample.tokens, sample.targets, sample.may, sample.real))
    classes = len(network.config.labels) or network.config.vocab_size
    try:
        loss, gradients, hidden = _loss(network, tokens, targets)
        read = real if network.config.labels and network.config.pooling == "mean" else may
        outside = float(hidden[~read].abs().max())
        live = (targets != IGNORE) & ~may
        other_targets = torch.where(live, (targets + 1) % classes, targets)
        other_tokens = torch.where(real, tokens, (tokens + 7) % network.config.vocab_size)
        changed, others, _ = _loss(network, other_tokens, other_targets)
        control = _loss(network, tokens, _one_changed(targets, may, classes))[0]
    finally:
        network.train(was_training)
    scale = max((float(g.abs().max()) for g in gradients), default=0.0) or 1.0
    found: dict[str, Any] = {
        "records": int(tokens.shape[0]),
        "loss": loss,
        "loss_change": abs(changed - loss) / max(abs(loss), 1e-12),
        "gradient_change": max((float((a - b).abs().max()) for a, b in zip(gradients, others, strict=True)), default=0)
        / scale,
        "outside_gradient": outside,
        "control_change": abs(control - loss) / max(abs(loss), 1e-12),
    }
    found["ok"] = (
        found["loss_change"] <= TOLERANCE
        and found["gradient_change"] <= TOLERANCE
        and outside == 0.0
        and found["control_change"] > 0
    )
    found["words"] = (
        f"on {found['records']} records, other labels outside of the mask and other padding change the loss by "
        f"{found['loss_change']:.1e} and the gradient by {found['gradient_change']:.1e} (one label inside of it: "
        f"{found['control_change']:.1e}); largest gradient outside {outside:.1e}"
    )
    return found


def _one_changed(targets: Tensor, may: Tensor, classes: int) -> Tensor:
    """Targets with the first allowed one changed."""
    at = torch.nonzero((targets != IGNORE) & may)
    found = targets.clone()
    if len(at):
        row, column = int(at[0, 0]), int(at[0, 1])
        found[row, column] = (found[row, column] + 1) % classes
    return found


def _loss(network: Network, tokens: Tensor, targets: Tensor) -> tuple[float, list[Tensor], Tensor]:
    """Loss, its gradients by parameter that learns, and its gradient at the trunk's output (B, T, D)."""
    positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
    seen: list[Tensor] = []
    handle = network.transformer.register_forward_hook(lambda module, given, out: seen.append(out))
    try:
        with torch.enable_grad():
            loss = network.loss(tokens, positions, targets, Causal())
    finally:
        handle.remove()
    parameters = list(trainable(network).values())
    grads: tuple[Tensor | None, ...] = torch.autograd.grad(loss, [seen[0], *parameters], allow_unused=True)
    at_hidden = torch.zeros_like(seen[0]) if grads[0] is None else grads[0]
    return float(loss.detach()), [g for g in grads[1:] if g is not None], at_hidden.detach()
