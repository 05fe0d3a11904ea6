"""Perplexity of whole texts by a sliding window: each token is scored once, with as much context as the stride leaves.

It knows token ids and a network, and neither files nor templates. Its one invariant: the figure is the sum of losses
over the number of scored tokens, whatever the batch size, and no token is scored twice.

The windows are those of "Perplexity of fixed-length models" in the documentation of Hugging Face transformers. Its
code weighs each window after the first by one token less than it scores (until 2024, all windows alike); here the sum
is exact.
"""

from __future__ import annotations

import codecs
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finetwo.model.attend import Causal
from finetwo.model.network import Network
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.evaluate import byte_lengths

Tokens = NDArray[np.generic]
ByteLengths = NDArray[np.int64]
_BLOCK = 1 << 16


@dataclass(frozen=True)
class Window:
    """Tokens from `begin` up to `end` of a document, of which those from `first` on are scored."""

    begin: int
    end: int
    first: int


@dataclass
class Strided:
    """Sums over the scored tokens of some documents."""

    nats: float = 0.0
    tokens: int = 0
    text_bytes: int = 0
    """Of the scored tokens' text."""
    windows: int = 0
    documents: int = 0
    words: int = 0
    """Words between white space, in the whole documents."""
    unscored: int = 0
    """Tokens without context: the first of a document, or of each window where windows do not overlap."""

    @property
    def loss(self) -> float:
        """Nats per scored token."""
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """exp(nats per scored token)."""
        return exp(self.loss)

    @property
    def word_perplexity(self) -> float | None:
        """exp(nats / words); None of a text without words."""
        return exp(self.nats / self.words) if self.words else None

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of the scored tokens' text."""
        return self.nats / math.log(2) / self.text_bytes if self.text_bytes else math.nan


def exp(nats: float) -> float:
    """Return e to the power of `nats`, a huge number where that would be too large for one."""
    return math.exp(min(nats, 700.0))


def windows(length: int, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows over a document of `length` tokens; with 1 <= stride <= window they score each token once.

    Every scored token has at least window - stride tokens before it in its window, or all that there are.
    """
    done = 0
    for begin in range(0, length, stride):
        end = min(begin + window, length)
        yield Window(begin, end, max(done, begin + 1))
        done = end
        if end == length:
            return


@torch.no_grad()
def strided(
    network: Network, documents: Iterable[Tokens], tokenizer: Tokenizer, window: int, stride: int, batch_size: int
) -> Strided:
    """Score documents (each a row of token ids without end-of-text), `batch_size` windows at a time."""
    found, lengths = Strided(), byte_lengths(tokenizer)
    was_training = network.training
    network.eval()
    try:
        waiting: list[tuple[Tokens, int]] = []
        for row, scored in _rows(documents, tokenizer, window, stride, found):
            if waiting and (len(waiting) == batch_size or len(row) != len(waiting[0][0])):
                _score(network, waiting, lengths, found)
                waiting = []
            waiting.append((row, scored))
        if waiting:
            _score(network, waiting, lengths, found)
    finally:
        network.train(was_training)
    return found


def _rows(
    documents: Iterable[Tokens], tokenizer: Tokenizer, window: int, stride: int, found: Strided
) -> Iterator[tuple[Tokens, int]]:
    """Each window's tokens, and how many of its last ones are scored; counts what needs no network."""
    for document in documents:
        found.documents += 1
        found.words += count_words(document, tokenizer)
        scored = 0
        for w in windows(len(document), window, stride):
            if w.first < w.end:
                found.windows += 1
                scored += w.end - w.first
                yield np.asarray(document[w.begin : w.end], dtype=np.int64), w.end - w.first
        found.unscored += len(document) - scored


def _score(network: Network, rows: list[tuple[Tokens, int]], lengths: ByteLengths, found: Strided) -> None:
    """Add the losses of windows of equal length."""
    device = next(network.parameters()).device
    tokens = torch.from_numpy(np.stack([row for row, _ in rows])).to(device)  # (B, T)
    length = tokens.shape[1]
    keep = torch.zeros_like(tokens, dtype=torch.bool)  # (B, T - 1) after the cut: position p predicts token p + 1
    for i, (_, scored) in enumerate(rows):
        keep[i, length - scored :] = True
    keep, targets = keep[:, 1:], tokens[:, 1:]
    positions = torch.arange(length - 1, device=device).expand(len(rows), -1)
    hidden = network.hidden(tokens[:, :-1], positions, Causal())
    losses = network.token_losses(hidden[keep], targets[keep])
    found.nats += float(losses.cpu().double().sum())
    found.tokens += losses.numel()
    found.text_bytes += int(lengths[targets[keep].cpu().numpy()].sum())


def documents_of(tokens: Tokens, eot: int) -> Iterator[Tokens]:
    """Yield the documents of a stream that end-of-text ids delimit, the ids themselves and empty documents left out."""
    start: int | None = None
    for at in _ends(tokens, eot):
        if start is not None and at > start:
            yield tokens[start:at]
        start = at + 1


def _ends(tokens: Tokens, eot: int) -> Iterator[int]:
    """Places of the id `eot`, looked for block by block: the stream may be larger than memory."""
    for i in range(0, len(tokens), _BLOCK):
        yield from (i + int(k) for k in np.flatnonzero(np.asarray(tokens[i : i + _BLOCK]) == eot))


def count_words(document: Tokens, tokenizer: Tokenizer) -> int:
    """Words between white space in the text of `document`."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    count, inside = 0, False
    for i in range(0, len(document), _BLOCK):
        piece = decoder.decode(tokenizer.decode_bytes(int(t) for t in document[i : i + _BLOCK]))
        if piece:
            count += len(piece.split()) - (inside and not piece[0].isspace())
            inside = not piece[-1].isspace()
    return count
