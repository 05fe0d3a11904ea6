"""Copied sequences: every answer against a search that looks at every place."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetwo.insight import copying
from finetwo.insight.copying import Span, matches

TOKENS = st.integers(0, 2)
SOURCES = st.lists(TOKENS, max_size=40)
TEXTS = st.lists(st.lists(TOKENS, max_size=14), max_size=3)


def stands(part: Sequence[int], source: Sequence[int]) -> list[int]:
    return [i for i in range(len(source) - len(part) + 1) if list(source[i : i + len(part)]) == list(part)]


def longest(text: Sequence[int], at: int, source: Sequence[int]) -> int:
    return max((n for n in range(1, len(text) - at + 1) if stands(text[at : at + n], source)), default=0)


def brute(source: Sequence[int], texts: Sequence[Sequence[int]], least: int) -> list[list[int]]:
    """For each token of each text the longest copied sequence that begins there, 0 below `least`."""
    found = [[longest(text, i, source) for i in range(len(text))] for text in texts]
    return [[n if n >= least else 0 for n in row] for row in found]


def as_lists(found: copying.Matches) -> list[list[int]]:
    return [row.tolist() for row in found.longest]


@settings(max_examples=60, deadline=None)
@given(SOURCES, TEXTS, st.integers(1, 5), st.sampled_from([1, 7, 1 << 18]))
def test_every_place_as_by_brute_force(source: list[int], texts: list[list[int]], least: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(copying, "_BLOCK", block)
        patch.setattr(copying, "_PAIRS", block)
        found = matches(np.array(source, dtype=np.uint16), texts, least)
    wanted = brute(source, texts, least)
    assert as_lists(found) == wanted
    for n in range(least, least + 4):
        copied = [sum(bool(stands(t[i : i + n], source)) for i in range(len(t) - n + 1)) for t in texts]
        assert found.counts(n) == [(c, max(0, len(t) - n + 1)) for c, t in zip(copied, texts, strict=True)]
    for span in found.spans:
        text = texts[span.text]
        assert source[span.origin : span.origin + span.length] == text[span.begin : span.begin + span.length]
        assert wanted[span.text][span.begin] == span.length  # it goes no further
        assert not span.begin or wanted[span.text][span.begin - 1] <= span.length  # and begins no earlier
    covered = {(s.text, i) for s in found.spans for i in range(s.begin, s.begin + s.length)}
    assert covered == {(t, i + k) for t, row in enumerate(wanted) for i, n in enumerate(row) for k in range(n)}
    assert [s.length for s in found.spans] == sorted((s.length for s in found.spans), reverse=True)


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_long_texts_of_real_sizes(dtype: type[np.generic]) -> None:
    """A planted span across the border of two blocks, among 300,000 random tokens."""
    rng = np.random.default_rng(3)
    source = rng.integers(0, 50_257, 300_000).astype(dtype)
    begin = copying._BLOCK - 20
    text = np.concatenate((rng.integers(0, 50_257, 30), source[begin : begin + 37], rng.integers(0, 50_257, 30)))
    (span,) = matches(source, [text], 8).spans
    assert span == Span(0, 30, 37, begin)


def test_hashes_only_propose(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were every hash the same, the answer would be too."""
    source, texts = [1, 2, 3, 4, 5, 1, 2, 3], [[2, 3, 4, 9, 1, 2, 3], [7, 7, 7]]
    monkeypatch.setattr(copying, "_hashes", lambda tokens, n: np.zeros(max(0, len(tokens) - n + 1), np.uint64))
    found = as_lists(matches(np.array(source), texts, 3))
    assert found == brute(source, texts, 3)
    assert found == [[3, 0, 0, 0, 3, 0, 0], [0, 0, 0]]


def test_texts_do_not_run_into_each_other() -> None:
    assert matches(np.array([1, 2, 3, 4]), [[1, 2], [3, 4]], 3).spans == []


def test_the_rate_is_of_all_n_grams_together() -> None:
    found = matches(np.arange(100), [list(range(10)), [200] * 30, [1, 2, 3]], 8)
    rate = found.rate(8, seed=0)
    assert (rate["copied"], rate["n_grams"], rate["rate"]) == (3, 26, 3 / 26)
    assert rate["interval"][0] == 0.0
    assert rate["interval"] == found.rate(8, seed=0)["interval"]
    assert found.rate(50, seed=0) == {"copied": 0, "n_grams": 0, "rate": None, "interval": None}


@pytest.mark.parametrize(("source", "texts"), [([], [[1, 2, 3]]), ([1, 2, 3], []), ([1], [[1]]), ([], [])])
def test_nothing_to_look_for_or_in(source: list[int], texts: list[list[int]]) -> None:
    found = matches(np.array(source, dtype=np.int64), texts, 2)
    assert found.spans == []
    assert as_lists(found) == [[0] * len(t) for t in texts]
