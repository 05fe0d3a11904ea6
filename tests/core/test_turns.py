"""Work ahead of its turn: in order, bounded, and its faults where they belong."""

from __future__ import annotations

import threading
import time

import pytest

from finetwo.core.turns import in_turn, usable_cores


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_results_come_in_order(threads: int) -> None:
    def work(item: int) -> int:
        time.sleep(0.01 * (item % 3 == 0))
        return item * item

    assert list(in_turn(work, iter(range(20)), threads, "turns")) == [i * i for i in range(20)]
    assert usable_cores() >= 1


def test_threads_work_ahead_but_not_without_limit() -> None:
    started: list[int] = []

    def work(step: int) -> int:
        started.append(step)
        return step

    stream = in_turn(work, range(100), 2, "turns")
    next(stream)
    time.sleep(0.1)
    assert len(started) <= 6
    stream.close()
    assert len(started) <= 6
    assert not any(t.name.startswith("turns") for t in threading.enumerate())


@pytest.mark.parametrize("threads", [0, 2])
def test_a_fault_is_raised_at_its_turn(threads: int) -> None:
    def work(step: int) -> int:
        if step == 3:
            raise ValueError("bad record")
        return step

    done = []
    with pytest.raises(ValueError, match="bad record"):
        for step, _ in enumerate(in_turn(work, range(9), threads, "turns")):
            done.append(step)
    assert done == [0, 1, 2]
