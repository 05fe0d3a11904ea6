"""Which tokens of a text are its writer's, and which the page's: where lines end is an edition's choice, not a style.

It knows token ids and their bytes, and no networks. Its one invariant: a token is left out only for being white space
alone, or for standing right behind a line end, where it is written without the blank that it has elsewhere.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from finetwo.text.tokenizer import Tokenizer


class Layout:
    """Tells the tokens of one vocabulary apart."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        table = [tokenizer.bytes_of(t) for t in range(tokenizer.vocab_size)]
        self._blank = np.array([not content.strip() for content in table])
        self._ends_line = np.array([content.rstrip(b" \t\r").endswith(b"\n") for content in table])

    def written(self, tokens: NDArray[np.generic], first: int) -> NDArray[np.bool_]:
        """Return for each token from place `first` (1 or more) on whether it is the writer's, (T - first,)."""
        ids = np.asarray(tokens, dtype=np.int64)
        kept: NDArray[np.bool_] = ~self._blank[ids[first:]] & ~self._ends_line[ids[first - 1 : -1]]
        return kept
