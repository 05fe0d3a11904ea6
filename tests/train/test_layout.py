"""How a run lays out its batches: shared beginnings once, where that is exact, and said."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from tests.train.support import gap, quick, records, step_losses, weights

from finetwo.core.errors import InputError
from finetwo.train.start import make_loader

STEPS: dict[str, Any] = {"max_steps": 4, "lr": 1e-2, "rows": {"split": "train:11,validation:4"}}


def prefixed(count: int) -> list[dict[str, str]]:
    return [row | {"prompt": f"the lamp {row['prompt']}"} for row in records(count)]


@pytest.mark.parametrize("lora", [{}, {"rank": 2}])
def test_shared_beginnings_change_nothing_but_the_work(base: Path, tmp_path: Path, lora: dict[str, int]) -> None:
    said: list[str] = []
    for name, extra in (("shared", {}), ("apart", {"share_prefix": False})):
        quick(prefixed(15), base, tmp_path / name, say=said.append, lora=lora, **STEPS, **extra)
    assert sum(line.startswith("shared beginnings: computed once a batch (") for line in said) == 1
    assert step_losses(tmp_path / "shared") == pytest.approx(step_losses(tmp_path / "apart"), abs=1e-5)
    assert gap(weights(tmp_path / "shared/final"), weights(tmp_path / "apart/final")) < 1e-3


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"dropout": 0.1}, "with dropout each record needs its own"),
        ({"lora": {"dropout": 0.1}}, "with dropout each record needs its own"),
        ({"packing": False}, "--packing is off"),
    ],
)
def test_sharing_that_would_not_be_exact_is_off_and_refused_when_asked(
    base: Path, tmp_path: Path, settings: dict[str, Any], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaders = []

    def watch(*given: Any) -> Any:
        loaders.append(make_loader(*given))
        return loaders[-1]

    monkeypatch.setattr(sys.modules["finetwo.train.job"], "make_loader", watch)
    quick(prefixed(15), base, tmp_path / "run", **(STEPS | {"max_steps": 1} | settings))
    assert not any(b.shared for b in loaders[0].batches(0))
    with pytest.raises(InputError, match=rf"--share_prefix: cannot be exact: {why}"):
        quick(prefixed(15), base, tmp_path / "other", share_prefix=True, **(STEPS | settings))
