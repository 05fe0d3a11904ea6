"""From events to figures: names, steps, and that no tracker can hurt a run."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.train.support import At, digest, metrics, quick, records

from finetwo.core.errors import InputError, Stopped
from finetwo.train import tracker as module
from finetwo.train.listeners import Listener, make_listener
from finetwo.train.machine import MachineUse
from finetwo.train.tracker import Opening, Sample, Tracker, figures_of, prompt_text

SETTINGS: dict[str, Any] = {
    "rows": {"split": "train:11,validation:4"},
    "max_steps": 4,
    "eval_every": "2",
    "save_every": "2",
    "dropout": 0.1,
}


class Memory:
    """A sink that keeps everything, and fails at the call named `fails`."""

    def __init__(self, fails: str = "") -> None:
        self.fails = fails
        self.calls: list[tuple[Any, ...]] = []

    def _note(self, *call: Any) -> None:
        self.calls.append(call)
        if call[0] == self.fails:
            raise OSError(28, "No space left on device")

    def open(self, opening: Opening) -> None:
        self._note("open", opening)

    def figures(self, step: int, values: Mapping[str, float]) -> None:
        self._note("figures", step, dict(values))

    def samples(self, step: int, samples: Sequence[Sample]) -> None:
        self._note("samples", step, list(samples))

    def close(self) -> None:
        self._note("close")


STEP = {"event": "step", "step": 1, "total_steps": 9, "loss": 2.0, "lr": 1e-3, "tokens": 7}
START = {"event": "start", "total_steps": 9, "folder": "x", "resumed": 0}
EVALUATION = {
    "event": "evaluation",
    "step": 0,
    "loss": 3.0,
    "accuracy": 0.5,
    "best": True,
    "labels": ["a"],
    "none": None,
}


def heard(run: Path, *events: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    sink = Memory()
    tracker = Tracker("memory", run, sink, MachineUse(every=0))
    for event in events:
        tracker.hear(event)
    tracker.close()
    return sink.calls


def test_events_become_named_figures(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("lr: 0.001\n", encoding="utf-8")
    calls = heard(tmp_path, START, EVALUATION, STEP, {"event": "checkpoint", "step": 1}, {"event": "end", "steps": 1})
    assert [c[0] for c in calls] == ["open", "figures", "figures", "close"]
    assert calls[0][1] == Opening(tmp_path, 0, "lr: 0.001\n")
    assert calls[1][1:] == (0, {"validation/loss": 3.0, "validation/accuracy": 0.5})
    assert calls[2][1] == 1
    assert set(calls[2][2]) >= {"train/loss", "train/lr", "train/tokens", "machine/cpu_percent", "machine/memory_mib"}
    assert not {name for name in calls[2][2] if "step" in name or "event" in name}


def test_figures_of_any_name_are_taken() -> None:
    event = {"step": 3, "macro_f1": 0.5, "classes": {"joy": {"recall": 1}}, "best": False, "protocol": "x", "ok": True}
    assert dict(figures_of(event)) == {"macro_f1": 0.5, "classes/joy/recall": 1.0}


def test_samples_of_a_step_come_together(tmp_path: Path) -> None:
    def sample(step: int, prompt: Any, *texts: str) -> dict[str, Any]:
        return {"event": "sample", "step": step, "prompt": prompt, "texts": list(texts), "finish_reasons": []}

    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    calls = heard(
        tmp_path, START, STEP, sample(1, "p", "x", "y"), sample(1, {"prompt": "q", "input": "i"}, "z"),
        sample(2, turns, "w"), sample(3, {"word": "v"}, "u"),
    )  # fmt: skip
    assert [c[1:] for c in calls if c[0] == "samples"] == [
        (1, [Sample("p", "x"), Sample("p", "y"), Sample("q\ni", "z")]),
        (2, [Sample("user: a\nassistant: b", "w")]),
        (3, [Sample("word: v", "u")]),
    ]
    assert prompt_text({"prompt": "q", "input": ""}) == "q"


def test_nothing_is_opened_before_a_step(tmp_path: Path) -> None:
    assert heard(tmp_path, START, EVALUATION, {"event": "end", "steps": 0}) == []
    finished = START | {"resumed": 9}
    assert heard(tmp_path, finished, {"event": "end", "steps": 9}) == []
    calls = heard(tmp_path, finished, EVALUATION | {"step": 9})
    assert [c[0] for c in calls] == ["open", "figures", "close"], "what a resumed run evaluates will not come again"


@pytest.mark.parametrize("fails", ["open", "figures", "samples", "close"])
def test_a_failing_sink_never_stops_a_run(base: Path, tmp_path: Path, fails: str) -> None:
    (tmp_path / "p.txt").write_text("lamp\nharbour\n", encoding="utf-8")
    settings = SETTINGS | {"sample_prompts": str(tmp_path / "p.txt"), "sample_every": "2"}
    quick(records(15), base, tmp_path / "plain", **settings)
    sink, said = Memory(fails), []
    tracker = Tracker("memory", tmp_path / "run", sink)
    report = quick(records(15), base, tmp_path / "run", **settings, listeners=[tracker], say=said.append)
    assert report.steps == 4
    assert digest(tmp_path / "run/final") == digest(tmp_path / "plain/final")
    told = [line for line in said if "memory failed" in line]
    assert told == ["listener memory failed and hears no more: OSError: [Errno 28] No space left on device"]
    assert [c[0] for c in sink.calls].count("close") == 1, "a sink that failed is closed"
    assert sink.calls[-1][0] == "close"


# --- the built-in ones ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package_is_refused_before_the_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda package: None)
    with pytest.raises(InputError) as caught:
        quick(records(15), base, tmp_path / "run", **SETTINGS, track=[name])
    assert str(caught.value) == (
        f"--track: {name} needs the package {name} (got {name}). Fix: pip install 'finetwo[track]'"
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_nothing_is_imported_or_written_when_one_is_made(tmp_path: Path, name: str) -> None:
    before = set(sys.modules)
    listener: Listener = make_listener(name, tmp_path)
    new = {module.partition(".")[0] for module in set(sys.modules) - before}
    assert name not in new
    listener.hear(START)
    listener.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "inside"), [("tensorboard", "tensorboard.summary.writer.record_writer"), ("wandb", "wandb")]
)
def test_an_import_that_fails_later_never_stops_a_run(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, inside: str
) -> None:
    listener = make_listener(name, tmp_path / "run")
    monkeypatch.setitem(sys.modules, inside, None)
    said: list[str] = []
    report = quick(records(15), base, tmp_path / "run", **SETTINGS, listeners=[listener], say=said.append)
    assert report.steps == 4
    assert [line for line in said if f"listener {name} failed and hears no more: ModuleNotFoundError" in line]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_place_that_is_taken_never_stops_a_run(base: Path, tmp_path: Path, name: str) -> None:
    def take() -> None:
        (tmp_path / "run" / name).write_text("mine")

    said: list[str] = []
    taken = At("evaluation", 0, take)
    report = quick(records(15), base, tmp_path / "run", **SETTINGS, listeners=[taken], track=[name], say=said.append)
    assert report.steps == 4
    assert any(f"listener {name} failed" in line for line in said)
    assert (tmp_path / "run" / name).read_text() == "mine"


def test_a_run_stopped_before_its_first_step_leaves_no_folder(base: Path, tmp_path: Path) -> None:
    """Ctrl-C before the first step leaves nothing behind, trackers or not (row C30 of the bad inputs)."""
    stop = At("evaluation", 0, lambda: signal.raise_signal(signal.SIGTERM))
    with pytest.raises(Stopped):
        quick(records(15), base, tmp_path / "run", **SETTINGS, listeners=[stop], track=["csv", "tensorboard", "wandb"])
    assert not (tmp_path / "run").exists()


def test_tracked_steps_are_those_of_the_log(base: Path, tmp_path: Path) -> None:
    sink = Memory()
    quick(records(15), base, tmp_path / "run", **SETTINGS, listeners=[Tracker("memory", tmp_path / "run", sink)])
    found = [(c[1], c[2]["train/loss"]) for c in sink.calls if c[0] == "figures" and "train/loss" in c[2]]
    assert found == [(m["step"], m["loss"]) for m in metrics(tmp_path / "run") if m["event"] == "step"]
    assert sink.calls[0][1].config == (tmp_path / "run/config.yaml").read_text(encoding="utf-8")
