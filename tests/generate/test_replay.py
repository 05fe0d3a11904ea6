"""A step of decoding that cannot be recorded; what recording does is shown where there is a GPU (tests/gpu)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from finetwo.generate.replay import Replay


def test_what_cannot_be_recorded_is_computed_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[int] = []

    def refuse(self: Replay, rows: int, span: int) -> None:
        tries.append(rows)
        raise RuntimeError("operation not permitted when stream is capturing")

    def step(ids: Tensor, places: Tensor, rows: int, span: int) -> Tensor:
        assert len(ids) == len(places) == rows
        return ids * 100 + places + span

    monkeypatch.setattr(Replay, "_record", refuse)
    replay = Replay(step, 4, torch.device("cpu"))
    assert replay([1, 2, 3, 4], [5, 6, 7, 8], 2, 64).tolist() == [169, 270]
    assert replay([9, 2, 3, 4], [1, 1, 1, 1], 4, 0).tolist() == [901, 201, 301, 401]
    assert tries == [2]
