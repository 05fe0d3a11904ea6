"""--quantize: an adapter learned on a base stored in fewer bits, from the first step to the merged model."""

from __future__ import annotations

import copy
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.support import MICRO, At, digest, losses, quick, step_losses
from tests.train.zygote import Zygote

from finetwo import load, train
from finetwo.core.config import TrainConfig
from finetwo.core.errors import InputError, Stopped
from finetwo.insight.plan import make_plan
from finetwo.model.int8_base import Int8Linear
from finetwo.model.network import Network
from finetwo.model.stored import stored_linears
from finetwo.model.storing import KINDS, store_blocks
from finetwo.store.change import Change, probe_tokens
from finetwo.store.checkpoint import list_checkpoints, open_checkpoint
from finetwo.store.export import export_model
from finetwo.store.folder import base_digest, load_network, read_extras
from finetwo.store.models import open_model

EVERY = pytest.mark.parametrize("kind", KINDS)
LORA: dict[str, Any] = {"lora": {"rank": 4, "dropout": 0.2}, "lr": 2e-2}


def micro(data: Path, base: Path, out: Path, **settings: Any) -> Any:
    return train(str(data), model=str(base), out=str(out), **(MICRO | LORA | settings))


@EVERY
def test_stopped_and_resumed_is_bit_identical(base: Path, data: Path, tmp_path: Path, kind: str) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    micro(data, base, whole, quantize=kind)
    for step in (3, 8):
        stop = At("step", step, lambda: signal.raise_signal(signal.SIGTERM))
        with pytest.raises(Stopped):
            micro(data, base, run, quantize=kind, listeners=[stop])
        assert list_checkpoints(run)[0].name == f"checkpoint-{step}"
    micro(data, base, run, quantize=kind)
    assert (digest(run / "final"), digest(run / "best")) == (digest(whole / "final"), digest(whole / "best"))
    assert losses(run) == losses(whole)


@pytest.mark.parametrize("kind", ["nf4", pytest.param("int8", marks=pytest.mark.slow)])
def test_killed_and_resumed_is_bit_identical(base: Path, data: Path, tmp_path: Path, zygote: Zygote, kind: str) -> None:
    words = ["train", data, "--model", base, "--template", "plain", "--batch_size", "2", "--max_steps", "6"]
    words += ["--lora.rank", "4", "--lora.dropout", "0.2", "--quantize", kind, "--save_every", "2", "--out"]
    whole = zygote.run([*words, tmp_path / "whole"])
    assert whole.code == 0, whole.said
    killed = zygote.run([*words, tmp_path / "run"], signal.SIGKILL, steps=3)
    assert killed.code == -signal.SIGKILL and list_checkpoints(tmp_path / "run")
    again = zygote.run([*words, tmp_path / "run"])
    assert again.code == 0 and "resuming after step" in again.said
    assert digest(tmp_path / "run/final") == digest(tmp_path / "whole/final")
    assert losses(tmp_path / "run") == losses(tmp_path / "whole")


@EVERY
def test_only_the_adapter_learns_and_is_kept(base: Path, data: Path, tmp_path: Path, kind: str) -> None:
    report = quick(str(data), base, tmp_path / "run", quantize=kind, max_steps=2, lora={"rank": 4}, save_every="1")
    (checkpoint, *_) = list_checkpoints(tmp_path / "run")
    held = open_checkpoint(checkpoint)
    adapter = set(report.model.network.adapter_state())
    assert set(held.tensors("weights")) == adapter
    assert {name.split("|")[0] for name in held.tensors("optimizer")} == adapter
    assert report.trainable == sum(t.numel() for t in report.model.network.adapter_state().values())
    plain = load_network(base)
    assert report.frozen == sum(p.numel() for p in plain.parameters())
    assert report.model.n_parameters == report.frozen + report.trainable
    names = set(stored_linears(report.model.network))
    assert len(names) == 8
    for name, p in plain.named_parameters():
        if name.removesuffix(".weight") not in names:
            assert torch.equal(report.model.network.get_parameter(name), p), name


@EVERY
def test_the_adapter_names_the_base_in_full_precision(base: Path, data: Path, tmp_path: Path, kind: str) -> None:
    run = tmp_path / "run"
    report = quick(str(data), base, run, quantize=kind, max_steps=4, lora={"rank": 4}, lr=1e-2)
    extras = read_extras(run / "final")
    assert (extras.quantize, extras.base) == (kind, str(base))
    assert extras.base_sha256 == base_digest(load_network(base)) == base_digest(report.model.network)
    assert json.loads((run / "final" / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    opened = open_model(str(run))
    assert not stored_linears(opened.network) and opened.network.stored is None
    probe = probe_tokens(opened.tokenizer, 64)
    with torch.no_grad():
        full, trained = opened.network(probe), report.model.network(probe)
        store_blocks(opened.network, kind)
        assert torch.equal(opened.network(probe), trained)
    assert 0 < float((full - trained).abs().mean()) < (0.02 if kind == "nf4" else 0.002)
    report.model.save(tmp_path / "again")
    assert (tmp_path / "again/finetwo.json").read_text() == (run / "final/finetwo.json").read_text()


@EVERY
@pytest.mark.parametrize("to", ["merged", "adapter"])
def test_export_says_what_lies_between_the_two_bases(
    base: Path, data: Path, tmp_path: Path, kind: str, to: str
) -> None:
    quick(str(data), base, tmp_path / "run", quantize=kind, max_steps=4, lora={"rank": 4}, lr=1e-2)
    opened = open_model(str(tmp_path / "run"))
    probe = probe_tokens(opened.tokenizer, 64)
    with torch.no_grad():
        unmerged = opened.network(probe)
    said = export_model(opened, tmp_path / "out", to, "float32")
    assert f"trained on its base stored as {kind}" in said[0]
    assert said[1].startswith(f"from {kind} to full precision: logits changed by at most")
    with torch.no_grad():
        assert float((open_model(str(tmp_path / "out")).network(probe) - unmerged).abs().max()) < 1e-5
    kept = read_extras(tmp_path / "out").quantize
    assert kept == (kind if to == "adapter" else None)
    plain = export_model(open_model(str(base)), tmp_path / "plain", "auto", "float32")
    assert not any("stored as" in line for line in plain)


@pytest.mark.parametrize(("kind", "precision"), [("nf4", "bf16"), ("nf4", "bf16-true"), ("int8", "bf16")])
def test_every_precision_learns(base: Path, data: Path, tmp_path: Path, kind: str, precision: str) -> None:
    for quantize in ("none", kind):
        out = tmp_path / quantize
        quick(str(data), base, out, quantize=quantize, precision=precision, max_steps=6, lora={"rank": 4}, lr=1e-2)
    plain, stored = step_losses(tmp_path / "none"), step_losses(tmp_path / kind)
    assert stored[-1] < stored[0] and max(abs(a - b) for a, b in zip(plain, stored, strict=True)) < 0.05


@EVERY
def test_the_curve_stays_near_that_of_the_full_base(base: Path, data: Path, tmp_path: Path, kind: str) -> None:
    for quantize in ("none", kind):
        micro(data, base, tmp_path / quantize, quantize=quantize, lora={"rank": 4}, lr=5e-3)
    plain, stored = (losses(tmp_path / name) for name in ("none", kind))
    assert [row[:2] for row in plain] == [row[:2] for row in stored] and plain != stored
    bound = 0.05 if kind == "nf4" else 0.01
    assert max(abs(a[2] - b[2]) / a[2] for a, b in zip(plain, stored, strict=True)) < bound


BOUNDS = {"nf4": (0.4, 0.05), "int8": (0.05, 0.005), "int8, inputs too": (0.1, 0.01)}
"""On the embedded base: by how much a logit may change in the mean, and the perplexity as a share."""


@pytest.mark.parametrize("how", BOUNDS)
def test_the_embedded_base_answers_nearly_as_before(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    model = load("tiny")
    probe = probe_tokens(model.tokenizer, model.network.config.n_positions)
    if "inputs" in how:
        monkeypatch.setattr(Int8Linear, "product", Int8Linear.integer_product)
        probe = probe[:2]  # without VNNI this product is slow
    with torch.no_grad():
        before = model.network(probe)
        stored = copy.deepcopy(model.network)
        store_blocks(stored, how.split(",")[0])
        change = Change.between(probe, before, stored(probe), classes=False)
    assert change.perplexity is not None
    mean, share = BOUNDS[how]
    assert mean / 20 < change.mean < mean
    assert abs(change.perplexity[1] / change.perplexity[0] - 1) < share
    assert change.agreement > 0.85


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, r"--quantize: a quantised base cannot learn, only an adapter on it .*add --lora\.rank 8"),
        ({"freeze": "transformer.wte"}, r"--quantize: a quantised base cannot learn"),
        ({"quantize": "int3", "lora": {"rank": 4}}, r"quantize: must be one of none, nf4, int8 \(got int3\)"),
        ({"task": "pretrain", "size": "1,16,2", "max_length": 16}, r"--quantize: --task pretrain trains every weight"),
    ],
)
def test_what_cannot_be_is_refused(base: Path, data: Path, tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    tokenizer = {"tokenizer": str(base)} if "size" in settings else {}
    with pytest.raises(InputError, match=told):
        quick(str(data), base, tmp_path / "run", **({"quantize": "nf4", "max_steps": 1} | settings | tokenizer))
    assert not (tmp_path / "run").exists()


def test_a_run_goes_on_with_the_same_storage_only(base: Path, data: Path, tmp_path: Path) -> None:
    run, lora = tmp_path / "run", {"rank": 4}
    quick(str(data), base, run, quantize="nf4", max_steps=2, lora=lora, save_every="1")
    for resume in ("auto", str(run / "checkpoint-1")):
        with pytest.raises(InputError, match=r"quantize: nf4 then, none now"):
            quick(str(data), base, run, max_steps=2, lora=lora, save_every="1", resume=resume)


def test_a_quantised_model_in_memory_is_trained_on(base: Path, data: Path, tmp_path: Path) -> None:
    """Also an adapter from disk, which is put on the full base and that is quantised."""
    first = quick(str(data), base, tmp_path / "first", quantize="nf4", max_steps=2, lora={"rank": 4})
    settings: dict[str, Any] = {"template": "plain", "max_steps": 2, "out": str(tmp_path / "second")}
    with pytest.raises(InputError, match=r"stored as nf4 already \(got int8\)"):
        train(str(data), model=first.model, quantize="int8", **settings)
    memory = train(str(data), model=first.model, **settings)
    disk = quick(str(data), tmp_path / "first/final", tmp_path / "third", quantize="nf4", max_steps=2)
    for report in (memory, disk):
        extras = read_extras(report.folder / "final")
        assert extras.quantize == "nf4" and extras.base_sha256 == base_digest(load_network(base))
        assert report.model.network.stored is not None
    plain = quick(str(data), tmp_path / "first/final", tmp_path / "fourth", max_steps=2)
    assert read_extras(plain.folder / "final").quantize is None


@EVERY
def test_a_plan_counts_what_is_stored(base: Path, data: Path, kind: str) -> None:
    config = TrainConfig(model=str(base), template="plain", max_steps=2, quantize=kind)  # type: ignore[arg-type]
    config.lora.rank = 4
    stored = make_plan(config, data, lambda _: None).estimate
    config.quantize = "none"
    plain = make_plan(config, data, lambda _: None).estimate
    assert (stored.parameters, stored.trainable) == (plain.parameters, plain.trainable)
    assert stored.memory_formula < plain.memory_formula


def test_a_damaged_note_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    quick(str(data), base, tmp_path / "run", quantize="nf4", max_steps=1, lora={"rank": 4})
    note = tmp_path / "run/final/finetwo.json"
    note.write_text(note.read_text().replace('"nf4"', "4"))
    with pytest.raises(InputError, match="quantize must be text or null"):
        open_model(str(tmp_path / "run/final"))


def test_a_network_in_full_says_nothing_of_storage(tiny_network: Network) -> None:
    assert tiny_network.stored is None and not stored_linears(tiny_network)


@pytest.mark.slow
def test_memory_is_lower_at_the_published_shape(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "quantised.py"
    command = [sys.executable, str(script), "--steps", "2", "--out", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=True)
    peak = {row["base"]: row["peak_mib"] for row in map(json.loads, done.stdout.splitlines())}
    assert peak["nf4"] < peak["int8"] < peak["none"] - 100, peak
