"""The Python API of training: what it takes, what it gives back, what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.train.support import QUICK, digest, quick, records, weights, write_jsonl

import finetwo
from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model

SETTINGS: dict[str, Any] = {"rows": {"split": "train:11,validation:4"}, "max_steps": 3, "lr": 1e-2}


def test_list_of_dicts_table_and_path_are_one(base: Path, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    rows = records(15)
    given = {"list": rows, "table": pandas.DataFrame(rows), "path": write_jsonl(tmp_path / "d.jsonl", rows)}
    for name, data in given.items():
        quick(data, base, tmp_path / name, **SETTINGS)
    assert digest(tmp_path / "list/final") == digest(tmp_path / "table/final") == digest(tmp_path / "path/final")


def test_lists_by_split(base: Path, tmp_path: Path) -> None:
    rows = records(15)
    quick(rows, base, tmp_path / "counted", **SETTINGS)
    quick({"train": rows[:11], "validation": rows[11:]}, base, tmp_path / "given", **(SETTINGS | {"rows": {}}))
    assert digest(tmp_path / "counted/final") == digest(tmp_path / "given/final")


def test_report_and_its_model(base: Path, tmp_path: Path) -> None:
    report = quick(records(15), base, tmp_path / "run", **(SETTINGS | {"max_steps": 6}))
    assert (report.steps, report.folder, report.stopped_early) == (6, tmp_path / "run", False)
    assert report.first is not None
    assert report.last is not None
    assert report.best is not None
    assert report.first["loss"] > report.last["loss"] >= report.best["loss"]
    assert report.trainable == sum(t.numel() for t in weights(base).values())
    assert report.frozen == 0
    assert report.tokens > 0
    assert report.seconds > 0
    assert np.isfinite(report.train_loss)
    assert any("validation loss" in line for line in report.lines())
    assert isinstance(report.model, Model)
    text = report.model.generate("the lamp", max_new_tokens=5)
    assert isinstance(text, str)
    assert finetwo.load(str(tmp_path / "run/final")).generate("the lamp", max_new_tokens=5) == text
    many = report.model.generate(["the lamp", {"prompt": "nobody"}], max_new_tokens=3, n=2, temperature=1.0)
    assert [len(m) for m in many] == [2, 2]


def test_groups_as_dictionary_and_dotted(base: Path, tmp_path: Path) -> None:
    one = quick(records(15), base, tmp_path / "one", **SETTINGS, lora={"rank": 4, "targets": "attn.c_attn"})
    two = quick(records(15), base, tmp_path / "two", **SETTINGS, **{"lora.rank": 4, "lora.targets": "attn.c_attn"})
    three = quick(records(15), base, tmp_path / "three", **SETTINGS, lora=finetwo.LoraConfig(4, targets="attn.c_attn"))
    assert one.trainable == two.trainable == three.trainable == 2 * 4 * (32 + 96)
    assert digest(tmp_path / "one/final") == digest(tmp_path / "two/final") == digest(tmp_path / "three/final")
    nested = {"columns": {"prompt": "q", "completion": "a"}, "split": "train:11,validation:4"}
    rows = [{"q": r["prompt"], "a": r["completion"]} for r in records(15)]
    quick(rows, base, tmp_path / "four", **(SETTINGS | {"rows": nested}))
    quick(records(15), base, tmp_path / "five", **SETTINGS)
    assert digest(tmp_path / "four/final") == digest(tmp_path / "five/final")


def test_adapter_goes_on_being_trained(base: Path, tmp_path: Path) -> None:
    quick(records(15), base, tmp_path / "one", **SETTINGS, lora={"rank": 4})
    report = quick(records(15), tmp_path / "one/final", tmp_path / "two", **SETTINGS)
    assert report.trainable == 2 * 4 * ((32 + 96) + (32 + 32))  # attn.c_attn and attn.c_proj of two blocks
    assert digest(tmp_path / "one/final") != digest(tmp_path / "two/final")
    with pytest.raises(InputError, match="is an adapter already"):
        quick(records(15), tmp_path / "one/final", tmp_path / "three", **SETTINGS, lora={"rank": 4})


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"batchsize": 4}, r"batchsize: unknown setting\. Fix: did you mean batch_size\?"),
        ({"lora": {"rnak": 4}}, r"lora.rnak: unknown setting\. Fix: did you mean lora.rank\?"),
        ({"lora.rnak": 4}, r"lora.rnak: unknown setting\. Fix: did you mean lora.rank\?"),
        ({"zzz": 4}, "zzz: unknown setting. Fix: use "),
        ({"lr.peak": 4}, "lr.peak: lr is one setting, not a group"),
        ({"precision": "fp8"}, r"precision: must be one of float32, bf16, fp16, bf16-true \(got fp8\)"),
        ({"schedule": "cosin"}, "schedule: must be one of constant"),
        ({"optimizer": "sgd"}, "optimizer: must be one of adamw, muon"),
        ({"rows": {"format": "xml"}}, "rows.format: must be one of auto, json"),
        ({"epochs": "three"}, r"epochs: must be a number \(got three\)"),
        ({"batch_size": 2.5}, r"batch_size: must be an integer \(got 2.5\)"),
        ({"batch_size": True}, "batch_size: must be an integer"),
        ({"batch_size": None}, "batch_size: must be an integer"),
        ({"packing": "yes"}, r"packing: must be True or False \(got yes\)"),
        ({"deterministic": 1}, "deterministic: must be True or False"),
        ({"track": [1]}, "track: must be a list of texts"),
        ({"lora": True}, "lora: must be a dictionary"),
        ({"template": ["a"]}, "template: must be text"),
        ({"lr": float("nan")}, "--lr: out of range"),
        ({"lr": -1}, "--lr: out of range"),
        ({"batch_size": 0}, "--batch_size: must be an integer >= 1"),
        ({"epochs": 0, "max_steps": None}, "--epochs: out of range"),
        ({"eval_every": "often"}, "--eval_every: is neither a number of steps"),
        ({"dropout": 1.0}, "--dropout: must be >= 0 and < 1"),
    ],
)
def test_wrong_settings_are_refused_by_name(base: Path, tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    """Bad inputs 1 to 4, 14: also what the command line's parser would have caught."""
    with pytest.raises(InputError, match=told):
        quick(records(8), base, tmp_path / "run", **({"max_steps": 1} | settings))
    assert not (tmp_path / "run").exists()


def test_settings_take_their_natural_kinds(base: Path, tmp_path: Path) -> None:
    """A whole number for a step count written as text, numpy's numbers, a path."""
    report = finetwo.train(
        records(15),
        model=str(base),
        out=tmp_path / "run",
        template="plain",
        eval_every=2,
        max_steps=np.int64(2),
        lr=1,
        rows={"split": "train:11,validation:4"},
    )
    assert report.steps == 2


@pytest.mark.parametrize("data", [None, 7, [1, 2], [{"prompt": 1, "completion": "b"}], [], "nowhere.jsonl", {"a": []}])
def test_wrong_data_is_refused(base: Path, tmp_path: Path, data: Any) -> None:
    with pytest.raises(InputError):
        quick(data, base, tmp_path / "run", max_steps=1)
    assert not (tmp_path / "run").exists()


def test_run_folder_says_what_was_run(base: Path, data: Path, tmp_path: Path) -> None:
    import yaml

    quick(str(data), base, tmp_path / "run", max_steps=2)
    config = yaml.safe_load((tmp_path / "run/config.yaml").read_text())
    assert (config["task"], config["max_length"], config["data"]) == ("instruct", 64, str(data))
    assert config["lr"] == 5e-4, "the detected rate is written down"
    told = json.loads((tmp_path / "run/environment.json").read_text())
    assert {"torch", "numpy", "finetwo"} <= told["packages"].keys()
    assert len(told["fingerprint"]["data"]) == 64
    assert {"commit", "python", "threads", "counts"} <= told.keys()


def test_the_function_is_not_hidden_by_the_subpackage_of_its_name() -> None:
    """`import finetwo.train.job`, or `finetwo.load`, once made `finetwo.train` the subpackage."""
    code = """
import finetwo
import finetwo.train.schedule
from finetwo.train import loop
assert callable(finetwo.train) and callable(finetwo.load), finetwo.train
assert finetwo.train.__name__ == "train" and loop.__name__ == "finetwo.train.loop"
"""
    environment = {"PYTHONPATH": str(Path(finetwo.__file__).parents[1]), "PATH": "/usr/bin:/bin"}
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, env=environment, timeout=120)


def test_a_model_in_memory_is_trained_in_place(base: Path, tmp_path: Path) -> None:
    """`model.add_lora(...)`, `model.freeze_all_but_lora()`, then train: as if the adapter had been asked for."""
    rows = records(15)
    quick(rows, base, tmp_path / "asked", **SETTINGS, lora={"rank": 2})
    model = finetwo.load(str(base))
    model.add_lora(rank=2)
    model.freeze_all_but_lora()
    said = QUICK | SETTINGS | {"out": str(tmp_path / "given")}
    report = finetwo.train(rows, model=model, **said)
    assert report.model.network is model.network
    assert digest(tmp_path / "given/final") == digest(tmp_path / "asked/final")


def test_deterministic_is_over_with_the_run(base: Path, tmp_path: Path) -> None:
    import torch

    quick(records(15), base, tmp_path / "run", **SETTINGS, deterministic=True)
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_run_that_only_got_worse_says_so(base: Path, tmp_path: Path) -> None:
    from finetwo.train.report import Report

    figures = {"loss": 1.0, "step": 0}
    said = Report(None, tmp_path, 3, 2.0, figures, figures, {"loss": 2.0, "step": 3}, 9, 1.0, 1, 0).lines()  # type: ignore[arg-type]
    assert any("no step beat the untuned start" in line for line in said)
