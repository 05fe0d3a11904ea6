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
