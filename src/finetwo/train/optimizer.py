"""Which parameters are updated by what: AdamW with decay on matrices only, optionally Muon for the block matrices.

It knows no data and no loop. Its one invariant: `optimizer_tensors` and `load_optimizer_tensors` carry the whole
state by parameter name, so a resumed update is the same update.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finetwo.core.config import TrainConfig
from finetwo.core.errors import InputError
from finetwo.model.mixed import only_imitates_bf16
from finetwo.train.adamw import AdamW, Unseen
from finetwo.train.muon import Muon


def freeze(network: nn.Module, names: str, where: str = "--freeze") -> int:
    """Stop the parameters whose name has a part equal to one of the comma-separated `names` from learning."""
    frozen = 0
    for wanted in (n.strip() for n in names.split(",")):
        hits = [p for n, p in network.named_parameters() if wanted and f".{wanted}." in f".{n}."]
        if not hits:
            parts = sorted(
                {part for n, _ in network.named_parameters() for part in n.split(".")[1:-1] if not part.isdigit()}
            )
            raise InputError(where, "no parameter has this name", wanted, f"use parts such as {', '.join(parts)}")
        for p in hits:
            frozen += p.numel() if p.requires_grad else 0
            p.requires_grad_(False)
    return frozen


def trainable(network: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that learn, by name."""
    return {n: p for n, p in network.named_parameters() if p.requires_grad}


class Optimizer:
    """One or two optimizers that share a schedule: learning rates are peak rates times a factor."""

    def __init__(self, network: nn.Module, config: TrainConfig, lr: float, *, keeps: bool = False) -> None:
        """`keeps`: gradients stay where they are and become 0, for a graph that writes them there."""
        self._keeps = keeps
        named = trainable(network)
        if not named:
            raise InputError("--freeze", "nothing is left to train", config.freeze, "freeze less")
        matrices = {n: p for n, p in named.items() if p.ndim >= 2}
        muon = {n: p for n, p in matrices.items() if config.optimizer == "muon" and ".h." in n and ".adapter." not in n}
        decayed = [p for n, p in matrices.items() if n not in muon]
        plain = [p for n, p in named.items() if n not in matrices]
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        betas = (0.9, 0.95) if config.task == "pretrain" else (0.9, 0.999)
        self.parts: list[tuple[AdamW | Muon, float]] = []
        groups = [g for g in groups if g["params"]]
        if groups:
            self.parts.append((AdamW(groups, lr, betas, config.adam_eps), lr))
        if muon:
            device = next(iter(muon.values())).device
            dtype = torch.float32 if only_imitates_bf16(device) else torch.bfloat16
            self.parts.append((Muon(muon.values(), config.muon_lr, config.weight_decay, dtype), config.muon_lr))
        self._names = {id(p): n for n, p in named.items()}

    @property
    def sees(self) -> bool:
        """Whether a step must be given its numbers: Muon's, unlike the fused AdamW's, does not read them itself."""
        return any(isinstance(part, Muon) for part, _ in self.parts)

    def step(self, factor: float, shrink: float | Unseen = 1.0) -> None:
        """Update every parameter at `factor` times its peak learning rate, then forget the gradients.

        The update is that of the gradients times `shrink`; the fused AdamW takes it along without a pass of its own.
        """
        for part, peak in self.parts:
            for group in part.param_groups:
                group["lr"] = peak * factor
            if isinstance(part, Muon):
                assert not isinstance(shrink, Unseen)
                part.step(shrink)
            else:
                part.step(shrink)
        self.zero_grad()

    def zero_grad(self) -> None:
        """Forget the gradients."""
        for part, _ in self.parts:
            grads = [p.grad for group in part.param_groups for p in group["params"] if p.grad is not None]
            if self._keeps and grads:
                torch._foreach_zero_(grads)
            elif not self._keeps:
                part.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Return the state as `parameter|slot` -> tensor."""
        found: dict[str, Tensor] = {}
        for part, _ in self.parts:
            for p, slots in part.state.items():
                for slot, value in slots.items():
                    found[f"{self._names[id(p)]}|{slot}"] = torch.as_tensor(value)
        return found

    def load_tensors(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Take back what `tensors` gave; InputError when a name does not belong to this optimizer."""
        owners = {
            self._names[id(p)]: (part, p) for part, _ in self.parts for g in part.param_groups for p in g["params"]
        }
        for key, value in tensors.items():
            name, _, slot = key.rpartition("|")
            if name not in owners:
                raise InputError(
                    where,
                    "optimizer state of a parameter that is not trained here",
                    name,
                    "resume with the settings of the first start",
                )
            part, p = owners[name]
            same = slot != "step"
            part.state[p][slot] = value.to(p.device, p.dtype if same else torch.float32).clone()
