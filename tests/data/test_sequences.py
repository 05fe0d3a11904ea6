"""Targets stand exactly where the answer is (faults 0.1 to 0.5, 0.11, 0.18 of the systems before)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.standins.sequences import encoded

from finetwo.data.batch import pack, pad
from finetwo.data.sequences import IGNORE, Segment, Sequence
from finetwo.tasks.instruct import INSTRUCT
from finetwo.tasks.text import STYLE
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

ROOM = 100_000
TEXTS = st.text(alphabet="ab é猫🙂\n\t'1.<|>", max_size=30)


def kept(tokenizer: Tokenizer, segments: list[Segment], room: int = ROOM) -> Sequence:
    sequence, _ = encoded(tokenizer, segments, room)
    assert sequence is not None
    return sequence


def learned(sequence: Sequence) -> list[int]:
    return [int(t) for t in sequence.targets if t != IGNORE]


@pytest.mark.parametrize("name", ["alpaca", "dolly", "plain"])
@given(prompt=TEXTS, more=TEXTS, ending=st.sampled_from(["", " ", "\n", "\n\n", "  \n"]), answer=TEXTS)
@settings(max_examples=60, deadline=None)
def test_what_is_learned_is_the_answer_and_its_end(
    tiny_tokenizer: Tokenizer, name: str, prompt: str, more: str, ending: str, answer: str
) -> None:
    # A prompt that ends in blanks must not swallow the answer's first byte (trl#1820): both are encoded apart.
    template = Template.named(name)
    fields = {"prompt": prompt + ending, "input": more, "completion": answer}
    sequence = kept(tiny_tokenizer, INSTRUCT.write(fields, template))
    ids = learned(sequence)
    assert ids[-1] == tiny_tokenizer.eot and ids.count(tiny_tokenizer.eot) == 1
    assert tiny_tokenizer.decode_bytes(ids[:-1]) == answer.encode()
    shown = tiny_tokenizer.encode(template.prompt(fields))
    assert sequence.tokens[: len(shown)].tolist() == shown  # the training prompt is the serving prompt
    assert sequence.targets[: len(shown) - 1].tolist() == [IGNORE] * (len(shown) - 1)
    assert sequence.targets[len(shown) - 1 :].tolist() == ids


@given(prompt=TEXTS.filter(bool), answer=TEXTS, room=st.integers(1, 40))
@settings(max_examples=150, deadline=None)
def test_a_cut_loses_the_end_and_nothing_else(tiny_tokenizer: Tokenizer, prompt: str, answer: str, room: int) -> None:
    segments = [Segment(prompt, False), Segment(answer, True, end=True)]
    whole = kept(tiny_tokenizer, segments)
    sequence, fate = encoded(tiny_tokenizer, segments, room)
    assert (fate == "kept") == (len(whole) <= room)
    if sequence is None:
        assert fate == "too long" and (whole.targets[:room] == IGNORE).all()
        return
    assert len(sequence) == min(room, len(whole)) and sequence.learned > 0
    assert sequence.tokens.tolist() == whole.tokens[:room].tolist()
    assert sequence.targets.tolist() == whole.targets[:room].tolist()
    assert (tiny_tokenizer.eot in sequence.targets) == (fate == "kept")  # a cut answer never teaches to stop there


def test_header_and_prompt_carry_no_loss(tiny_tokenizer: Tokenizer) -> None:
    fields = {"prompt": "Count.", "input": "", "completion": "1 2"}
    sequence = kept(tiny_tokenizer, INSTRUCT.write(fields, Template.named("alpaca")))
    assert tiny_tokenizer.decode(learned(sequence)) == "1 2<|endoftext|>"
    unlearned = [int(t) for t in sequence.tokens[1:][sequence.targets[:-1] == IGNORE]]
    assert tiny_tokenizer.decode([int(sequence.tokens[0]), *unlearned]).endswith("### Response:\n")


def test_padding_carries_no_loss_and_end_of_text_does(tiny_tokenizer: Tokenizer) -> None:
    rows = [
        kept(tiny_tokenizer, [Segment("Q: " + "why " * n, False), Segment("so", True, end=True)]) for n in (1, 30, 4)
    ]
    batch, packed = pad(rows), pack(rows)
    assert batch.learned == packed.learned == sum(r.learned for r in rows)
    for i, row in enumerate(rows):
        assert (batch.targets[i, len(row) :] == IGNORE).all()
        assert batch.targets[i, len(row) - 1] == tiny_tokenizer.eot
    assert batch.tokens.shape[1] == max(map(len, rows))  # not the context length


def test_user_text_that_spells_the_end_is_text(tiny_tokenizer: Tokenizer) -> None:
    ends = "<|endoftext|>"
    sequence = kept(tiny_tokenizer, [Segment(f"a{ends}", False), Segment(f"b{ends}", True, end=True)])
    assert (sequence.tokens == tiny_tokenizer.eot).sum() == 0
    assert learned(sequence).count(tiny_tokenizer.eot) == 1
    assert tiny_tokenizer.decode(learned(sequence)) == f"b{ends}{ends}"


def test_targets_are_the_next_tokens(tiny_tokenizer: Tokenizer) -> None:
    sequence = kept(tiny_tokenizer, STYLE.write({"text": "The lamp went out."}, Template.named("plain")))
    assert sequence.tokens.dtype == sequence.targets.dtype == np.int32
    assert sequence.targets[:-1].tolist() == sequence.tokens[1:].tolist()
    assert sequence.targets[-1] == tiny_tokenizer.eot and sequence.learned == len(sequence)


def test_several_learned_stretches(tiny_tokenizer: Tokenizer) -> None:
    turns = [Segment("A:", False), Segment(" x", True, end=True), Segment("B:", False), Segment(" y", True, end=True)]
    sequence = kept(tiny_tokenizer, turns)
    assert tiny_tokenizer.decode(learned(sequence)) == " x<|endoftext|> y<|endoftext|>"


@pytest.mark.parametrize("segments", [[], [Segment("only read", False)], [Segment("", True)]])
def test_nothing_to_learn(tiny_tokenizer: Tokenizer, segments: list[Segment]) -> None:
    assert encoded(tiny_tokenizer, segments, ROOM) == (None, "too long")
