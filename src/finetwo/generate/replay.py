"""One step of decoding recorded for each shape as a CUDA graph, and played again with other tokens.

A step of one token is some two hundred small kernels, and calling them takes a GPU's host several times as long as
they run. It knows shapes and no network. Its one invariant: what is played computes what the recorded function would.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from finetwo.model.attend import pinned

Step = Callable[[Tensor, Tensor, int, int], Tensor]
"""ids (R,), positions (R,), the number of rows R and of positions that are looked at -> what comes out for each row."""


class Replay:
    """Steps of at most `slots` rows, which read their tokens and positions from one place on the device."""

    def __init__(self, step: Step, slots: int, device: torch.device) -> None:
        self._step = step
        self._given = torch.zeros(2, slots, dtype=torch.int64, device=device)
        self._host = pinned(torch.zeros(2, slots, dtype=torch.int64))
        self._made: dict[tuple[int, int], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._record_them = True

    def __call__(self, tokens: Sequence[int], places: Sequence[int], rows: int, span: int) -> Tensor:
        """Return what the step gives for the first `rows` tokens and places; it stands until the next call.

        The caller must have waited for the result of the call before.
        """
        self._host.copy_(torch.tensor([list(tokens), list(places)]))
        self._given.copy_(self._host, non_blocking=True)
        if (rows, span) not in self._made and self._record_them:
            try:
                self._made[rows, span] = self._record(rows, span)
            except RuntimeError:  # something in it cannot be recorded: it is computed as ever
                self._record_them = False
        if (rows, span) not in self._made:
            return self._step(self._given[0, :rows], self._given[1, :rows], rows, span)
        graph, found = self._made[rows, span]
        graph.replay()
        return found

    def _record(self, rows: int, span: int) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """Record the step; it runs a few times before, so that libraries have chosen what they use."""
        ids, places = self._given[0, :rows], self._given[1, :rows]
        aside = torch.cuda.Stream(self._given.device)
        aside.wait_stream(torch.cuda.current_stream(self._given.device))
        with torch.cuda.stream(aside):
            for _ in range(2):
                self._step(ids, places, rows, span)
        torch.cuda.current_stream(self._given.device).wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = self._step(ids, places, rows, span)
        return graph, found
