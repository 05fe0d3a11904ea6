"""A network made by hand that recites: after each token it says the one that it was told follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch

from finetwo.model.config import GPT2Config
from finetwo.model.network import Network

RECITED = "ab cd\tEF\ngh\x0bij klm?nopq!rstuvwxyz0123456789ABCDGHIJKLMNOPQRSTUVWXYZ.,;:-_+*#/&%=()<>[]{}|~^"
"""A text without a character that stands in it twice, except for one blank: a bigram network can know it by heart."""


def successors(tokens: Sequence[int]) -> dict[int, int]:
    """What follows each token; every token must stand there once."""
    assert len(set(tokens)) == len(tokens)
    return dict(pairwise(tokens))


def bigram_network(vocab_size: int, follows: Mapping[int, int], n_positions: int = 128) -> Network:
    """Return the network: one-hot embeddings, no attention, and an MLP that is the table of what follows."""
    shape = GPT2Config(vocab_size=vocab_size, n_positions=n_positions, n_embd=vocab_size, n_layer=1, n_head=4)
    network = Network(shape)
    with torch.no_grad():
        for p in network.parameters():
            p.zero_()
        for name, p in network.named_parameters():
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                p.fill_(1.0)
            if name.endswith("wte.weight"):
                p.copy_(torch.eye(vocab_size))
            if name.endswith("mlp.c_fc.weight"):  # (in, out)
                p[:, :vocab_size].copy_(torch.eye(vocab_size))
            if name.endswith("mlp.c_proj.weight"):
                for token, then in follows.items():
                    p[token, then] = 1.0
    return network.eval()
