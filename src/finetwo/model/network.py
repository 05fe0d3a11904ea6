"""A trunk and a head: the network that is trained, saved and run.

It knows no tokenizer, no files and no optimizer. Its one invariant: `state()` has exactly the names and shapes
of a Hugging Face checkpoint, the tied head counted once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from finetwo.core.config import LoraConfig
from finetwo.core.errors import InputError
from finetwo.model.attend import Attend, Causal
from finetwo.model.config import GPT2Config, Pooling
from finetwo.model.gpt2 import GPT2
from finetwo.model.head import Score, mean_hidden
from finetwo.model.lora import add_lora, freeze_all_but_lora, lora_config
from finetwo.model.loss import kept, losses_of, summed_loss, token_losses
from finetwo.model.mixed import Lowered
from finetwo.model.stored import stored_linears

_IGNORED = ("attn.bias", "attn.masked_bias")  # causal-mask buffers of old checkpoints


@dataclass(frozen=True)
class Stored:
    """What a network remembers whose base is stored in fewer bits while an adapter learns."""

    kind: str
    sha256: str
    """The content hash of the base before it was quantised, by which its adapter names it."""


class Network(nn.Module):
    """GPT-2 with its tied language head, or with a linear head over the classes of `config.labels`."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.transformer = GPT2(config)
        self.score = Score(len(config.labels), config.n_embd) if config.labels else None
        self.head_dropout = 0.0
        """Probability on what a classifier's head reads; in force only while `training`."""
        self._lowered: Lowered | None = None
        self.lora: LoraConfig | None = None
        """The adapter's resolved settings, when one is in place."""
        self.stored: Stored | None = None
        """How the block matrices are stored under an adapter that learns, when not in full."""
        self.quantised: str | None = None
        """int8 or int4 where the weights are stored as codes, for inference alone (see `model.quantised`)."""

    @classmethod
    def fresh(cls, config: GPT2Config, seed: int) -> Network:
        """Return a network with freshly drawn weights."""
        network = cls(config)
        network.transformer.initialise(seed)
        if network.score is not None:
            network.add_classes(config.labels, config.pooling, seed)
        return network

    @property
    def head_weight(self) -> Tensor:
        """The head's matrix: the token embedding itself (V, D), or a classifier's own (C, D)."""
        return self.transformer.wte.weight if self.score is None else self.score.weight

    @property
    def head_read(self) -> Tensor:
        """The head's matrix as products read it: inside `lowered()` the language head's copy in 16 bits."""
        low = self._low_head
        return self.head_weight if low is None else low[: self.head_weight.shape[0]]

    @property
    def _low_head(self) -> Tensor | None:
        """The copy in force, which may have further rows of 0."""
        return self._lowered.head() if self._lowered and self._lowered.active and self._lowered.head else None

    def lowered(self, dtype: torch.dtype = torch.bfloat16) -> Lowered:
        """The context of mixed precision: inside, products are made in `dtype`, from copies kept until `raised()`."""
        if self._lowered is None or self._lowered.dtype != dtype:
            self._lowered = Lowered(self, self.transformer.wte.weight if self.score is None else None, dtype)
        return self._lowered

    def raised(self) -> None:
        """Forget the copies."""
        self._lowered = None

    @torch.no_grad()
    def add_classes(self, labels: Sequence[str], pooling: Pooling = "last", seed: int = 0) -> None:
        """Put a fresh linear head over `labels` in the language head's place, or in another classifier's."""
        self.config = replace(self.config, labels=tuple(labels), pooling=pooling)
        wte = self.transformer.wte.weight
        self.score = Score(len(labels), self.config.n_embd).to(wte.device, wte.dtype)
        fresh = torch.empty(self.score.weight.shape).normal_(
            0.0, self.config.initializer_range, generator=torch.Generator().manual_seed(seed)
        )
        self.score.weight.copy_(fresh)
        self.score.train(self.training)
        self.raised()

    def forward(self, tokens: Tensor, positions: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        """Return logits (B, T, V) for token ids (B, T); positions default to 0..T-1 in each row."""
        return self.logits(self.hidden(tokens, positions, attend))

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the head's logits (..., V) for the trunk's output (..., D)."""
        if self.quantised is not None and self.score is None:
            table: Any = self.transformer.wte  # stands for itself transposed, as codes
            found: Tensor = table.project(hidden)
            return found
        return hidden @ self.head_weight.t().to(hidden.dtype)

    def hidden(self, tokens: Tensor, positions: Tensor | None = None, attend: Attend | None = None) -> Tensor:
        """Return the trunk's output (B, T, D)."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        hidden: Tensor = self.transformer(tokens, positions, attend or Causal())
        return hidden

    def loss(
        self,
        tokens: Tensor,
        positions: Tensor,
        targets: Tensor,
        attend: Attend,
        class_weights: Tensor | None = None,
        scale: float = 1.0,
        keep: Tensor | None = None,
    ) -> Tensor:
        """Return `scale` times the summed loss of a batch, float32.

        tokens, positions and targets (B, T), class_weights (C,); keep (K,) what `kept(targets)` gives, if it is known.
        """
        keep = kept(targets) if keep is None else keep
        read = self._dropped(self._read(tokens, positions, attend, keep))
        chosen = targets.reshape(-1).index_select(0, keep)
        rows = None if class_weights is None else class_weights.to(read.device, torch.float32)[chosen]
        return summed_loss(read, chosen, self.head_weight, rows, low=self._low_head, scale=scale)

    def weighted_loss(
        self, tokens: Tensor, positions: Tensor, attend: Attend, keep: Tensor | None, targets: Tensor, weights: Tensor
    ) -> Tensor:
        """Return the sum of losses times `weights`, float32, of a language model or a classifier that reads one token.

        tokens, positions (B, T); keep (K,) the places that learn, None: all; targets, weights (K,).
        """
        read: Tensor = self.transformer(tokens, positions, attend, keep, tied=self.score is None)
        read = self._dropped(read.reshape(-1, read.shape[-1]))
        return summed_loss(read, targets, self.head_weight, weights, low=self._low_head)

    def _dropped(self, read: Tensor) -> Tensor:
        """What the head reads, some of it dropped in training."""
        return dropout(read, self.head_dropout) if self.training and self.head_dropout else read

    def token_losses(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of each target (N,) float32 after hidden states (N, D), by the head of answers."""
        if self.quantised is not None and self.score is None:
            return losses_of(self.logits, hidden, targets, self.config.vocab_size)
        seen = self.head_read
        return token_losses(hidden.to(seen.dtype), targets, seen)

    def class_logits(
        self, tokens: Tensor, positions: Tensor, targets: Tensor, attend: Attend, keep: Tensor | None = None
    ) -> Tensor:
        """Return a classifier's logits (K, C) float32, one row for each target that is not IGNORE, in order.

        keep (K,): what `kept(targets)` gives, if it is known.
        """
        read = self._read(tokens, positions, attend, kept(targets) if keep is None else keep)
        return (read @ self.head_weight.t().to(read.dtype)).float()

    def _read(self, tokens: Tensor, positions: Tensor, attend: Attend, keep: Tensor) -> Tensor:
        """What the head reads, (K, D); the last block is computed there only, unless a mean needs every place."""
        if self.score is not None and self.config.pooling == "mean":
            return mean_hidden(self.hidden(tokens, positions, attend), positions, keep)
        every = keep.numel() == tokens.numel()
        tied = self.score is None and torch.is_grad_enabled()
        read: Tensor = self.transformer(tokens, positions, attend, None if every else keep, tied=tied)
        return read.reshape(-1, read.shape[-1])

    def add_lora(self, config: LoraConfig | None = None, seed: int = 0, **settings: object) -> int:
        """Place adapters (see `LoraConfig` for the settings); return how many linears carry one."""
        if self.quantised is not None:
            raise InputError("--lora", "the model is quantised for inference", self.quantised, "take the whole model")
        lora = config or lora_config(settings)
        count = add_lora(self, lora, seed)
        self.lora = lora.resolved()
        return count

    def freeze_all_but_lora(self) -> None:
        """Let only adapter parameters learn, and a classifier's head."""
        freeze_all_but_lora(self)
        if self.score is not None:
            self.score.requires_grad_(True)

    def state(self) -> dict[str, Tensor]:
        """Base weights by Hugging Face name, adapters left out; quantised ones as they compute."""
        away = {f"{n}.weight": m.weight for n, m in stored_linears(self).items()}
        return {n: p.detach() for n, p in self.named_parameters() if ".adapter." not in n} | away

    def adapter_state(self) -> dict[str, Tensor]:
        """Adapter weights by their name in this network; a classifier's head belongs to them."""
        return {n: p.detach() for n, p in self.named_parameters() if ".adapter." in n or n.startswith("score.")}

    @torch.no_grad()
    def load_state(self, tensors: Mapping[str, Tensor], where: str) -> None:
        """Copy weights in; InputError as `fitting`."""
        wanted = dict(self.named_parameters())
        for name, tensor in self.fitting(tensors, where).items():
            wanted[name].copy_(tensor)

    def fitting(self, tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
        """Return `tensors` by the names of this network, all of them and no others.

        InputError names what is missing, left over, misshapen, no floating-point number, or not finite.
        """
        if self.stored is not None:
            what = f"the base is stored as {self.stored.kind} and takes no weights"
            raise InputError(where, what, None, "load them into a full-precision network")
        wanted = dict(self.named_parameters())
        given = _canonical(tensors, where)
        missing = [n for n in wanted if n not in given and ".adapter." not in n]
        extra = [n for n in given if n not in wanted]
        if missing or extra:
            names = "; ".join(
                f"{what} {', '.join(ns[:3])}{' ...' if len(ns) > 3 else ''}"
                for what, ns in (("missing", missing), ("unknown", extra))
                if ns
            )
            raise InputError(
                where,
                f"the tensors do not fit the config: {len(missing)} missing, {len(extra)} unknown: {names}",
                None,
                "take weights and config.json from one place",
            )
        for name, tensor in given.items():
            if tensor.shape != wanted[name].shape:
                raise InputError(
                    where,
                    f"tensor {name} must have shape {list(wanted[name].shape)}",
                    list(tensor.shape),
                    "config.json belongs to other weights",
                )
            if not tensor.is_floating_point():
                raise InputError(where, f"tensor {name} must hold floating-point numbers", str(tensor.dtype))
            parts = tensor.reshape(-1).split(1 << 22)  # a mask of a whole embedding would need as much memory again
            if not all(bool(torch.isfinite(torch.stack(torch.aminmax(p))).all()) for p in parts if p.numel()):
                bad = sum(int((~torch.isfinite(part)).sum()) for part in parts)
                raise InputError(
                    where,
                    f"tensor {name} holds {bad:,} values that are NaN or infinite",
                    None,
                    "the file is damaged or its training diverged",
                )
        return given


def _canonical(tensors: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """Names as ours: the prefix restored, mask buffers dropped, a tied head checked and dropped."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if name.endswith(_IGNORED) and ".attn." in f".{name}" and not name.endswith(("c_attn.bias", "c_proj.bias")):
            continue
        full = name if name.startswith(("transformer.", "lm_head.", "score.")) else f"transformer.{name}"
        if full in found:
            raise InputError(where, f"tensor {full} stands twice, with and without its prefix", name)
        found[full] = tensor
    head = found.pop("lm_head.weight", None)
    tied = found.get("transformer.wte.weight")
    if head is not None and tied is not None and not torch.equal(head, tied):
        raise InputError(
            where,
            "lm_head.weight differs from wte.weight: the head is not tied",
            None,
            "FineTwo trains GPT-2's tied head only",
        )
    return found
