"""A shared beginning is found, and ends where the tokens of a text can be taken apart."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetwo.data.beginnings import shared_beginnings
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

LONG = "Below is an instruction that describes a task, and what is asked"
PIECES = [" ", "\n", "\n\n", "\t", "\x1c", "\u00a0", "'s", "'", "x", "7", "é", "猫", ".", "##", "it's", " the"]
QUICK = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECE_TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(common=PIECE_TEXTS, inner=PIECE_TEXTS, rests=st.lists(PIECE_TEXTS, min_size=8, max_size=12))
@QUICK
def test_beginning_and_rest_have_the_tokens_of_the_whole(
    tiny_tokenizer: Tokenizer, common: str, inner: str, rests: list[str]
) -> None:
    texts = [LONG + common + (inner + rest if i % 2 else rest) for i, rest in enumerate(rests * 2)]
    heads = shared_beginnings(texts)
    assert all(heads), "what all of them share has places to cut"
    for text, head in zip(texts, heads, strict=True):
        assert text.startswith(head)
        rest = text[len(head) :]
        assert tiny_tokenizer.encode(head) + tiny_tokenizer.encode(rest) == tiny_tokenizer.encode(text)


def test_the_words_of_both_alpaca_templates_are_found() -> None:
    template = Template.named("alpaca")
    asked = [{"prompt": f"{n} is asked", "input": "x" * (n % 2)} for n in range(40)]
    heads = shared_beginnings([template.prompt(fields) for fields in asked])
    assert {head.rsplit("\n", 1)[1] for head in heads} == {"### Instruction:"} and len(set(heads)) == 2


def test_few_texts_and_short_ones_share_nothing() -> None:
    assert shared_beginnings([LONG] * 7) == [""] * 7
    assert shared_beginnings(["a b", "a c"] * 20) == [""] * 40
    assert shared_beginnings(["x" * 80] * 20) == [""] * 20, "no place to cut"
    assert shared_beginnings([]) == []


def test_texts_that_are_all_the_same() -> None:
    assert set(shared_beginnings([LONG] * 9)) == {LONG.rsplit(" ", 1)[0]}
