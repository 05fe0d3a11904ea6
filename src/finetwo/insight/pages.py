"""Prepared data read from end to end without being held: the pages of its map are given back on the way.

It knows sets of sequences and memory maps. Its one invariant: what is read is the same, only the memory is not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from finetwo.data.cache import Chunks, release_pages
from finetwo.data.loader import Sequences
from finetwo.data.records import Records
from finetwo.data.sequences import Sequence

_EVERY = 1 << 24
"""Tokens that are read before their pages are given back."""


def walk(data: Sequences) -> Iterator[Sequence]:
    """Yield every sequence of a set once, in order."""
    read = 0
    for i in range(len(data)):
        found = data.get(i, 0)
        yield found
        read += len(found)
        if read >= _EVERY:
            release(data)
            read = 0
    release(data)


def release(data: Sequences) -> None:
    """Give the pages of a set back to the system; they are read again when they are asked for."""
    arrays: list[NDArray[np.generic]] = []
    if isinstance(data, Chunks):
        arrays = [data.corpus.tokens]
    elif isinstance(data, Records):
        arrays = [data.tokens, data.targets]
    for array in arrays:
        release_pages(array)
