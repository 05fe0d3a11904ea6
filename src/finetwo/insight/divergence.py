"""How far one model's next-token distribution is from another's, token by token, on texts one of them wrote.

It knows token ids and networks and no prompts. Its one invariant: two networks with the same logits have a divergence
of exactly zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from finetwo.model.network import Network

_ROWS = 128


@dataclass(frozen=True)
class Written:
    """A prompt as token ids, and the answer to it."""

    prompt: Sequence[int]
    answer: Sequence[int]


@torch.no_grad()
def divergences(first: Network, second: Network, texts: Sequence[Written], vocab: int) -> list[tuple[float, int]]:
    """Return for each text the summed KL(first || second) in nats over its answer's tokens, and how many these are.

    `vocab`: ids from here on are left out. A text longer than a network's context is left out: it has (0, 0).
    """
    window = min(first.config.n_positions, second.config.n_positions)
    found = []
    for text in texts:
        ids = [*text.prompt, *text.answer][:-1]
        if not text.answer or not text.prompt or len(ids) > window:
            found.append((0.0, 0))
            continue
        both = [_hidden(network, ids)[len(text.prompt) - 1 :] for network in (first, second)]
        total = 0.0
        for i in range(0, len(text.answer), _ROWS):
            p, q = (
                n.logits(h[i : i + _ROWS])[:, :vocab].double().cpu().log_softmax(dim=-1)
                for h, n in zip(both, (first, second), strict=True)
            )
            total += float((p.exp() * (p - q)).sum())
        found.append((total, len(text.answer)))
    return found


def _hidden(network: Network, ids: Sequence[int]) -> torch.Tensor:
    return network.hidden(torch.tensor([list(ids)], device=next(network.parameters()).device))[0]
