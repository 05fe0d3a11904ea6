"""Distinct n-grams and repetition, counted by hand and against kept n-grams."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetwo.insight.diversity import Distinct, repeated, repetition, words_of
from finetwo.insight.metric import Answered

WORDS = st.lists(st.lists(st.sampled_from(["a", "b", "c", "cat"]), max_size=12), max_size=8)


def answered(text: str) -> Answered:
    return Answered("", "", "", text, "stop")


def test_words_are_lower_cased_and_punctuation_counts() -> None:
    assert words_of("It's the Dog's, isn’t it?\nNo: 365!") == [
        "it's", "the", "dog's", ",", "isn’t", "it", "?", "no", ":", "365", "!",
    ]  # fmt: skip


def test_distinct_by_hand() -> None:
    metric = Distinct()
    metric.add(answered("the cat the cat"))  # the cat | the-cat cat-the | the-cat-the cat-the-cat
    metric.add(answered("The cat sat"))  # sat | cat-sat | the-cat-sat
    assert metric.result() == {"distinct_1": 3 / 7, "distinct_2": 3 / 7, "distinct_3": 3 / 7}
    assert "7 words of 2 answers" in metric.protocol
    assert metric.intervals() == {}


def test_nothing_said_has_no_figure() -> None:
    metric = Distinct()
    metric.add(answered(" \n"))
    assert set(metric.result().values()) == {None}


@settings(max_examples=50, deadline=None)
@given(WORDS)
def test_distinct_is_exact(texts: list[list[str]]) -> None:
    metric = Distinct()
    for words in texts:
        metric.add(answered(" ".join(words)))
    total = sum(map(len, texts))
    for n in (1, 2, 3):
        grams = {tuple(words[i : i + n]) for words in texts for i in range(len(words) - n + 1)}
        assert metric.result()[f"distinct_{n}"] == (len(grams) / total if total else None)


def test_repetition_is_the_share_seen_before() -> None:
    assert repeated("a b c d".split()) == 0.0
    assert repeated("a b c d a b c d".split()) == pytest.approx(1 / 5)
    assert repeated(["a"] * 13) == pytest.approx(9 / 10)
    assert repeated("a b c".split()) is None


def test_answers_too_short_to_repeat_are_left_out() -> None:
    metric = repetition(0)
    for text in ("one two three", "a a a a a", "a b c d e"):
        metric.add(answered(text))
    assert metric.result() == {"repetition_4": 0.25}
    assert "mean of 2 records" in metric.protocol
