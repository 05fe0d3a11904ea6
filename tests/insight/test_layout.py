"""What a page does to a text is told apart from what its writer wrote."""

from __future__ import annotations

import numpy as np
import pytest

from finetwo.insight.layout import Layout
from finetwo.text.tokenizer import Tokenizer


def kept(tokenizer: Tokenizer, text: str, first: int = 1) -> list[str]:
    """The texts of the tokens that count, of `text` behind a token that stands before it."""
    ids = np.array([*tokenizer.encode("."), *tokenizer.encode(text)])
    mask = Layout(tokenizer).written(ids, first)
    assert mask.shape == (len(ids) - first,)
    return [tokenizer.decode([int(t)]) for t, yes in zip(ids[first:], mask, strict=True) if yes]


def test_a_line_of_text_counts_whole(tiny_tokenizer: Tokenizer) -> None:
    assert "".join(kept(tiny_tokenizer, " the lamp, and no wind.")) == " the lamp, and no wind."


@pytest.mark.parametrize("end", ["\n", "\n\n", "\r\n"])
def test_a_line_end_and_what_stands_behind_it_do_not(end: str, tiny_tokenizer: Tokenizer) -> None:
    assert "".join(kept(tiny_tokenizer, f" the lamp{end}x wind")) == " the lamp wind"
    assert kept(tiny_tokenizer, f"{end}x") == []


def test_blanks_do_not_count(tiny_tokenizer: Tokenizer) -> None:
    assert "".join(kept(tiny_tokenizer, " the   lamp\t")).split() == ["the", "lamp"]
    assert all(part.strip() for part in kept(tiny_tokenizer, " the   lamp\t "))


def test_the_token_before_the_first_is_looked_at(tiny_tokenizer: Tokenizer) -> None:
    """A passage that begins to be scored behind a line end: its first scored token is the layout's."""
    ids = np.array(tiny_tokenizer.encode("\nx wind"))
    assert Layout(tiny_tokenizer).written(ids, 1)[0] == np.False_
    assert Layout(tiny_tokenizer).written(ids, 2)[0] == np.True_
