"""GPT-2 as it is plainly written in PyTorch, after nanoGPT: what our training is measured against beside libraries.

It must not know FineTwo. Its one invariant: it computes what the published
network computes, every logit of every token.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.functional import dropout, gelu, scaled_dot_product_attention


class Plain(nn.Module):
    """The plain way to write GPT-2 in PyTorch: pre-norm blocks, fused attention, every logit."""

    def __init__(self, state: Mapping[str, Tensor], heads: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.rate = heads, dropout
        self.layers = 1 + max(int(n.split(".")[2]) for n in state if ".h." in n)
        self.weights = nn.ParameterDict({n.replace(".", "_"): nn.Parameter(t.clone()) for n, t in state.items()})

    def _w(self, *name: object) -> tuple[Tensor, Tensor]:
        stem = "transformer_" + "_".join(map(str, name))
        return self.weights[f"{stem}_weight"], self.weights[f"{stem}_bias"]

    def _linear(self, x: Tensor, *name: object) -> Tensor:
        weight, bias = self._w(*name)
        return nn.functional.linear(x, weight.t(), bias)

    def _norm(self, x: Tensor, *name: object) -> Tensor:
        return nn.functional.layer_norm(x, x.shape[-1:], *self._w(*name))

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (B, T, V)."""
        (b, t), table = tokens.shape, self.weights["transformer_wte_weight"]
        drop = self.rate if self.training else 0.0
        x = dropout(nn.functional.embedding(tokens, table) + self.weights["transformer_wpe_weight"][:t], drop)
        for i in range(self.layers):
            q, k, v = self._linear(self._norm(x, "h", i, "ln_1"), "h", i, "attn_c_attn").split(x.shape[-1], dim=2)
            q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in (q, k, v))
            seen = scaled_dot_product_attention(q, k, v, dropout_p=drop, is_causal=True)
            seen = seen.transpose(1, 2).reshape(b, t, -1)
            x = x + dropout(self._linear(seen, "h", i, "attn_c_proj"), drop)
            inner = gelu(self._linear(self._norm(x, "h", i, "ln_2"), "h", i, "mlp_c_fc"), approximate="tanh")
            x = x + dropout(self._linear(inner, "h", i, "mlp_c_proj"), drop)
        return nn.functional.linear(self._norm(x, "ln_f"), table)
