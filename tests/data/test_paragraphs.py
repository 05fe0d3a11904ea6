"""Cutting long texts: the pieces joined are the text, and so are their tokens."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.standins.models import TEXT

from finetwo.core.errors import InputError
from finetwo.data import paragraphs as module
from finetwo.data.paragraphs import paragraphs, whole
from finetwo.text.tokenizer import Tokenizer

PIECES = st.lists(
    st.sampled_from(["a", "B ", " ", "  ", "\n", "\n\n", "\t", "1", ".", "'s", "é", "猫", "\u00a0", "_", "x\ny", " 7"]),
    max_size=60,
)


@given(pieces=st.one_of(PIECES, st.lists(st.text(max_size=20), max_size=6)), target=st.integers(1, 12))
@settings(max_examples=400, deadline=None)
def test_pieces_are_the_text_and_its_tokens(tiny_tokenizer: Tokenizer, pieces: list[str], target: int) -> None:
    text = "".join(pieces)
    found = list(paragraphs(pieces, "here", target))
    assert "".join(found) == text and all(found)
    assert [i for p in found for i in tiny_tokenizer.encode(p)] == tiny_tokenizer.encode(text)
    assert all(len(p) >= target for p in found[:-1])
    assert found == list(paragraphs([text], "here", target)), "where the text came in pieces does not matter"


def test_pieces_are_near_their_size() -> None:
    text = TEXT * 50
    found = list(paragraphs([text], "here", 300))
    assert len(found) > len(text) / 400 and max(map(len, found)) < 400
    line = TEXT.replace("\n", " ") * 50  # no line break at all
    assert max(map(len, paragraphs(list(line), "here", 300))) < 400


def test_a_text_without_a_place_to_cut_stays_whole_up_to_a_limit() -> None:
    text = "ab" * 500
    assert list(paragraphs([text], "here", 10)) == [text] and list(paragraphs([], "here", 10)) == []
    assert list(paragraphs([text] * 2, "here", 10, limit=2000)) == [text * 2]
    with pytest.raises(InputError, match="here: more than 1,000 characters without a line break or blank before"):
        list(paragraphs([text] * 2, "here", 10, limit=1000))


def test_whole_is_limited_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert list(whole(["a", "b c\n", "d"], "here")) == ["ab c\nd"]
    monkeypatch.setattr(module, "MAX_DOCUMENT", 4)
    with pytest.raises(InputError, match="here: longer than 4 characters, with a tokenizer that does not cut"):
        list(whole(["abc", "de"], "here"))
