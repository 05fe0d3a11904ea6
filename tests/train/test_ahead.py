"""Steps that are begun before the last one's numbers are known, as on a GPU; here on the CPU, which can do the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.train.support import MICRO, At, Recorder, gap, losses, quick, records, step_losses, weights
from torch import Tensor

from finetwo import train
from finetwo.core.errors import NumericError, Stopped
from finetwo.model.network import Network
from finetwo.train import stepping
from finetwo.train.step import backward

STEPS: dict[str, Any] = {"max_steps": 8, "lr": 3e-3, "clip": 0.5}


@pytest.fixture
def _ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stepping, "goes_ahead", lambda device, config, optimizer: True)


def test_the_run_is_the_same(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clipping divides on the device instead: the last bits may differ."""
    train(records(30), model=str(base), out=str(tmp_path / "usual"), **MICRO)
    monkeypatch.setattr(stepping, "goes_ahead", lambda device, config, optimizer: True)
    train(records(30), model=str(base), out=str(tmp_path / "ahead"), **MICRO)
    usual, ahead = losses(tmp_path / "usual"), losses(tmp_path / "ahead")
    assert [x[:2] for x in ahead] == [x[:2] for x in usual], "steps and evaluations in their order"
    assert [x[2] for x in ahead] == pytest.approx([x[2] for x in usual], abs=1e-5)
    assert gap(weights(tmp_path / "usual/final"), weights(tmp_path / "ahead/final")) < 1e-5


@pytest.mark.usefixtures("_ahead")
@pytest.mark.parametrize("precision", ["bf16", "bf16-true"])
def test_gradients_are_clipped_in_every_precision(base: Path, tmp_path: Path, precision: str) -> None:
    """The fused update takes nothing but float32 to divide by, whatever the gradients are in."""
    quick(records(15), base, tmp_path / "run", **STEPS, precision=precision)
    assert len(step_losses(tmp_path / "run")) == 8


@pytest.mark.usefixtures("_ahead")
def test_a_step_is_told_when_the_next_is_under_way(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, seen = [0], list[tuple[int, int]]()

    def counted(*given: Any) -> Tensor:
        made[0] += 1
        return backward(*given)

    class Watch(Recorder):
        def hear(self, event: Any) -> None:
            if event["event"] == "step":
                seen.append((event["step"], made[0]))

    monkeypatch.setattr(stepping, "backward", counted)
    quick(records(15), base, tmp_path / "run", listeners=[Watch()], **STEPS)
    assert seen == [(n, min(n + 1, 8)) for n in range(1, 9)]


@pytest.mark.usefixtures("_ahead")
def test_bad_numbers_change_no_weight_although_a_step_follows(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before: list[dict[str, Tensor]] = []

    def broken(network: Network, batches: Any, *more: Any) -> Tensor:
        before.append({n: p.detach().clone() for n, p in network.named_parameters()})
        loss = backward(network, batches, *more)
        return loss * float("nan") if len(before) == 3 else loss

    monkeypatch.setattr(stepping, "backward", broken)
    seen = Recorder()
    with pytest.raises(NumericError, match=r"step 3: loss nan.*the weights were not changed"):
        quick(records(15), base, tmp_path / "run", listeners=[seen], **STEPS)
    assert [e["step"] for e in seen.of("step")] == [1, 2] and len(before) == 4
    assert gap(before[2], before[3]) == 0.0 and gap(before[1], before[2]) > 0


@pytest.mark.usefixtures("_ahead")
def test_stopped_and_resumed_is_as_if_never_stopped(base: Path, tmp_path: Path) -> None:
    import signal

    quick(records(15), base, tmp_path / "whole", **STEPS)
    with pytest.raises(Stopped):
        stop = At("step", 3, lambda: signal.raise_signal(signal.SIGINT))
        quick(records(15), base, tmp_path / "parts", listeners=[stop], **STEPS)
    quick(records(15), base, tmp_path / "parts", **STEPS)
    assert step_losses(tmp_path / "parts") == step_losses(tmp_path / "whole")
    assert gap(weights(tmp_path / "whole/final"), weights(tmp_path / "parts/final")) == 0.0
