"""From text with roles to tokens with targets: `Segment`, `Sequence`, and their encoding.

It knows no tasks and no network. Its one invariant: a target stands exactly where the next token belongs to a
segment that is learned (for a classifier: on the document's last token), by construction and never by searching the
text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetwo.core.errors import InputError
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
    """Tokens (n,) and targets (n,), int32: targets[i] is the id that follows tokens[i], or IGNORE.

    For a classifier the last target is the class, all others are IGNORE.
    """

    tokens: Int32
    targets: Int32

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def learned(self) -> int:
        """Number of targets that carry loss."""
        return int((self.targets != IGNORE).sum())


Fate = Literal["kept", "truncated", "too long"]


def encode_document(
    tokenizer: Tokenizer, segments: list[Segment], max_length: int, target: int, where: str = "document"
) -> tuple[Sequence, Fate]:
    """Encode a document whose last token carries the class `target`; no end-of-text is appended.

    A segment with `end` is followed by the end-of-text id, which separates it from the next. A document longer than
    `max_length` tokens loses the end of its longest segment, so that of a pair both stay.

    Raises:
        InputError: a document without a token, or a `max_length` that leaves its segments no room.
    """
    parts = [tokenizer.encode(segment.text) for segment in segments]
    room = max_length - sum(segment.end for segment in segments)
    excess = sum(map(len, parts)) - room
    if not all(parts) or room < len(parts):
        what = "a document without text" if not all(parts) else f"{max_length} tokens have no room for the document"
        raise InputError(where, what, None, "give texts that are not empty, and a larger max_length")
    for _ in range(excess):
        longest = max(parts, key=len)
        del longest[-1]
    ids: list[int] = []
    for segment, part in zip(segments, parts, strict=True):
        ids += [*part, tokenizer.eot] if segment.end else part
    targets = np.full(len(ids), IGNORE, dtype=np.int32)
    targets[-1] = target
    return Sequence(np.asarray(ids, dtype=np.int32), targets), "truncated" if excess > 0 else "kept"
