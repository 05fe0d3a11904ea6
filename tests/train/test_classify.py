"""Training a classifier: what learns, what is told and kept, and that a stop leaves no trace."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn import metrics as sk
from tests.train.support import At, Recorder, digest, gap, losses, metrics, step_losses, weights, write_jsonl

from finetwo import train
from finetwo.core.errors import InputError, Stopped
from finetwo.generate.predict import open_predictor
from finetwo.store.checkpoint import list_checkpoints
from finetwo.store.folder import read_extras
from finetwo.tasks.classes import fit_temperature, probabilities
from finetwo.train.progress import rank
from finetwo.train.report import Report

CLASSES = {"out": "the lamp went out", "steps": "she counted steps", "nobody": "nobody answered"}
RECORDS = [
    {"text": f"{'the wind and ' * (i % 5)}{text} {i}", "label": name}
    for i, (name, text) in enumerate(list(CLASSES.items()) * 14)
]
PAIRS = [
    {"premise": f"the lamp {i}", "hypothesis": "it is odd" if i % 2 else "so it is even", "label": i % 2}
    for i in range(30)
]
MICRO: dict[str, Any] = {
    "batch_size": 2,
    "grad_accum": 3,
    "dropout": 0.1,
    "head_dropout": 0.1,
    "lr": 3e-3,
    "packing": True,
    "epochs": 3,
    "eval_every": "2",
    "save_every": "2",
    "rows": {"split": "train:25,validation:5"},
}
"""The micro run of the resume tests, with dropout on the head as well."""
KINDS: dict[str, dict[str, Any]] = {
    "full": {"class_weights": "balanced"},
    "mean": {"pooling": "mean", "packing": False, "workers": 2},
    "lora": {"lora": {"rank": 4, "dropout": 0.2}, "lr": 2e-2},
    "head only": {"freeze": "transformer", "lr": 1e-1},
    "pairs": {"task": "entail"},
}


def run(base: Path, out: Path, kind: str = "full", **settings: Any) -> Report:
    chosen = MICRO | KINDS[kind] | settings
    return train(PAIRS if kind == "pairs" else RECORDS, model=str(base), out=str(out), **chosen)


def plain(base: Path, out: Path, **settings: Any) -> Report:
    """A run with nothing but steps on all records."""
    quiet = {"eval_every": "0", "save_every": "0", "sample_every": "0", "rows": {"split": "train:42"}, "lr": 1e-2}
    return train(settings.pop("data", RECORDS), model=str(base), out=str(out), **(quiet | settings))


@pytest.fixture(scope="module")
def tuned(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A classifier that has learned something, with a validation set of its own."""
    folder = tmp_path_factory.mktemp("tuned")
    settings = {"epochs": 8, "lr": 1e-2, "batch_size": 7, "rows": {"split": "train:32,validation:10"}}
    return train(RECORDS, model=str(base), out=str(folder / "run"), **settings)


# --- what is told and kept --------------------------------------------------------------------------------------------


def test_it_learns_and_tells_its_figures(tuned: Report) -> None:
    told = [m for m in metrics(tuned.folder) if m["event"] == "evaluation"]
    assert {"loss", "accuracy", "macro_f1", "temperature", "ece", "records"} <= told[0].keys()
    assert all(m["records"] == 10 for m in told)
    assert tuned.best is not None and tuned.best["accuracy"] >= 0.9 > told[0]["accuracy"]
    assert any("validation accuracy" in line for line in tuned.lines())
    assert step_losses(tuned.folder)[-1] < step_losses(tuned.folder)[0]


def test_the_figures_are_those_of_the_saved_model(tuned: Report) -> None:
    """best/ asked for the validation records again, its figures taken by scikit-learn."""
    predictor = open_predictor(str(tuned.folder / "best"))
    held = RECORDS[32:]
    shares = np.array([list(p.probabilities.values()) for p in predictor.predict({"text": r["text"]} for r in held)])
    truth = [predictor.labels.index(r["label"]) for r in held]
    logits = np.log(shares) * predictor.temperature
    assert tuned.best is not None
    assert tuned.best["accuracy"] == pytest.approx(sk.accuracy_score(truth, shares.argmax(1)))
    assert tuned.best["macro_f1"] == pytest.approx(sk.f1_score(truth, shares.argmax(1), average="macro"))
    raw = probabilities(logits)
    assert tuned.best["loss"] == pytest.approx(sk.log_loss(truth, raw, labels=[0, 1, 2]), abs=1e-5)
    assert predictor.temperature == pytest.approx(fit_temperature(logits, np.array(truth)), rel=1e-3)


def test_the_temperature_is_kept_and_used(tuned: Report) -> None:
    extras = read_extras(tuned.folder / "best")
    assert tuned.best is not None
    assert extras.temperature == tuned.best["temperature"] != 1.0
    assert (extras.task, extras.max_length) == ("classify", 64)
    assert open_predictor(str(tuned.folder)).temperature == extras.temperature


def test_the_best_is_the_most_accurate_and_then_the_surest(tuned: Report) -> None:
    told = [m for m in metrics(tuned.folder) if m["event"] == "evaluation"]
    best = min(told, key=lambda m: (-m["accuracy"], m["loss"]))
    assert tuned.best == best
    assert rank({"accuracy": 0.9, "loss": 5.0}) < rank({"accuracy": 0.8, "loss": 0.1})
    assert rank({"accuracy": 0.9, "loss": 0.1}) < rank({"accuracy": 0.9, "loss": 0.2})
    assert rank({"loss": 0.1}) < rank({"loss": 0.2})


def test_patience_counts_errors_first(base: Path, tmp_path: Path) -> None:
    """With a learning rate of nothing no evaluation is better than the first."""
    heard = Recorder()
    settings = {"lr": 1e-12, "dropout": 0.0, "head_dropout": 0.0, "weight_decay": 0.0, "patience": 2}
    report = run(base, tmp_path / "run", **settings, listeners=[heard])
    assert report.stopped_early and report.steps <= 6
    assert all("accuracy" in e for e in heard.of("evaluation"))


def test_classes_are_said_and_stand_in_the_config(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    report = run(base, tmp_path / "run", max_steps=1, say=said.append)
    assert any(line.endswith("3 classes: nobody 8, out 9, steps 8") for line in said)
    config = json.loads((tmp_path / "run/final/config.json").read_text())
    assert config["id2label"] == {"0": "nobody", "1": "out", "2": "steps"}
    assert report.model.network.config.labels == ("nobody", "out", "steps")


# --- what learns ------------------------------------------------------------------------------------------------------


def test_head_only_tuning_changes_the_head_only(base: Path, tmp_path: Path) -> None:
    report = plain(base, tmp_path / "run", freeze="transformer", max_steps=4)
    before, after = weights(base), weights(tmp_path / "run/final")
    assert set(after) == {*before, "score.weight"}
    assert gap(before, {n: after[n] for n in before}) == 0.0
    assert report.trainable == 3 * 32
    fresh = report.model.network.config.initializer_range
    assert float(after["score.weight"].std()) != pytest.approx(fresh, rel=1e-3)


def test_lora_learns_its_adapter_and_the_head(base: Path, tmp_path: Path) -> None:
    report = plain(base, tmp_path / "run", lora={"rank": 2}, max_steps=4)
    held = weights(tmp_path / "run/final")
    assert "base_model.model.score.weight" in held and len(held) == 2 * 4 + 1
    assert report.trainable == sum(t.numel() for t in held.values())
    assert all(float(t.abs().max()) > 0 for t in held.values())


@pytest.mark.parametrize("setting", [{}, {"class_weights": "out:5,steps:0.5"}, {"pooling": "mean"}], ids=str)
def test_layout_and_accumulation_change_nothing(base: Path, tmp_path: Path, setting: dict[str, Any]) -> None:
    """Packed or padded, 6 at once, 3 times 2 or 6 times 1: the same losses and weights."""
    layouts = [(6, 1, True), (6, 1, False), (2, 3, True), (1, 6, None)]
    for number, (size, accum, packing) in enumerate(layouts):
        plain(base, tmp_path / f"{number}", batch_size=size, grad_accum=accum, packing=packing, max_steps=5, **setting)
    first = step_losses(tmp_path / "0")
    for number in range(1, 4):
        assert step_losses(tmp_path / f"{number}") == pytest.approx(first, abs=1e-5)
        assert gap(weights(tmp_path / "0/final"), weights(tmp_path / f"{number}/final")) < 2e-3


def test_head_dropout_is_in_force_in_training(base: Path, tmp_path: Path) -> None:
    found = []
    for number, share in enumerate((0.0, 0.5, 0.5)):
        plain(base, tmp_path / f"{number}", head_dropout=share, max_steps=3)
        found.append(step_losses(tmp_path / f"{number}"))
    assert found[1] == found[2] and all(a != b for a, b in zip(found[0], found[1], strict=True))


def test_class_weights_pull_towards_their_class(base: Path, tmp_path: Path) -> None:
    rows = [r for i, r in enumerate(RECORDS) if r["label"] != "steps" or i % 6 == 1]
    rare = sum(r["label"] == "steps" for r in rows)
    found = []
    for setting in ("none", "steps:20"):
        plain(
            base,
            tmp_path / setting,
            data=rows,
            class_weights=setting,
            max_steps=6,
            rows={"split": f"train:{len(rows)}"},
        )
        predictor = open_predictor(str(tmp_path / setting))
        found.append(np.mean([p.probabilities["steps"] for p in predictor.predict({"text": r["text"]} for r in rows)]))
    assert rare < len(rows) / 4 and found[1] > found[0] + 0.1


def test_the_loss_of_a_step_is_the_weighted_mean(base: Path, tmp_path: Path) -> None:
    """The first step over all records at once against PyTorch's own weighted mean."""
    table = {"nobody": 3.0, "out": 0.5, "steps": 1.0}
    setting = ",".join(f"{name}:{value}" for name, value in table.items())
    report = plain(base, tmp_path / "run", batch_size=14, grad_accum=3, max_steps=1, lr=1e-9, class_weights=setting)
    predictor = open_predictor(str(tmp_path / "run"))
    logits = np.log([list(p.probabilities.values()) for p in predictor.predict({"text": r["text"]} for r in RECORDS)])
    truth = torch.tensor([predictor.labels.index(r["label"]) for r in RECORDS])
    wanted = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), truth, weight=torch.tensor(list(table.values()), dtype=torch.float64)
    )
    assert report.train_loss == pytest.approx(float(wanted), abs=1e-5)


# --- stopping and going on --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_stopped_and_resumed_is_bit_identical(base: Path, tmp_path: Path, kind: str) -> None:
    whole, other = tmp_path / "whole", tmp_path / "run"
    run(base, whole, kind)
    total = max(m["step"] for m in metrics(whole))
    for step in (3, total - 1):
        with pytest.raises(Stopped):
            run(base, other, kind, listeners=[At("step", step, lambda: signal.raise_signal(signal.SIGTERM))])
        assert list_checkpoints(other)[0].name == f"checkpoint-{step}"
    run(base, other, kind)
    assert digest(other / "final") == digest(whole / "final")
    assert losses(other) == losses(whole)
    assert (other / "final/finetwo.json").read_bytes() == (whole / "final/finetwo.json").read_bytes()


def test_resume_refuses_other_classes(base: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(base, tmp_path / "run", listeners=[At("step", 3, lambda: signal.raise_signal(signal.SIGTERM))])
    for changes in (
        {"rows": MICRO["rows"] | {"labels": "out,steps,nobody"}},
        {"pooling": "mean"},
        {"head_dropout": 0.0},
    ):
        with pytest.raises(InputError, match="other settings"):
            run(base, tmp_path / "run", **changes)


def test_going_on_from_a_classifier_keeps_its_head(tuned: Report, tmp_path: Path) -> None:
    said: list[str] = []
    model = tuned.folder / "final"
    plain(model, tmp_path / "run", max_steps=1, lr=1e-9, weight_decay=0.0, say=said.append)
    assert "head: going on with the model's own over 3 classes" in said
    assert gap(weights(model), weights(tmp_path / "run/final")) < 1e-6


@pytest.mark.parametrize("setting", [{"data": PAIRS, "rows": {"split": "train:30"}}, {"pooling": "mean"}], ids=str)
def test_other_classes_or_another_pooling_get_a_fresh_head(
    tuned: Report, tmp_path: Path, setting: dict[str, Any]
) -> None:
    said: list[str] = []
    model = tuned.folder / "final"
    report = plain(model, tmp_path / "run", max_steps=1, lr=1e-9, say=said.append, **setting)
    assert any(line.startswith("head: ") and "a fresh head is put on" in line for line in said), said
    old, new = weights(model), weights(tmp_path / "run/final")
    assert (
        old["score.weight"].shape != new["score.weight"].shape
        or gap({"s": old["score.weight"]}, {"s": new["score.weight"]}) > 1e-3
    )
    assert report.model.network.config.pooling == setting.get("pooling", "last")


def test_an_adapter_goes_on_with_its_head(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    plain(base, tmp_path / "one", lora={"rank": 2}, max_steps=3)
    plain(tmp_path / "one/final", tmp_path / "two", max_steps=1, lr=1e-9, weight_decay=0.0, say=said.append)
    assert "head: going on with the model's own over 3 classes" in said
    assert gap(weights(tmp_path / "one/final"), weights(tmp_path / "two/final")) < 1e-6


def test_a_classifier_writes_no_text(tuned: Report, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 12
    with pytest.raises(InputError, match="is a classifier, it does not write text"):
        train(rows, model=str(tuned.folder), out=str(tmp_path / "run"), max_steps=1, template="plain")


# --- data -------------------------------------------------------------------------------------------------------------


def test_a_file_of_texts_and_classes_needs_no_task(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "reviews.csv"
    data.write_text("review,sentiment\n" + "".join(f'"{r["text"]}, so",{r["label"]}\n' for r in RECORDS))
    said: list[str] = []
    report = train(str(data), model=str(base), out=str(tmp_path / "run"), max_steps=1, say=said.append)
    assert report.model.task == "classify"
    assert "columns: text = 'review', label = 'sentiment' (classes layout)" in said


def test_style_reads_a_labelled_table_as_plain_text(base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "data.jsonl", RECORDS)
    report = train(str(data), model=str(base), out=str(tmp_path / "run"), task="style", max_steps=1, max_length=16)
    assert report.model.task == "style" and report.model.network.config.labels == ()


def test_settings_of_classifiers_are_refused_elsewhere(base: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}", "completion": "b"} for i in range(12)]
    for name, value in (("pooling", "mean"), ("head_dropout", 0.1), ("class_weights", "balanced")):
        with pytest.raises(InputError, match=f"--{name}: only for classifiers; this is instruct"):
            train(rows, model=str(base), out=str(tmp_path / "run"), template="plain", **{name: value})
    with pytest.raises(InputError, match=r"--rows.labels: only for classifiers"):
        train(rows, model=str(base), out=str(tmp_path / "run"), template="plain", rows={"labels": "a,b"})
