"""From text with roles to tokens with targets: `Segment`, `Sequence`, and their encoding.

It knows no tasks and no network. Its one invariant: a target stands exactly where the next token belongs to a
segment that is learned, by construction and never by searching the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetwo.text.tokenizer import Tokenizer

IGNORE = -100
"""A target that means: nothing to learn here."""

Int32 = NDArray[np.int32]


@dataclass(frozen=True)
class Segment:
    """A stretch of text, and whether it carries loss; `end` appends the end-of-text id to it."""

    text: str
    learn: bool
    end: bool = False


@dataclass(frozen=True)
class Sequence:
    """Tokens (n,) and targets (n,), int32: targets[i] is the id that follows tokens[i], or IGNORE."""

    tokens: Int32
    targets: Int32

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def learned(self) -> int:
        """Number of targets that carry loss."""
        return int((self.targets != IGNORE).sum())


Fate = Literal["kept", "truncated", "too long"]


def encode_segments(tokenizer: Tokenizer, segments: list[Segment], max_length: int) -> tuple[Sequence | None, Fate]:
    """Encode each segment on its own and set the targets; cut at `max_length` tokens of input.

    A cut sequence loses its end, end-of-text included, so a cut answer never teaches the model to stop there. None
    when nothing that is learned fits.
    """
    ids: list[int] = []
    learn: list[bool] = []
    for segment in segments:
        part = tokenizer.encode(segment.text)
        if segment.end:
            part = [*part, tokenizer.eot]
        ids += part
        learn += [segment.learn] * len(part)
    fate: Fate = "kept" if len(ids) <= max_length + 1 else "truncated"
    row = np.asarray(ids[: max_length + 1], dtype=np.int32)
    targets = np.where(np.asarray(learn[1 : max_length + 1], dtype=bool), row[1:], IGNORE).astype(np.int32)
    sequence = Sequence(row[:-1], targets)
    if sequence.learned == 0:
        return None, "too long"
    return sequence, fate
