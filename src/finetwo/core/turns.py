"""Work that threads do ahead of its turn, its results in order.

It knows threads and nothing of what they do. Its one invariant: the results are those of doing one item after the
other, however many threads there are.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

_From = TypeVar("_From")
_To = TypeVar("_To")


def usable_cores() -> int:
    """Return the number of cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_turn(work: Callable[[_From], _To], items: Iterable[_From], threads: int, name: str) -> Iterator[_To]:
    """Yield `work(item)` for each item in order, up to twice `threads` items ahead; with 0 threads one by one.

    The threads' names begin with `name`.
    """
    if threads == 0:
        yield from map(work, items)
        return
    waiting: deque[Future[_To]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix=name) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) > 2 * threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
