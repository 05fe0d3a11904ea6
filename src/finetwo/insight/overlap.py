"""BLEU and ROUGE-L of answers against references, by the packages that published figures are taken with.

The only module that imports `sacrebleu` and `rouge_score` (extra `eval`); it knows texts and no models. Its one
invariant: corpus BLEU comes out as `sacrebleu.corpus_bleu` gives it, from ten summed numbers and no kept text.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from types import ModuleType

import numpy as np

from finetwo.core.errors import InputError
from finetwo.insight.interval import Bootstrap, Float64
from finetwo.insight.metric import Answered, Averaged, Interval, Value

_ORDER = 4
"""BLEU counts n-grams of one to four tokens."""
_HEAVY = ("matplotlib", "pandas", "scipy", "sklearn")
"""What nltk, which rouge-score needs for its stemmer alone, imports where it is there: 150 MiB."""


def _missing(metric: str, package: str) -> InputError:
    return InputError(f"--metrics {metric}", f"needs the package {package}", None, "pip install 'finetwo[eval]'")


def _sacrebleu() -> ModuleType:
    try:
        import sacrebleu.metrics
    except ImportError:
        raise _missing("bleu", "sacrebleu") from None
    module: ModuleType = sacrebleu.metrics
    return module


@contextmanager
def _left_out(packages: tuple[str, ...]) -> Iterator[None]:
    """Have packages that are not loaded yet count as not installed, so that what can do without them does."""
    names = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(names))  # type: ignore[arg-type]  # None: Python's mark for "not to be found"
    try:
        yield
    finally:
        for name in names:
            sys.modules.pop(name, None)


class Bleu:
    """Corpus BLEU (0 to 100) with sacrebleu's defaults, one reference per answer."""

    def __init__(self, seed: int) -> None:
        """Raise InputError where sacrebleu is not installed."""
        self._bleu = _sacrebleu().BLEU()
        self._sums = [0] * (2 * _ORDER + 2)
        self._bootstrap = Bootstrap(len(self._sums), seed)

    @property
    def protocol(self) -> str:
        """The signature that sacrebleu asks to be quoted."""
        signature = self._bleu.get_signature() if self._bootstrap.records else "no records"
        return (
            f"corpus BLEU (0 to 100), sacrebleu {signature}, {self._bootstrap.records:,} records, "
            f"{self._bootstrap.protocol}"
        )

    def add(self, answered: Answered) -> None:
        """Count one answer's n-grams."""
        found = self._bleu.corpus_score([answered.answer], [[answered.reference]])
        numbers = [*found.counts, *found.totals, found.sys_len, found.ref_len]
        self._sums = [a + b for a, b in zip(self._sums, numbers, strict=True)]
        self._bootstrap.add(numbers)

    def _score(self, sums: list[int]) -> float:
        counts, totals, lengths = sums[:_ORDER], sums[_ORDER : 2 * _ORDER], sums[2 * _ORDER :]
        return float(self._bleu.compute_bleu(counts, totals, *lengths, smooth_method="exp").score)

    def result(self) -> dict[str, Value]:
        """The score; None of no record."""
        return {"bleu": self._score(self._sums) if self._bootstrap.records else None}

    def intervals(self) -> dict[str, Interval]:
        """Its interval: the score of each resample's sums."""
        found = self._bootstrap.interval(self._resampled)
        return {"bleu": found} if found else {}

    def _resampled(self, sums: Float64) -> Float64:
        return np.array([self._score([int(n) for n in row]) if row[-1] else np.nan for row in sums])


def rouge_l(seed: int) -> Averaged:
    """ROUGE-L F1 (0 to 1) per record, Porter stemming on; InputError where rouge-score is not installed."""
    try:
        with _left_out(_HEAVY):
            from rouge_score.rouge_scorer import RougeScorer
    except ImportError:
        raise _missing("rouge_l", "rouge-score") from None
    scorer = RougeScorer(["rougeL"], use_stemmer=True)

    def score(answered: Answered) -> float:
        return float(scorer.score(answered.reference, answered.answer)["rougeL"].fmeasure)

    what = f"ROUGE-L F1 (0 to 1), rouge-score {version('rouge-score')}, Porter stemmer, words of a-z and 0-9"
    return Averaged("rouge_l", what, score, seed)
