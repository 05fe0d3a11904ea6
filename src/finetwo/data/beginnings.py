"""Finds the beginnings that many texts share, such as a template's words, so that they are encoded once.

It knows GPT-2's rule for the cut before merging, and nothing of tokens. Its invariant: a beginning ends where that rule
cuts whatever follows, so its tokens and those of the rest, joined, are those of the text.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

_WINDOW = 32
"""Characters by which texts are told apart at a time; a beginning's last piece may be this much longer than found."""
_LEAST = 8
"""Texts that must share a beginning for it to pay."""
_DEPTH = 6
"""How often texts that begin alike are told apart further on."""


def shared_beginnings(texts: Sequence[str]) -> list[str]:
    """Return for each text the beginning that it shares with others, or ''; at a place where GPT-2 cuts.

    A character that is neither blank nor line break, before one that is: no piece of text goes over that place, since a
    piece holds blanks only, or none but the one that it may begin with.
    """
    found = [""] * len(texts)
    groups = [(list(range(len(texts))), 0)]
    for _ in range(_DEPTH):
        finer: list[tuple[list[int], int]] = []
        for members, at in groups:
            alike: defaultdict[str, list[int]] = defaultdict(list)
            for i in members:
                alike[texts[i][at : at + _WINDOW]].append(i)
            for window, several in alike.items():
                if len(several) >= _LEAST and len(window) == _WINDOW:
                    finer.append((several, _share([texts[i] for i in several], several, found, at)))
        groups = finer
    return found


def _share(texts: Sequence[str], members: Sequence[int], found: list[str], at: int) -> int:
    """Note the beginning that all of `texts` share beyond `at`; return where they part."""
    first, last = min(texts), max(texts)
    parted = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))
    common = first[:parted]  # of the first and the last in order is of all
    cut = _last_cut(common, at)
    if cut > 0:
        for i in members:
            found[i] = common[:cut]
    return max(len(common), at + _WINDOW)


def _last_cut(text: str, at: int) -> int:
    """The last place in `text` beyond `at` where GPT-2 cuts whatever stands around it; 0 where there is none."""
    for i in range(len(text) - 1, at, -1):
        if text[i] in " \n" and "!" <= text[i - 1] <= "~":
            return i
    return 0
