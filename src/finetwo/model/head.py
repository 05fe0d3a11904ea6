"""A classifier's head, and the mean over a document that it may read in place of its last token.

It knows hidden states and positions. Its one invariant: what it takes for a document depends on that
document's tokens alone, whatever else is in the batch and however it is laid out.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Score(nn.Module):
    """The weight of a classifier's head, (C, D), not initialised; its name is that of Hugging Face's."""

    def __init__(self, classes: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(classes, width))


def mean_hidden(hidden: Tensor, positions: Tensor, keep: Tensor) -> Tensor:
    """Return the mean (K, D) over each document that ends at one of the places `keep`.

    positions (B, T) say how far back a document begins, so that neither padding nor a neighbour is counted.
    """
    flat = hidden.reshape(-1, hidden.shape[-1])
    sizes = positions.reshape(-1).index_select(0, keep) + 1  # (K,)
    document = torch.repeat_interleave(torch.arange(keep.shape[0], device=keep.device), sizes)  # (N,)
    starts = torch.cumsum(sizes, 0) - sizes
    place = torch.arange(document.shape[0], device=keep.device) - starts[document] + (keep - sizes + 1)[document]
    sums = flat.new_zeros(keep.shape[0], flat.shape[1]).index_add(0, document, flat.index_select(0, place))
    return sums / sizes.unsqueeze(1).to(flat.dtype)
