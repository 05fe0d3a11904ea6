"""Records encoded many at a time are the records encoded one by one."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.standins.models import TEXT

from finetwo.core.errors import InputError
from finetwo.data import encoding
from finetwo.data.encoding import encode_records
from finetwo.data.sequences import IGNORE, Fate, Segment, Sequence
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer
from finetwo.text.vocabulary import Vocabulary

QUICK = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
PART = st.one_of(
    st.text(alphabet="ab é猫\n\t'1.<|>", max_size=20),
    st.sampled_from(["", "<|text-ends-here|>", "<|endoftext|>"]),
    st.text(alphabet="ab \n", max_size=9).map(lambda rest: "### A beginning that many texts share:\n" + rest),
)
RECORD = st.lists(st.builds(Segment, PART, st.booleans(), st.booleans()), max_size=4)


def encode_segments(tokenizer: Tokenizer, segments: list[Segment], max_length: int) -> tuple[Sequence | None, Fate]:
    """Encode each segment on its own and set the targets; cut at `max_length` tokens of input.

    A cut sequence loses its end, end-of-text included, so a cut answer never teaches the model to stop there. None
    when nothing that is learned fits.
    """
    ids: list[int] = []
    learn: list[bool] = []
    for segment in segments:
        part = tokenizer.encode(segment.text)
        if segment.end:
            part = [*part, tokenizer.eot]
        ids += part
        learn += [segment.learn] * len(part)
    fate: Fate = "kept" if len(ids) <= max_length + 1 else "truncated"
    row = np.asarray(ids[: max_length + 1], dtype=np.int32)
    targets = np.where(np.asarray(learn[1 : max_length + 1], dtype=bool), row[1:], IGNORE).astype(np.int32)
    sequence = Sequence(row[:-1], targets)
    if sequence.learned == 0:
        return None, "too long"
    return sequence, fate


def same(tokenizer: Tokenizer, records: list[list[Segment]], room: int) -> None:
    found = list(encode_records(tokenizer, iter(records), room))
    wanted = [encode_segments(tokenizer, record, room) for record in records]
    assert [fate for _, fate in found] == [fate for _, fate in wanted]
    for (ours, _), (theirs, _) in zip(found, wanted, strict=True):
        assert (ours is None) == (theirs is None)
        if ours is not None and theirs is not None:
            assert ours.tokens.dtype == theirs.tokens.dtype and ours.targets.dtype == theirs.targets.dtype
            assert ours.tokens.tolist() == theirs.tokens.tolist() and ours.targets.tolist() == theirs.targets.tolist()


@given(records=st.lists(RECORD, max_size=30), room=st.integers(1, 30))
@QUICK
def test_many_are_one_by_one(tiny_tokenizer: Tokenizer, records: list[list[Segment]], room: int) -> None:
    same(tiny_tokenizer, records, room)


@pytest.mark.parametrize("name", ["alpaca", "dolly", "plain", "chat"])
def test_records_of_a_template_in_many_groups(
    tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(encoding, "GROUP", 6000)
    template, rng = Template.named(name), random.Random(0)
    shared: list[int] = []
    real = encoding.shared_beginnings

    def spy(texts: list[str]) -> list[str]:
        heads = real(texts)
        shared.append(sum(map(len, heads)))
        return heads

    monkeypatch.setattr(encoding, "shared_beginnings", spy)
    records = []
    for n in range(400):
        at = rng.randrange(len(TEXT) - 60)
        prompt = {"prompt": TEXT[at : at + n % 60], "input": TEXT[at : at + 20] if n % 3 == 0 else ""}
        answer = " " * (n % 2) + TEXT[at : at + 30]
        records.append([Segment(template.prompt(prompt), False), Segment(answer, True, end=True)])
    same(tiny_tokenizer, records, 40)
    assert len(shared) > 3
    assert (sum(shared) > 0) == (name == "alpaca"), "a long beginning of a template is encoded once"


def test_a_vocabulary_that_cuts_otherwise(tiny_tokenizer: Tokenizer) -> None:
    """Beginnings are shared only where they are known to be whole tokens."""
    v = tiny_tokenizer.vocabulary
    whole: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    tokenizer = Tokenizer(Vocabulary(v.ids, v.merges, v.added, v.eot, whole))
    records = [[Segment(f"Text that all of them share at the start {n}", n % 2 == 0)] for n in range(20)]
    same(tokenizer, records, 50)


def test_the_text_with_half_a_pair_is_named(tiny_tokenizer: Tokenizer) -> None:
    records = [[Segment("fine", True)], [Segment("ab\ud83d", True)]]
    with pytest.raises(InputError, match="half of a surrogate pair at character 2 "):
        list(encode_records(tiny_tokenizer, records, 8))
    alike = "### A beginning that many texts share:\n"
    records = [[Segment(f"{alike}{n}", True)] for n in range(9)] + [[Segment(f"{alike}ab\ud83d", True)]]
    with pytest.raises(InputError, match=f"half of a surrogate pair at character {len(alike) + 2} "):
        list(encode_records(tiny_tokenizer, records, 8))


def test_records_are_taken_as_they_are_needed(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory does not grow with the number of records."""
    monkeypatch.setattr(encoding, "GROUP", 10)
    taken: list[int] = []

    def records() -> Any:
        for n in range(1000):
            taken.append(n)
            yield [Segment(f"a record {n}", True)]

    next(encode_records(tiny_tokenizer, records(), 8))
    assert len(taken) < 1000
