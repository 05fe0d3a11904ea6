"""Training in fp16: gradients scaled on their way, overflow met by a smaller scale, and nothing of it in the result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.support import At, gap, quick, records, step_losses, weights
from torch import Tensor

from finetwo.core.errors import NumericError, Stopped
from finetwo.store.checkpoint import list_checkpoints, open_checkpoint
from finetwo.train import job, stepping
from finetwo.train.step import backward

STEPS: dict[str, Any] = {"max_steps": 8, "lr": 1e-2, "rows": {"split": "train:11,validation:4"}, "precision": "fp16"}


@pytest.fixture(autouse=True)
def _on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same arithmetic as on a GPU, which is what fp16 is for."""
    monkeypatch.setattr(job, "settle_precision", lambda config, device, say: config)


def scale_of(run: Path) -> float:
    newest = list_checkpoints(run)[0]
    return float(open_checkpoint(newest).state["progress"]["loss_scale"])


def test_it_learns_as_float32_does(base: Path, tmp_path: Path) -> None:
    quick(records(15), base, tmp_path / "half", **STEPS)
    quick(records(15), base, tmp_path / "exact", **STEPS | {"precision": "float32"})
    found, exact = step_losses(tmp_path / "half"), step_losses(tmp_path / "exact")
    assert found[-1] < found[0] - 0.3
    assert found == pytest.approx(exact, abs=0.02) and found != exact
    assert {t.dtype for t in weights(tmp_path / "half/final").values()} == {torch.float32}


def test_a_scale_that_overflows_is_halved_and_no_record_is_passed_over(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, float]] = []

    def watched(network: Any, batches: Any, precision: str, mass: float, class_weights: Any, scale: float) -> Tensor:
        seen.append((sum(b.real for b in batches), scale))
        return backward(network, batches, precision, mass, class_weights, scale)

    quick(records(15), base, tmp_path / "usual", **STEPS)
    monkeypatch.setattr(stepping, "backward", watched)
    monkeypatch.setattr(stepping.Progress.__init__, "__defaults__", _defaults(2.0**40))
    quick(records(15), base, tmp_path / "high", **STEPS)
    first = [scale for size, scale in seen if size == seen[0][0]]
    assert first[0] == 2.0**40 and first[1] == 2.0**39, "the same batches again, under half the scale"
    assert 2.0 <= scale_of(tmp_path / "high") < 2.0**38
    assert step_losses(tmp_path / "high") == pytest.approx(step_losses(tmp_path / "usual"), abs=0.02)


def _defaults(scale: float) -> tuple[Any, ...]:
    return tuple(scale if value == 65536.0 else value for value in stepping.Progress.__init__.__defaults__ or ())


def test_the_scale_grows_again(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "_SCALE_STEPS", 3)
    quick(records(15), base, tmp_path / "run", **STEPS)
    assert scale_of(tmp_path / "run") == 65536.0 * 4  # before the 4th and the 7th of 8 steps


def test_a_stopped_run_goes_on_with_its_scale(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import signal

    monkeypatch.setattr(stepping, "_SCALE_STEPS", 3)
    quick(records(15), base, tmp_path / "whole", **STEPS)
    with pytest.raises(Stopped):
        quick(
            records(15), base, tmp_path / "cut", **STEPS,
            listeners=[At("step", 4, lambda: signal.raise_signal(signal.SIGTERM))],
        )  # fmt: skip
    quick(records(15), base, tmp_path / "cut", **STEPS)
    assert gap(weights(tmp_path / "whole/final"), weights(tmp_path / "cut/final")) == 0.0
    assert scale_of(tmp_path / "cut") == scale_of(tmp_path / "whole")


def test_a_loss_that_is_no_number_is_not_the_scales_fault(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[float] = []

    def broken(network: Any, batches: Any, precision: str, mass: float, class_weights: Any, scale: float) -> Tensor:
        tries.append(scale)
        return torch.tensor(float("nan"))

    monkeypatch.setattr(stepping, "backward", broken)
    with pytest.raises(NumericError, match="weights were not changed"):
        quick(records(15), base, tmp_path / "run", **STEPS)
    assert tries == [65536.0]
