"""The numeric guard: a loss or a gradient that is no number never reaches the weights and is never hidden."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.support import At, gap, metrics, quick, records, weights

import finetwo
from finetwo.core.errors import NumericError
from finetwo.model.network import Network
from finetwo.store.checkpoint import list_checkpoints, open_checkpoint

SETTINGS: dict[str, Any] = {
    "rows": {"split": "train:11,validation:4"},
    "max_steps": 6,
    "batch_size": 2,
    "grad_accum": 2,
    "save_every": "1",
    "keep": 9,
}


def spoil_loss(monkeypatch: pytest.MonkeyPatch, call: int, value: float) -> None:
    """Multiply the loss of the `call`-th micro-batch by `value`, gradients included."""
    real, count = Network.loss, {"calls": 0}

    def loss(self: Network, *args: Any) -> torch.Tensor:
        total = real(self, *args)
        count["calls"] += 1
        return total * value if count["calls"] == call else total

    monkeypatch.setattr(Network, "loss", loss)


def test_a_base_that_overflows_before_any_step_is_not_blamed_on_the_learning_rate(base: Path, tmp_path: Path) -> None:
    model = finetwo.load(str(base))
    with torch.no_grad():
        model.network.transformer.wte.weight.mul_(1e38)
    model.save(tmp_path / "damaged")
    with pytest.raises(NumericError) as caught:
        quick(records(15), tmp_path / "damaged", tmp_path / "run", **SETTINGS)
    assert "step 0: the validation loss is nan" in str(caught.value)
    assert "--lr" not in str(caught.value) and "take another base" in str(caught.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("micro", [1, 2])
def test_bad_loss_stops_the_run_and_leaves_the_weights(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: float, micro: int
) -> None:
    """Promise T7, bad input 87: at each micro-step of the third step; what was saved after two steps stands."""
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        spoil_loss(patch, 4 + micro, value)
        with pytest.raises(NumericError) as caught:
            quick(records(15), base, run, **SETTINGS)
    error = caught.value
    assert error.exit_code == 4
    message = str(error)
    assert "step 3: loss " in message
    assert "weights were not changed" in message
    assert "learning rate" in message
    assert "gradient norm" in message
    assert "data[" in message or "data:" in message or "record" in message, message
    assert [p.name for p in list_checkpoints(run)] == ["checkpoint-2", "checkpoint-1"]
    assert not (run / "final").exists()
    assert max(m["step"] for m in metrics(run)) == 2, "metrics.jsonl stays strict JSON"
    quick(records(15), base, run, **SETTINGS)
    quick(records(15), base, tmp_path / "whole", **SETTINGS)
    assert gap(weights(run / "final"), weights(tmp_path / "whole/final")) == 0.0


def test_the_records_of_the_step_are_named_by_file_and_line(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np

    spoil_loss(monkeypatch, 1, math.nan)
    with pytest.raises(NumericError) as caught:
        quick(str(data), base, tmp_path / "run", **SETTINGS)
    for index in np.random.default_rng([0, 0]).permutation(11)[:3]:
        assert f"qa.jsonl:{index + 1}" in str(caught.value)


def test_weights_in_memory_are_untouched(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from finetwo.train.stepping import Stepper

    held: dict[str, Any] = {}
    real = Stepper.take

    def step(self: Any, batches: Any) -> None:
        held["before"] = {n: p.detach().clone() for n, p in self.job.network.named_parameters()}
        held["training"] = self
        real(self, batches)

    monkeypatch.setattr(Stepper, "take", step)
    spoil_loss(monkeypatch, 6, math.nan)
    with pytest.raises(NumericError):
        quick(records(15), base, tmp_path / "run", **SETTINGS)
    network = held["training"].job.network
    assert all(torch.equal(p, held["before"][n]) for n, p in network.named_parameters())
    assert all(p.grad is None for p in network.parameters())


def test_one_bad_gradient_under_a_good_loss_is_caught(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The norm is looked at too, also where nothing is clipped."""
    real = Network.loss

    def loss(self: Network, *args: Any) -> torch.Tensor:
        bias = self.transformer.ln_f.bias
        return real(self, *args) + (bias.sum() * 0.0 if not self.training else (bias * 0.0).sqrt().sum())

    monkeypatch.setattr(Network, "loss", loss)
    for clip in (1.0, 0.0):
        with pytest.raises(NumericError, match=r"step 1: loss 6\.\d+, gradient norm nan"):
            quick(records(15), base, tmp_path / str(clip), **SETTINGS, clip=clip)


def test_weights_gone_bad_are_caught_before_the_update(base: Path, tmp_path: Path) -> None:
    """A NaN planted in the network itself, through the front door of a listener that holds it."""
    from finetwo.train import job

    networks: list[Network] = []
    real = job.given_start

    def start(config: Any, task: Any, model: Any = None) -> Any:
        found = real(config, task, model)
        networks.append(found.network)
        return found

    def poison() -> None:
        with torch.no_grad():
            networks[0].transformer.wpe.weight[0, 0] = math.nan

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "given_start", start)
        with pytest.raises(NumericError, match="step 3: loss nan"):
            quick(records(15), base, tmp_path / "run", **SETTINGS, listeners=[At("checkpoint", 2, poison)])
    saved = open_checkpoint(tmp_path / "run/checkpoint-2").tensors("weights")
    assert all(torch.isfinite(t).all() for t in saved.values())
