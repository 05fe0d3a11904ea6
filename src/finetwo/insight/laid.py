"""A record as a model reads it, and the part that each token plays, told from the texts alone.

It knows texts, tokens and masks, and no network; it shares no code with what prepares data for training. Its one
invariant: a token's role follows from the bytes it stands for, so a mask that was made wrongly cannot hide itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from finetwo.text.tokenizer import Tokenizer

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]
ROLES = ("prompt", "header", "answer", "end", "padding", "other")
"""Roles of tokens: the user's words, the template's, what is to be learned, end-of-text, padding, and anything else."""
PROMPT, HEADER, ANSWER, END, PADDING, OTHER = range(6)


@dataclass(frozen=True)
class Piece:
    """A stretch of a record's text: its role (prompt, header or answer), and whether end-of-text belongs behind it."""

    role: str
    text: str
    end: bool = False


@dataclass(frozen=True)
class Laid:
    """One record as a model reads it: tokens (n,), whether each is learned (n,), whether it is no padding (n,)."""

    where: str
    tokens: Ints
    learned: Bools
    real: Bools
    pieces: tuple[Piece, ...]
    whole: bool = True
    """Whether nothing was cut off."""
    served: str | None = None
    """The prompt that the model will be given in use, where it is known."""
    label: str = ""
    """The class that its last token carries, where it carries one."""


def laid(
    where: str,
    tokens: Sequence[int] | Ints,
    learned: Sequence[int] | Bools | Ints,
    attention: Sequence[int] | Bools | Ints,
    pieces: Sequence[Piece],
    *,
    whole: bool = True,
    served: str | None = None,
) -> Laid:
    """Return a record of any preparation: `learned[i]` tells whether token i is predicted with loss, not zero if so.

    Labels in the manner of Hugging Face become such a mask by `labels != -100`. The first token has nothing before it
    to be predicted from, and is never learned.
    """
    ids = np.asarray(tokens, dtype=np.int64)
    mask = np.asarray(learned).astype(bool).copy()
    mask[:1] = False
    return Laid(where, ids, mask, np.asarray(attention).astype(bool), tuple(pieces), whole, served)


class Table:
    """The bytes of every token, for many records."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.eot = tokenizer, tokenizer.eot

    @cached_property
    def lengths(self) -> Ints:
        """Bytes of each token (V,), 0 for end-of-text."""
        found = np.array([len(self.tokenizer.bytes_of(i)) for i in range(self.tokenizer.vocab_size)], dtype=np.int64)
        found[self.eot] = 0
        return found

    def text(self, tokens: Ints) -> bytes:
        """The bytes of tokens, end-of-text left out."""
        return self.tokenizer.decode_bytes(tokens[tokens != self.eot].tolist())


@dataclass(frozen=True)
class Told:
    """What the roles of a record's tokens are, and how its answers fared."""

    roles: NDArray[np.int8]
    """Role of each token, an index into `ROLES`."""
    answer_of: NDArray[np.int32]
    """For tokens of an answer or its end the number of the answer, else -1."""
    answers: tuple[bytes, ...]
    faithful: bool
    """Whether the tokens spell the texts: all of them, or for a cut record their beginning."""


def tell(record: Laid, table: Table) -> Told:
    """Return the role of every token of `record`, by the bytes that its tokens and its texts stand for."""
    encoded = [p.text.encode("utf-8", "surrogatepass") for p in record.pieces]
    kinds = [ROLES.index(p.role) for p in record.pieces]
    bounds = np.cumsum([len(b) for b in encoded], dtype=np.int64) if encoded else np.zeros(0, dtype=np.int64)
    numbers = np.cumsum([k == ANSWER for k in kinds], dtype=np.int32) - 1
    sizes = table.lengths[record.tokens] * record.real
    starts = np.cumsum(sizes) - sizes
    piece = np.minimum(np.searchsorted(bounds, starts, side="right"), max(0, len(kinds) - 1))
    roles = np.asarray(kinds or [OTHER], dtype=np.int8)[piece]
    roles[starts >= (bounds[-1] if len(bounds) else 0)] = OTHER
    ends = {int(bounds[i]): i for i, p in enumerate(record.pieces) if p.end}
    answer_of = np.where(roles == ANSWER, np.asarray(numbers, dtype=np.int32)[piece] if kinds else -1, -1)
    for at in np.flatnonzero((record.tokens == table.eot) & record.real).tolist():
        i = ends.pop(int(starts[at]), None)  # the first end-of-text behind a piece is its end, another is none
        roles[at] = OTHER if i is None else END
        answer_of[at] = -1 if i is None or kinds[i] != ANSWER else int(numbers[i])
    roles[~record.real] = PADDING
    answer_of[~record.real] = -1
    text, spelled = b"".join(encoded), table.text(record.tokens[record.real])
    faithful = spelled == text if record.whole else text.startswith(spelled)
    answers = tuple(b for b, k in zip(encoded, kinds, strict=True) if k == ANSWER)
    return Told(roles.astype(np.int8), answer_of.astype(np.int32), answers, faithful)
