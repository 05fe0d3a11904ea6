"""GPT-2's trunk: tokens and positions in, hidden states out (Radford et al. 2019).

It knows no mask, no cache, no head, no loss and no device; how queries see keys is the argument `attend`. Its one
invariant: parameter names and shapes are those of Hugging Face's GPT-2 without the `transformer.` prefix.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, relu
from torch.nn.functional import gelu as exact_gelu
from torch.utils.checkpoint import checkpoint

from finetwo.model.attend import Attend
from finetwo.model.config import GPT2Config
from finetwo.model.linear import Linear
from finetwo.model.norm import Norm
from finetwo.model.passes import dropout, gelu


def activate(name: str, x: Tensor) -> Tensor:
    """Apply the activation that `config.json` names; gelu_new is the tanh form (Hendrycks & Gimpel 2016)."""
    if name == "relu":
        return relu(x)
    return exact_gelu(x) if name == "gelu" else gelu(x)


def _embedding(rows: int, width: int) -> nn.Embedding:
    """An embedding whose weights are not drawn: drawing on the meta device would import half of torch's compiler."""
    table: nn.Embedding = nn.Embedding.from_pretrained(torch.empty(rows, width), freeze=False)
    return table


def pick(x: Tensor, rows: Tensor | None) -> Tensor:
    """The places `rows` (K,) of the flattened x (B, T, D) as (K, D); x itself when they are None."""
    return x if rows is None else x.reshape(-1, x.shape[-1]).index_select(0, rows)


class _Heads(torch.autograd.Function):
    """(B, T, 3 * D) as queries, keys and values, (B, H, T, Dh) each; their gradients are written into one tensor."""

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, heads: int) -> tuple[Tensor, ...]:
        b, t, _ = qkv.shape
        return qkv.view(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        b, h, t, d = grads[0].shape
        found = grads[0].new_empty(b, t, 3, h, d)
        for i, g in enumerate(grads):
            found[:, :, i] = g.transpose(1, 2)
        return found.view(b, t, 3 * h * d), None


class Attention(nn.Module):
    """Multi-head self-attention with fused query, key and value."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.layer, self.heads, self.width = layer, config.n_head, config.n_embd
        self.c_attn = Linear(config.n_embd, 3 * config.n_embd)
        self.c_proj = Linear(config.n_embd, config.n_embd)
        scale = 1.0 / math.sqrt(config.n_embd // config.n_head) if config.scale_attn_weights else 1.0
        self.scale = scale / (layer + 1) if config.scale_attn_by_inverse_layer_idx else scale

    def forward(self, x: Tensor, attend: Attend, drop: float, rows: Tensor | None) -> Tensor:  # noqa: D102
        b, t, _ = x.shape
        q, k, v = _Heads.apply(self.c_attn(x), self.heads)  # type: ignore[no-untyped-call]
        seen = attend(self.layer, q, k, v, self.scale, drop)
        y: Tensor = self.c_proj(pick(seen.transpose(1, 2).reshape(b, t, self.width), rows))
        return y


class MLP(nn.Module):
    """The feed-forward half of a block."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.activation = config.activation_function
        self.c_fc = Linear(config.n_embd, config.inner)
        self.c_proj = Linear(config.inner, config.n_embd)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        y: Tensor = self.c_proj(activate(self.activation, self.c_fc(x)))
        return y


class Block(nn.Module):
    """Attention and feed-forward, each added to the residual stream; norms before them, or after the sums."""

    def __init__(self, config: GPT2Config, layer: int) -> None:
        super().__init__()
        self.post_norm = config.post_norm
        self.ln_1 = Norm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config, layer)
        self.ln_2 = Norm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(
        self, x: Tensor, delta: Tensor | None, attend: Attend, drop: float, rows: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the residual stream x (B, T, D) and what is still to be added to it, given both.

        So the next norm can add in its own pass. With `rows` (K,) only theirs, (K, D): all are seen, few go on.
        """
        if self.post_norm:
            x = self.ln_1(pick(x, rows) + dropout(self.attn(x, attend, drop, rows), drop))
            return self.ln_2(x + dropout(self.mlp(x), drop)), None
        x, normed = self.ln_1.after(x, delta)
        x, normed = self.ln_2.after(pick(x, rows), dropout(self.attn(normed, attend, drop, rows), drop))
        return x, dropout(self.mlp(normed), drop)


class GPT2(nn.Module):
    """The trunk; parameters are allocated but not initialised (see `initialise`)."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.wte = _embedding(config.vocab_size, config.n_embd)
        self.wpe = _embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList([Block(config, i) for i in range(config.n_layer)])
        self.ln_f = Norm(config.n_embd, eps=config.layer_norm_epsilon)
        self.dropout = 0.0
        """Probability on embeddings, attention and residuals; in force only while `training`."""
        self.recompute = False
        """Whether backward computes the blocks' insides again; in force only while `training`."""

    def forward(
        self, tokens: Tensor, positions: Tensor, attend: Attend, rows: Tensor | None = None, *, tied: bool = False
    ) -> Tensor:
        """Return hidden states (B, T, D) for `tokens` and `positions` (B, T) int64, after the last norm.

        With `rows` (K,), places in the flattened (B, T), only theirs (K, D): the last block then leaves out what no
        other place would look at. `tied`: the token embedding gets the dense gradient of a tied head as well, so that
        its own may come as the few rows it is of.
        """
        drop = self.dropout if self.training else 0.0
        few = tied and tokens.device.type == "cpu"
        words = embedding(tokens, self.wte.weight, sparse=True) if few else self.wte(tokens)
        x, delta = dropout(words + self.wpe(positions), drop), None
        last, recompute = len(self.h) - 1, self.recompute and self.training
        for i, block in enumerate(self.h):
            given = (x, delta, attend, drop, rows if i == last else None)
            x, delta = checkpoint(block, *given, use_reentrant=False) if recompute else block(*given)
        # Post-norm blocks end normalised; the last norm then has nothing left to do but is kept for the file layout.
        y: Tensor = self.ln_f(x if delta is None else x + delta)
        return y

    @torch.no_grad()
    def initialise(self, seed: int) -> None:
        """Draw fresh weights for every layer as published: normal(0, 0.02), residual projections / sqrt(2 layers)."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif ".ln_" in name or name.startswith("ln_f"):
                p.fill_(1.0)
            else:
                residual = name.endswith("c_proj.weight")
                p.normal_(0.0, std / math.sqrt(2 * self.config.n_layer) if residual else std, generator=generator)
