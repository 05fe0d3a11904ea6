"""Names of the training text that turn up in what a model writes.

It knows English texts and no models. Its one invariant: a word is a name only if the training text writes it with a
capital inside sentences, more often than it writes it without one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

_INSIDE = re.compile(r"(?:(?<=[a-z,;] )|(?<=\bMr )|(?<=\bMrs )|(?<=\bMr\. )|(?<=\bMrs\. ))([A-Z][a-zà-ÿ]+)(?![\w])")
_WORD = re.compile(r"(?<!\w)[A-Z]?[a-zà-ÿ]+(?!\w)")
_CAPITAL = re.compile(r"(?<!\w)[A-Z][a-zà-ÿ]+(?!\w)")
_LEAST = 2
"""Times that a name stands in the training text."""


@dataclass(frozen=True)
class CarriedName:
    """A name, in how many generated texts it stands, and how often in the training text."""

    name: str
    texts: int
    in_training: int
    in_held_out: bool


def training_names(pieces: Iterable[str]) -> Counter[str]:
    """Count the names of a text that comes in pieces."""
    inside: Counter[str] = Counter()
    low: Counter[str] = Counter()
    for piece in pieces:
        text = " ".join(piece.split())
        inside.update(_INSIDE.findall(text))
        low.update(w for w in _WORD.findall(text) if w[0].islower())
    return Counter({n: c for n, c in inside.items() if c >= _LEAST and c > low[n.lower()]})


def carried(
    names: Counter[str], generated: Sequence[str], base: Sequence[str], openings: Sequence[str], held_out: Sequence[str]
) -> tuple[list[CarriedName], int]:
    """Return the training text's names in `generated`, most frequent first, and how many of these texts hold one.

    Names that the base writes too, or that stand in any of the openings, are no news.
    """
    known = {word for text in [*base, *openings] for word in _CAPITAL.findall(text)}
    natural = {word for text in held_out for word in _CAPITAL.findall(text)}
    counts: Counter[str] = Counter()
    touched = 0
    for text in generated:
        here = {w for w in _CAPITAL.findall(text) if w in names and w not in known}
        counts.update(here)
        touched += bool(here)
    order = sorted(counts.items(), key=lambda i: (-i[1], i[0]))
    return [CarriedName(n, c, names[n], n in natural) for n, c in order], touched
