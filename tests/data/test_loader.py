"""The order of training: every record once an epoch, each epoch another order, nothing remembered."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetwo.core.errors import InputError
from finetwo.data.batch import Batch
from finetwo.data.loader import InMemory, Loader
from finetwo.data.sequences import Sequence


def records(count: int) -> InMemory:
    """Record i is the one token i."""
    return InMemory([Sequence(np.array([i], dtype=np.int32), np.array([i], dtype=np.int32)) for i in range(count)])


def seen(batches: list[Batch]) -> list[int]:
    return [int(t) for b in batches for t in b.tokens.ravel()]


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4), st.integers(0, 3))
def test_every_record_once_an_epoch(count: int, batch_size: int, accum: int, seed: int) -> None:
    loader = Loader(records(count), batch_size, accum, None, seed)
    assert loader.steps_per_epoch == -(-count // (batch_size * accum))
    for epoch in range(2):
        steps = range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch)
        batches = [loader.batches(step) for step in steps]
        assert sorted(i for b in batches for i in seen(b)) == list(range(count))
        assert all(1 <= len(b) <= accum and all(p.tokens.size <= batch_size for p in b) for b in batches)
        assert all(sum(p.tokens.size for p in b) == batch_size * accum for b in batches[:-1])


def test_an_order_takes_eight_bytes_a_record() -> None:
    """A corpus of 2 GB has millions of chunks: an array for each micro-batch of an epoch took 250 MB."""

    class Many(InMemory):
        def __len__(self) -> int:
            return 300_000

    loader = Loader(Many([]), 2, 1, None, 0)
    tracemalloc.start()
    try:
        assert len(loader.indices(7)) == 2
        assert tracemalloc.get_traced_memory()[0] < 12 * 300_000
    finally:
        tracemalloc.stop()


def test_epochs_and_seeds_differ() -> None:
    orders = [
        [i for step in range(e * 10, e * 10 + 10) for i in Loader(records(30), 3, 1, None, seed).indices(step)]
        for seed in (0, 1)
        for e in range(3)
    ]
    assert len({tuple(o) for o in orders}) == 6
    assert all(sorted(o) == list(range(30)) and o != list(range(30)) for o in orders)


def test_a_step_needs_no_history() -> None:
    walked, jumping = Loader(records(11), 2, 2, None, 5), Loader(records(11), 2, 2, None, 5)
    wanted = [seen(walked.batches(step)) for step in range(9)]
    for step in (8, 0, 5, 2, 2, 7, 3):
        assert seen(jumping.batches(step)) == wanted[step] == seen(Loader(records(11), 2, 2, None, 5).batches(step))
        assert jumping.indices(step) == wanted[step]


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(workers: int) -> None:
    loader = Loader(records(13), 2, 2, None, 1)
    wanted = [seen(b) for b in Loader(records(13), 2, 2, None, 1).stream(2, 12, 0)]
    assert [seen(b) for b in loader.stream(2, 12, workers)] == wanted and len(wanted) == 10


def test_each_epoch_is_told_to_the_data() -> None:
    class Changing(InMemory):
        def get(self, index: int, epoch: int) -> Sequence:
            return Sequence(np.array([epoch], dtype=np.int32), np.array([0], dtype=np.int32))

    loader = Loader(Changing(records(4).sequences), 2, 1, None, 0)
    assert [seen(loader.batches(step)) for step in range(5)] == [[0, 0], [0, 0], [1, 1], [1, 1], [2, 2]]


def test_packing_is_passed_on() -> None:
    data = InMemory([Sequence(np.zeros(n, dtype=np.int32), np.zeros(n, dtype=np.int32)) for n in (2, 5)])
    assert Loader(data, 2, 1, None, 0).batches(0)[0].packed
    assert not Loader(data, 2, 1, False, 0).batches(0)[0].packed


# --- batches by a budget of tokens --------------------------------------------------------------------------------


def of_lengths(lengths: list[int]) -> InMemory:
    """Record i is its number, as often as it is long."""
    return InMemory([Sequence(np.full(n, i, dtype=np.int32), np.full(n, i, np.int32)) for i, n in enumerate(lengths)])


LENGTHS = st.lists(st.integers(1, 9), min_size=1, max_size=30)


@given(LENGTHS, st.integers(9, 25), st.integers(1, 3), st.sampled_from([None, False, True]))
def test_a_budget_is_kept_and_every_record_seen(
    lengths: list[int], budget: int, accum: int, packing: bool | None
) -> None:
    loader = Loader(of_lengths(lengths), 8, accum, packing, 3, batch_tokens=budget)
    for epoch in range(2):
        steps = range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch)
        batches = [b for step in steps for b in loader.batches(step)]
        assert sorted(i for step in steps for i in loader.indices(step)) == list(range(len(lengths)))
        assert sum(b.real for b in batches) == sum(lengths)
        assert all(b.tokens.size <= budget for b in batches), "padding counts"
        assert len(batches) <= 2 * sum(lengths) / (budget - 8) + 1 or packing is False


def test_a_budget_puts_like_lengths_together_and_draws_the_rest() -> None:
    lengths = [2, 9, 3, 8, 2, 9, 3, 8, 2, 2, 3, 3]
    loader = Loader(of_lengths(lengths), 8, 1, None, 0, batch_tokens=18)
    seen_in = [[loader.indices(e * loader.steps_per_epoch + i) for i in range(loader.steps_per_epoch)] for e in (0, 1)]
    for epoch in seen_in:
        spread = [max(lengths[i] for i in part) - min(lengths[i] for i in part) for part in epoch]
        assert sum(spread) <= 6 and any(len(part) > 3 for part in epoch)
    assert seen_in[0] != seen_in[1], "each epoch is another draw"
    assert sorted(map(len, seen_in[0])) == sorted(map(len, seen_in[1])), "of the same number of steps"


def test_a_budget_needs_no_history() -> None:
    def fresh() -> Loader:
        return Loader(of_lengths([5, 1, 4, 2, 2, 5, 3, 1]), 8, 2, None, 7, batch_tokens=6)

    walked = fresh()
    wanted = [walked.indices(step) for step in range(3 * walked.steps_per_epoch)]
    assert all(fresh().indices(step) == wanted[step] for step in reversed(range(len(wanted))))


def test_a_budget_below_the_longest_record_is_refused() -> None:
    with pytest.raises(InputError, match=r"--batch_tokens: the longest sequence has 92 tokens \(got 10\).*give 92"):
        Loader(of_lengths([3, 92]), 8, 1, None, 0, batch_tokens=10)
