"""The numeric proof: with the real model, labels outside of the mask and the content of padding change nothing.

It knows networks and prepared records, and no files. Its one invariant: it compares losses and gradients that were
computed, on the network as it is, and leaves weights and gradients as it found them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from finetwo.data.sequences import IGNORE
from finetwo.model.attend import Causal
from finetwo.model.network import Network
from finetwo.train.optimizer import trainable

TOLERANCE = 1e-5
"""Largest relative change that passes for none: the sums run in another order. One label more changes far more."""


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

    Training's loss and gradient are held against a second computation, over the logits of all places, that is given
    random labels wherever nothing may be learned, and other padding: `loss_change` is relative to the loss,
    `gradient_change` to the largest gradient, with or without one changed label inside of the mask.
    `outside_gradient` is training's largest gradient at a hidden state where nothing may be learned; `control_change`
    shows that a label inside of the mask does matter.
    """
    device, was_training = next(network.parameters()).device, network.training
    network.eval()
    tokens, targets, may, real = (t.to(device) for t in (sample.tokens, sample.targets, sample.may, sample.real))
    try:
        loss, gradients, hidden = _gradients(network, lambda: _training_loss(network, tokens, targets))
        read = real if network.config.labels and network.config.pooling == "mean" else may
        outside = float(hidden[~read].abs().max()) if bool((~read).any()) else 0.0
        padded = torch.where(real, tokens, (tokens + 7) % network.config.vocab_size)
        labels = _labels(network, tokens, targets, may)
        other, others, _ = _gradients(network, lambda: _reference_loss(network, padded, labels, may))
        inside = _one_changed(network, targets, may)
        control, controls, _ = _gradients(network, lambda: _training_loss(network, tokens, inside))
    finally:
        network.train(was_training)
    # of a text that the network knows by heart the gradient is all but nothing, and no measure
    scale = max((float(g.abs().max()) for g in [*gradients, *controls]), default=0.0) or 1.0
    pairs = zip(gradients, others, strict=True)
    found: dict[str, Any] = {
        "records": int(tokens.shape[0]),
        "loss": loss,
        "loss_change": abs(other - loss) / max(abs(loss), 1e-12),
        "gradient_change": max((float((a - b).abs().max()) for a, b in pairs), default=0.0) / scale,
        "outside_gradient": outside,
        "control_change": abs(control - loss) / max(abs(loss), 1e-12),
    }
    small = found["loss_change"] <= TOLERANCE and found["gradient_change"] <= TOLERANCE
    found["ok"] = bool(small and outside == 0.0 and found["control_change"] > 0)
    found["words"] = (
        f"on {found['records']} records, random labels outside of the mask and other padding change the loss by "
        f"{found['loss_change']:.1e} and the gradient by {found['gradient_change']:.1e} of itself (one label inside: "
        f"{found['control_change']:.1e}); largest gradient outside {outside:.1e}"
    )
    return found


def _labels(network: Network, tokens: Tensor, targets: Tensor, may: Tensor) -> Tensor:
    """A label everywhere (B, T): where one is allowed the target, else the token that follows; elsewhere random."""
    classes = len(network.config.labels) or network.config.vocab_size
    follows = torch.cat([tokens[:, 1:], tokens[:, :1]], dim=1) % classes
    random = torch.randint(classes, tokens.shape, generator=torch.Generator().manual_seed(1)).to(tokens.device)
    return torch.where(may, torch.where(targets != IGNORE, targets, follows), random)


def _one_changed(network: Network, targets: Tensor, may: Tensor) -> Tensor:
    """Targets with the first allowed one changed."""
    classes = len(network.config.labels) or network.config.vocab_size
    at = torch.nonzero((targets != IGNORE) & may)
    found = targets.clone()
    if len(at):
        row, column = int(at[0, 0]), int(at[0, 1])
        found[row, column] = (found[row, column] + 1) % classes
    return found


def _positions(tokens: Tensor) -> Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)


def _training_loss(network: Network, tokens: Tensor, targets: Tensor) -> Tensor:
    return network.loss(tokens, _positions(tokens), targets, Causal())


def _reference_loss(network: Network, tokens: Tensor, labels: Tensor, may: Tensor) -> Tensor:
    """The sum of the losses where `may`, taken from logits of every place; of a classifier from each document's."""
    if network.config.labels:
        places = torch.where(may, labels, IGNORE)
        logits = network.class_logits(tokens, _positions(tokens), places, Causal())  # (K, C)
        return cross_entropy(logits, labels[may], reduction="sum")
    logits = network(tokens, _positions(tokens), Causal())  # (B, T, V)
    exact = torch.float32 if logits.device.type == "mps" else torch.float64
    rows = zip(logits, labels, may, strict=True)
    parts = [(cross_entropy(row.to(exact), own, reduction="none") * at).sum() for row, own, at in rows]
    return torch.stack(parts).sum()


def _gradients(network: Network, loss_of: Callable[[], Tensor]) -> tuple[float, list[Tensor], Tensor]:
    """A loss, its gradients by parameter that learns, and its gradient at the trunk's output (B, T, D).

    Where the trunk gave out only the places that the head was to read, the gradient at all others is 0.
    """
    seen: list[Tensor] = []
    places: list[tuple[Tensor, Tensor | None]] = []

    def hear(module: torch.nn.Module, given: tuple[Any, ...], out: Tensor) -> None:
        seen.append(out)
        places.append((given[0], given[3] if len(given) > 3 else None))

    handle = network.transformer.register_forward_hook(hear)
    try:
        with torch.enable_grad():
            loss = loss_of()
    finally:
        handle.remove()
    parameters = list(trainable(network).values())
    asked = [seen[0], *parameters] if seen[0].requires_grad else parameters
    grads: list[Tensor | None] = list(torch.autograd.grad(loss, asked, allow_unused=True))
    at_hidden = grads.pop(0) if len(grads) > len(parameters) else None
    outside = torch.zeros_like(seen[0]) if at_hidden is None else at_hidden.detach()
    tokens, rows = places[0]
    if rows is not None:
        outside = outside.new_zeros(tokens.numel(), outside.shape[-1]).index_copy_(0, rows, outside)
        outside = outside.view(*tokens.shape, -1)
    full = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, grads, strict=True)]
    return float(loss.detach()), full, outside
