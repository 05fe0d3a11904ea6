"""By how much a network's answers changed, on a neutral text: logits, likeliest tokens, perplexity before and after.

It knows tokens and logits, and must not know what changed them. Its one invariant: the text is the package's own
(assets/neutral.txt), so the figures of two exports can be compared.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from finetwo.core.errors import InputError
from finetwo.text.tokenizer import Tokenizer

_ROWS, _LENGTH = 8, 64


def neutral_file() -> Path:
    """The file of the neutral text in the package; InputError where this installation lacks it."""
    path = Path(__file__).resolve().parent.parent / "assets" / "neutral.txt"
    if not path.is_file():
        raise InputError("assets/neutral.txt", "is not part of this installation", fix="install FineTwo again")
    return path


def neutral_text() -> str:
    """The neutral text of the package."""
    return neutral_file().read_text(encoding="utf-8")


def probe_tokens(tokenizer: Tokenizer, context: int) -> Tensor:
    """Return the beginning of the neutral text as ids (8, T), T = 64 or the context where that is shorter."""
    length = min(_LENGTH, context)
    ids = tokenizer.encode(neutral_text()[: 16 * _ROWS * _LENGTH])
    rows = min(_ROWS, len(ids) // length)
    return torch.tensor(ids[: rows * length]).reshape(rows, length)


@dataclass(frozen=True)
class Change:
    """What became of the logits over a probe."""

    largest: float
    mean: float
    agreement: float
    """Share of positions at which the likeliest token, which greedy decoding takes, is the same."""
    positions: int
    perplexity: tuple[float, float] | None
    """Before and after; None for a classifier, whose head tells no token."""

    @classmethod
    def between(cls, probe: Tensor, before: Tensor, after: Tensor, *, classes: bool) -> Change:
        """Compare logits (B, T, V) over the ids `probe` (B, T)."""
        difference = (after - before).abs()
        agree = (after.argmax(-1) == before.argmax(-1)).float().mean()
        told = None if classes else (_perplexity(probe, before), _perplexity(probe, after))
        return cls(float(difference.max()), float(difference.mean()), float(agree), probe.numel(), told)

    def lines(self, bound: float) -> list[str]:
        """The figures as lines for a person, with the bound they were held to."""
        on = f"measured on {self.positions} tokens of the neutral text in the package (assets/neutral.txt)"
        return [*self.figures(f"; the bound is {bound:g}"), on]

    def figures(self, bound: str = "") -> list[str]:
        """The figures as lines for a person."""
        unit = "token" if self.perplexity is not None else "class"
        found = [
            f"logits changed by at most {self.largest:.2e} (mean {self.mean:.2e}{bound}); "
            f"same likeliest {unit} at {self.agreement:.1%} of {self.positions} positions"
        ]
        if self.perplexity is not None:
            before, after = self.perplexity
            share = (after - before) / before
            found.append(f"perplexity {before:,.3f} before, {after:,.3f} after ({share:+.3%})")
        return found


def _perplexity(tokens: Tensor, logits: Tensor) -> float:
    """Perplexity: exp of the mean loss of each next token."""
    flat = logits[:, :-1].double().flatten(0, 1)  # (B (T-1), V)
    return math.exp(min(700.0, float(torch.nn.functional.cross_entropy(flat, tokens[:, 1:].flatten()))))
