"""Two layouts of the same sequences."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from finetwo.data.batch import Batch, layout, pack, pad
from finetwo.data.sequences import IGNORE, Sequence


def sequences(lengths: list[int]) -> list[Sequence]:
    rng = np.random.default_rng(0)
    found = []
    for n in lengths:
        targets = rng.integers(0, 9, n, dtype=np.int32)
        targets[rng.random(n) < 0.5] = IGNORE
        found.append(Sequence(rng.integers(0, 9, n, dtype=np.int32), targets))
    return found


def runs(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return what the sequences of a batch were, told by positions alone (and by width where it is padded)."""
    found: list[tuple[list[int], list[int]]] = []
    for tokens, positions, targets in zip(batch.tokens, batch.positions, batch.targets, strict=True):
        for token, position, target in zip(tokens.tolist(), positions.tolist(), targets.tolist(), strict=True):
            if position == 0:
                found.append(([], []))
            assert position == len(found[-1][0])
            found[-1][0].append(token)
            found[-1][1].append(target)
    return found


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=6)


@given(LENGTHS)
def test_packing_keeps_every_token_in_one_row(lengths: list[int]) -> None:
    rows = sequences(lengths)
    batch = pack(rows)
    assert batch.packed and batch.real == sum(lengths) and batch.tokens.shape == (1, sum(lengths))
    assert runs(batch) == [(r.tokens.tolist(), r.targets.tolist()) for r in rows]


@given(LENGTHS)
def test_padding_is_on_the_right_and_carries_nothing(lengths: list[int]) -> None:
    rows = sequences(lengths)
    batch = pad(rows)
    longest = max(lengths)
    assert not batch.packed and batch.real == sum(lengths) and batch.tokens.shape == (len(rows), longest)
    for (tokens, targets), row in zip(runs(batch), rows, strict=True):
        spare = longest - len(row)
        assert tokens == row.tokens.tolist() + [0] * spare and targets == row.targets.tolist() + [IGNORE] * spare


@given(LENGTHS)
def test_both_layouts_hold_the_same(lengths: list[int]) -> None:
    rows = sequences(lengths)
    for batch in (pack(rows), pad(rows)):
        assert batch.learned == sum(r.learned for r in rows)
        assert batch.tokens.shape == batch.positions.shape == batch.targets.shape
        assert {a.dtype for a in (batch.tokens, batch.positions, batch.targets)} == {np.dtype(np.int64)}


def test_the_layout_that_wins_is_the_default() -> None:
    unequal, equal = sequences([3, 5]), sequences([4, 4])
    assert layout(unequal, None).packed and not layout(equal, None).packed
    assert layout(equal, True).packed and not layout(unequal, False).packed


def unshared(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Return what the sequences of a shared row were: each run behind the first tokens of the sequence before it."""
    found: list[tuple[list[int], list[int]]] = []
    last = -2
    for token, position, target in zip(
        *(a[0].tolist() for a in (batch.tokens, batch.positions, batch.targets)), strict=True
    ):
        if position != last + 1:
            found.append((found[-1][0][:position] if position else [], [IGNORE] * position))
        found[-1][0].append(token)
        found[-1][1].append(target)
        last = position
    return found


@given(st.lists(st.tuples(st.lists(st.integers(0, 1), max_size=6), st.integers(2, 3)), min_size=1, max_size=8))
def test_what_sequences_begin_with_stands_once(given_rows: list[tuple[list[int], int]]) -> None:
    """Learning begins at the last token, which no sequence can share; prompts of two letters share a lot."""
    rows = []
    for prompt, end in given_rows:
        targets = np.full(len(prompt) + 1, IGNORE, dtype=np.int32)
        targets[-1] = end
        rows.append(Sequence(np.array([*prompt, end], dtype=np.int32), targets))
    batch = pack(rows, share=True)
    found = sorted(unshared(batch))
    assert found == sorted((r.tokens.tolist(), r.targets.tolist()) for r in rows)
    assert batch.real == sum(map(len, rows)) == batch.tokens.size + batch.shared
    beginnings = {tuple(r.tokens[:n].tolist()) for r in rows for n in range(1, len(r))}
    assert batch.tokens.size == len(beginnings) + len(rows), "every beginning once, and each last token"


def test_nothing_that_is_learned_is_shared() -> None:
    tokens = np.arange(4, dtype=np.int32)
    learned = Sequence(tokens, np.array([IGNORE, 2, 3, 4], dtype=np.int32))
    batch = pack([learned, learned], share=True)
    assert batch.positions.tolist() == [[0, 1, 2, 3, 1, 2, 3]] and batch.learned == 6


def test_sharing_is_laid_out_only_where_it_saves() -> None:
    same = [Sequence(np.array([5, i], dtype=np.int32), np.array([IGNORE, i], dtype=np.int32)) for i in range(2)]
    other = [Sequence(np.array([i, i], dtype=np.int32), np.array([IGNORE, i], dtype=np.int32)) for i in range(2)]
    assert layout(same, None, share=True).shared == 1 and not layout(other, None, share=True).packed
    assert not layout(same, False, share=True).packed and layout(same, True).shared == 0
