"""How a run lays out its batches: shared beginnings once, budgets of tokens, and the precisions a machine has."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.support import At, gap, losses, quick, records, step_losses, weights

from finetwo.core.config import TrainConfig
from finetwo.core.errors import InputError
from finetwo.model.mixed import only_imitates_bf16
from finetwo.train import start
from finetwo.train.batching import make_loader
from finetwo.train.start import settle_precision

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


def test_sharing_that_is_left_out_is_said(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    quick(prefixed(15), base, tmp_path / "run", say=said.append, **(STEPS | {"max_steps": 1, "dropout": 0.1}))
    assert "shared beginnings: computed in each record: with dropout each record needs its own" in said


BUDGET: dict[str, Any] = {"batch_tokens": 90, "batch_size": 8, "grad_accum": 2, "epochs": 2, "dropout": 0.1, "lr": 1e-2}


def test_a_budget_of_tokens_resumes_bit_for_bit(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    settings = BUDGET | {"rows": {"split": "train:25,validation:5"}, "save_every": "2"}
    whole = quick(records(30), base, tmp_path / "whole", say=said.append, **settings)
    assert any("steps of up to 180 tokens" in line for line in said) and whole.steps >= 6

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(records(30), base, tmp_path / "cut", listeners=[At("step", 3, stop)], **settings)
    quick(records(30), base, tmp_path / "cut", **settings)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    assert gap(weights(tmp_path / "cut/final"), weights(tmp_path / "whole/final")) == 0.0


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"batch_tokens": 3, "batch_size": 8}, r"--batch_tokens: the longest sequence has \d+ tokens \(got 3\)"),
        ({"batch_tokens": 0, "batch_size": 8}, r"--batch_tokens: must be an integer >= 1 \(got 0\)"),
        ({"batch_tokens": 90, "batch_size": 4}, r"--batch_tokens: is the size of a batch, and so is --batch_size"),
    ],
)
def test_budgets_that_cannot_be_are_refused(base: Path, tmp_path: Path, settings: dict[str, Any], what: str) -> None:
    with pytest.raises(InputError, match=what):
        quick(records(15), base, tmp_path / "run", **settings)


@pytest.mark.parametrize(
    ("capability", "machine", "imitated"), [("AVX2", "x86_64", 1), ("AVX512", "x86_64", 0), ("DEFAULT", "aarch64", 0)]
)
def test_a_processor_that_would_only_imitate_bfloat16_computes_in_float32(
    capability: str, machine: str, imitated: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "only_imitates_bf16", only_imitates_bf16)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr("platform.machine", lambda: machine)
    said: list[str] = []
    settled = [
        settle_precision(TrainConfig(precision=precision), torch.device("cpu"), said.append).precision
        for precision in ("float32", "bf16", "bf16-true")
    ]
    assert settled == ["float32", "float32" if imitated else "bf16", "bf16-true"]
    assert [line.split(" instead")[0].split(": this")[0] for line in said] == [
        "precision: float32",
        "warning: --precision bf16-true",
    ] * imitated


def test_a_run_that_falls_back_to_float32_is_one_in_float32(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "only_imitates_bf16", lambda device: True)
    for precision in ("bf16", "float32"):
        quick(records(15), base, tmp_path / precision, max_steps=2, precision=precision)
    assert gap(weights(tmp_path / "bf16/final"), weights(tmp_path / "float32/final")) == 0.0
    assert "precision: float32" in (tmp_path / "bf16/config.yaml").read_text(encoding="utf-8")


def test_fp16_is_for_gpus() -> None:
    with pytest.raises(InputError, match=r"--precision: fp16 is for CUDA GPUs.* device is cpu\..*float32"):
        settle_precision(TrainConfig(precision="fp16"), torch.device("cpu"), lambda _: None)
    assert settle_precision(TrainConfig(precision="fp16"), torch.device("cuda"), lambda _: None).precision == "fp16"


def test_a_gpu_without_bfloat16_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    with pytest.raises(InputError, match=r"--precision: Some GPU has no bfloat16 \(got bf16\).*use fp16"):
        settle_precision(TrainConfig(precision="bf16"), torch.device("cuda"), lambda _: None)


@pytest.mark.parametrize("has", [True, False])
def test_float32_on_a_gpu_is_told_of_bfloat16(monkeypatch: pytest.MonkeyPatch, has: bool) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    said: list[str] = []
    assert settle_precision(TrainConfig(), torch.device("cuda"), said.append).precision == "float32"
    assert [line for line in said if "--precision bf16 is several times faster" in line] == said and len(said) == has
    settle_precision(TrainConfig(), torch.device("cpu"), said.append)
    assert len(said) == has
