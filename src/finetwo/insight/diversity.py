"""How varied answers are: distinct n-grams over all of them, and how much each repeats itself.

It knows words and no models. Its one invariant: distinct n-grams are counted exactly, from word numbers and not from
kept texts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from finetwo.insight.metric import Answered, Averaged, Interval, Value

_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")
_ORDERS = (1, 2, 3)
_REPEATED = 4
_TOKENS = "lower-cased words and punctuation marks"


def words_of(text: str) -> list[str]:
    """The words and punctuation marks of a text, lower-cased."""
    return _WORD.findall(text.lower())


class Distinct:
    """distinct-1, -2 and -3: the number of distinct n-grams in all answers, divided by the number of all their words.

    Definition of Li et al. 2016, "A Diversity-Promoting Objective Function for Neural Conversation Models", for one and
    two words; three is the same rule. (Others divide by the number of n-grams.) It falls as a set grows, so only sets
    of equal size compare.
    """

    def __init__(self) -> None:
        self._records = self._words = 0
        self._numbers: dict[str, int] = {}
        self._seen: dict[int, set[int]] = {n: set() for n in _ORDERS}

    @property
    def protocol(self) -> str:
        """What is counted, and over how many answers: figures of other numbers do not compare."""
        return (
            f"distinct n-grams / all words (Li et al. 2016), {_TOKENS}, {self._words:,} words of {self._records:,} "
            "answers together"
        )

    def add(self, answered: Answered) -> None:
        """Count one answer's n-grams."""
        numbers = [self._numbers.setdefault(word, len(self._numbers)) for word in words_of(answered.answer)]
        self._records += 1
        self._words += len(numbers)
        for n, seen in self._seen.items():
            seen.update(_packed(numbers, n))

    def result(self) -> dict[str, Value]:
        """distinct_1, distinct_2 and distinct_3; None where the answers have no word."""
        return {f"distinct_{n}": len(seen) / self._words if self._words else None for n, seen in self._seen.items()}

    def intervals(self) -> dict[str, Interval]:
        """None: the figures are no means over records."""
        return {}


def _packed(numbers: list[int], n: int) -> Iterator[int]:
    """Each n-gram of word numbers as one integer."""
    for i in range(len(numbers) - n + 1):
        key = 0
        for number in numbers[i : i + n]:
            key = key << 32 | number
        yield key


def repetition(seed: int) -> Averaged:
    """Share of an answer's four-word sequences that stood in it before, averaged over answers of four words or more.

    One minus the share of distinct ones, the seq-rep-4 of Welleck et al. 2020 ("Neural Text Generation with
    Unlikelihood Training"), over words where they count the model's tokens.
    """
    what = f"share of an answer's 4-grams that stood in it before (seq-rep-4 of Welleck et al. 2020), {_TOKENS}"
    return Averaged("repetition_4", what, lambda a: repeated(words_of(a.answer)), seed)


def repeated(words: list[str], n: int = _REPEATED) -> float | None:
    """Share of n-grams that stood in `words` before; None where there is none."""
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else None
