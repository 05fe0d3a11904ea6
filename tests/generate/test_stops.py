"""Stop strings and characters: whatever the tokens, the stream is the text cut where a stop string first begins."""

from __future__ import annotations

import itertools

import hypothesis.strategies as st
from hypothesis import example, given, settings

from finetwo.generate.stops import AnswerText, StopFilter
from finetwo.text.tokenizer import Tokenizer

LETTERS = st.text(alphabet="abcé🙂", max_size=24)
STOPS = st.lists(st.text(alphabet="abcé🙂", min_size=1, max_size=5), max_size=4)


def cut(text: str, stops: list[str]) -> str:
    return text[: min((text.find(s) for s in stops if s in text), default=len(text))]


@settings(max_examples=1500, deadline=None)
@given(LETTERS, STOPS, st.lists(st.integers(0, 24), max_size=12))
@example("abcab", ["bcc", "c"], [3])  # an open longer stop begins before a found one, and fails
@example("abccb", ["bcc", "c"], [3])  # ... and succeeds
@example("abc", ["bcc", "c"], [3])  # ... and is left open by the end
def test_filter_equals_find(text: str, stops: list[str], cuts: list[int]) -> None:
    bounds = sorted({0, len(text), *(min(c, len(text)) for c in cuts)})
    watch, out = StopFilter(stops), ""
    for a, b in itertools.pairwise(bounds):
        out += watch.push(text[a:b])
        assert cut(text, stops).startswith(out)  # nothing leaks, also meanwhile
    out += watch.flush()
    assert out == cut(text, stops)
    assert watch.stopped == any(s in text for s in stops)


def test_nothing_waits_that_no_stop_begins_with() -> None:
    watch = StopFilter(["\n\n", "END"])
    assert [watch.push(t) for t in ("a", "b\n", "c", "E", "N", "x")] == ["a", "b", "\nc", "", "", "ENx"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(0, 298), max_size=30), STOPS)
def test_random_tokens_stream_as_they_decode(tokenizer: Tokenizer, ids: list[int], stops: list[str]) -> None:
    answer, pieces = AnswerText(tokenizer, stops), []
    for i in ids:
        pieces.append(answer.push(i))
        assert pieces[-1].encode("utf-8").decode("utf-8") == pieces[-1]
        if answer.stopped:
            break
    pieces.append(answer.flush())
    assert "".join(pieces) == cut(tokenizer.decode(ids), stops)


@settings(max_examples=200, deadline=None)
@given(LETTERS)
def test_characters_are_never_split(tokenizer: Tokenizer, text: str) -> None:
    answer = AnswerText(tokenizer, [])
    pieces = [answer.push(i) for b in text.encode("utf-8") for i in [_byte(tokenizer, b)]]
    assert "".join(pieces) == text and answer.flush() == ""
    assert all("�" not in p for p in pieces)


def _byte(tokenizer: Tokenizer, value: int) -> int:
    return next(i for i in range(256) if tokenizer.bytes_of(i) == bytes([value]))


def test_unfinished_bytes_become_the_replacement_character(tokenizer: Tokenizer) -> None:
    answer = AnswerText(tokenizer, [])
    assert [answer.push(_byte(tokenizer, b)) for b in "🙂".encode()[:3]] == ["", "", ""]
    assert answer.flush() == "�"
