"""Who hears of a run, and that none of them can hurt it."""

from __future__ import annotations

import csv
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.train.support import At, Recorder, digest, metrics, quick, records

from finetwo.core.errors import InputError, Stopped
from finetwo.train import listeners as module
from finetwo.train.listeners import CsvListener, Listeners, make_listener

SETTINGS: dict[str, Any] = {
    "rows": {"split": "train:11,validation:4"},
    "max_steps": 5,
    "eval_every": "2",
    "save_every": "2",
    "dropout": 0.1,
}


class Broken:
    """Raises at every event from the `after`-th on, and at its end."""

    def __init__(self, after: int) -> None:
        self.heard, self.after = 0, after

    def hear(self, event: Mapping[str, Any]) -> None:
        self.heard += 1
        if self.heard > self.after:
            raise ValueError("no space for graphs")

    def close(self) -> None:
        raise RuntimeError("closed twice")


@pytest.mark.parametrize("after", [0, 3, 999])
def test_a_failing_listener_never_stops_a_run(base: Path, tmp_path: Path, after: int) -> None:
    broken, other, said = Broken(after), Recorder(), []
    quick(records(15), base, tmp_path / "plain", **SETTINGS)
    report = quick(records(15), base, tmp_path / "run", **SETTINGS, listeners=[broken, other], say=said.append)
    assert report.steps == 5
    assert digest(tmp_path / "run/final") == digest(tmp_path / "plain/final")
    assert len(other.of("step")) == 5, "the others hear on"
    told = [line for line in said if "Broken failed" in line]
    assert len(told) == 1, "it is told once, and no more is told to it"
    assert broken.heard <= after + 1


def test_a_failing_console_never_stops_a_run(base: Path, tmp_path: Path) -> None:
    """The line that says so may fail too: a closed terminal takes both."""

    def say(line: str) -> None:
        if "failed" in line:
            raise OSError(5, "Input/output error")

    assert quick(records(15), base, tmp_path / "run", **SETTINGS, listeners=[Broken(2)], say=say).steps == 5


def test_events_of_a_run_in_order(base: Path, tmp_path: Path) -> None:
    heard = Recorder()
    quick(records(15), base, tmp_path / "run", **SETTINGS, listeners=[heard])
    kinds = [(e["event"], e.get("step")) for e in heard.events]
    assert kinds == [
        ("start", None),
        ("evaluation", 0),
        ("step", 1),
        ("step", 2),
        ("evaluation", 2),
        ("checkpoint", 2),
        ("step", 3),
        ("step", 4),
        ("evaluation", 4),
        ("checkpoint", 4),
        ("step", 5),
        ("evaluation", 5),
        ("checkpoint", 5),
        ("end", None),
    ]
    assert heard.closed == 1
    assert heard.of("start")[0]["total_steps"] == 5
    log = metrics(tmp_path / "run")
    assert [m["loss"] for m in log if m["event"] == "step"] == [e["loss"] for e in heard.of("step")]


def test_listeners_get_data_and_never_the_trainer(base: Path, tmp_path: Path) -> None:
    heard = Recorder()
    quick(records(15), base, tmp_path / "run", **SETTINGS, listeners=[heard])

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(plain(v) for v in value)
        return value is None or type(value) in (str, int, float, bool)

    assert all(plain(event) for event in heard.events)


def test_listeners_are_closed_when_a_run_is_stopped(base: Path, tmp_path: Path) -> None:
    heard = Recorder()
    with pytest.raises(Stopped):
        stop = At("step", 2, lambda: signal.raise_signal(signal.SIGTERM))
        quick(records(15), base, tmp_path / "run", **SETTINGS, listeners=[stop, heard])
    assert heard.closed == 1


def rows_of(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_csv_holds_steps_and_evaluations(base: Path, tmp_path: Path) -> None:
    quick(records(15), base, tmp_path / "run", **SETTINGS, track=["csv"])
    rows = rows_of(tmp_path / "run")
    log = [m for m in metrics(tmp_path / "run") if m["event"] in ("step", "evaluation")]
    assert [int(r["step"]) for r in rows] == [m["step"] for m in log]
    for row, m in zip(rows, log, strict=True):
        column = "loss" if m["event"] == "step" else "validation_loss"
        assert float(row[column]) == m["loss"]


def test_csv_goes_on_after_a_stop_without_gap_or_double(base: Path, tmp_path: Path) -> None:
    quick(records(15), base, tmp_path / "whole", **SETTINGS, track=["csv"])

    def die() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):  # after step 3, saved after step 2
        quick(records(15), base, tmp_path / "run", **SETTINGS, track=["csv"], listeners=[At("step", 4, die)])
    assert [r["step"] for r in rows_of(tmp_path / "run")] == ["0", "1", "2", "2", "3"]
    quick(records(15), base, tmp_path / "run", **SETTINGS, track=["csv"])
    same = ("step", "loss", "lr", "validation_loss", "validation_loss_all")
    found, wanted = rows_of(tmp_path / "run"), rows_of(tmp_path / "whole")
    assert [[r[n] for n in same] for r in found] == [[r[n] for n in same] for r in wanted]


def test_unknown_name_lists_the_names(base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--track: no such listener \(got wandbb\)\. Fix: use csv"):
        quick(records(15), base, tmp_path / "run", **SETTINGS, track=["wandbb"])
    assert not (tmp_path / "run").exists()


def test_listener_of_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Point:
        name = "mine"

        def load(self) -> Any:
            return CsvListener

    monkeypatch.setattr(module, "entry_points", lambda group: [Point()] if group == "finetwo.listeners" else [])
    assert isinstance(make_listener("mine", tmp_path), CsvListener)
    with pytest.raises(InputError, match="use csv, mine"):
        make_listener("yours", tmp_path)


def test_fence_lets_a_wish_to_stop_through() -> None:
    """Ctrl-C inside a listener is no failure of the listener."""

    class Interrupted:
        def hear(self, event: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt

        def close(self) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        Listeners([Interrupted()], lambda _: None).tell(event="step")


def csv_after(run: Path, *events: Mapping[str, Any]) -> list[dict[str, str]]:
    run.mkdir(exist_ok=True)
    listener = CsvListener(run)
    for event in events:
        listener.hear(event)
    listener.close()
    return rows_of(run) if (run / "metrics.csv").exists() else []


START = {"event": "start", "resumed": 0}
STEP = {"event": "step", "step": 1, "loss": 2.0, "lr": 0.1, "grad_norm": 1.0, "tokens": 9}


def test_csv_takes_figures_of_any_name(tmp_path: Path) -> None:
    """A classifier is evaluated by other figures than a language model, and some may come late."""
    first = {"event": "evaluation", "step": 0, "loss": 3.0, "accuracy": 0.5, "best": True, "labels": ["a"]}
    later = {"event": "evaluation", "step": 1, "loss": 2.5, "macro_f1": 0.25, "best": True}
    rows = csv_after(tmp_path, START, first, STEP, later)
    assert [(r["step"], r["loss"], r["validation_loss"]) for r in rows] == [
        ("0", "", "3.0"),
        ("1", "2.0", ""),
        ("1", "", "2.5"),
    ]
    assert [r["validation_accuracy"] for r in rows] == ["0.5", "", ""]
    assert [r["validation_macro_f1"] for r in rows] == ["", "", "0.25"]
    assert not {"validation_best", "validation_labels", "validation_step", "tokens"} & set(rows[0])
    again = csv_after(tmp_path, {"event": "start", "resumed": 1}, STEP | {"step": 2})
    assert again[:3] == rows and again[3]["step"] == "2" and again[3]["validation_macro_f1"] == ""


def test_csv_of_a_run_without_a_step_is_removed(tmp_path: Path) -> None:
    assert csv_after(tmp_path, START, {"event": "evaluation", "step": 0, "loss": 3.0}) == []
    assert list(tmp_path.iterdir()) == []
    assert len(csv_after(tmp_path, START, STEP)) == 1
    assert len(csv_after(tmp_path, {"event": "start", "resumed": 1})) == 1, "what a finished run wrote stays"


@pytest.mark.parametrize("when", ["load", "make"])
def test_a_listener_that_cannot_be_made_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    class Point:
        name = "mine"

        def load(self) -> Any:
            if when == "load":
                raise ImportError("no module\nnamed x")
            return lambda run: 1 / 0

    monkeypatch.setattr(module, "entry_points", lambda group: [Point()])
    with pytest.raises(InputError) as caught:
        make_listener("mine", tmp_path)
    assert str(caught.value).startswith("--track: the listener mine cannot be made: ")
    assert "\n" not in str(caught.value)


def test_a_failure_is_told_in_one_line_by_the_name_of_the_listener() -> None:
    class Named(Broken):
        name = "graphs"

        def hear(self, event: Mapping[str, Any]) -> None:
            raise ValueError("first\nsecond")

    said: list[str] = []
    Listeners([Named(0)], said.append).tell(event="step")
    assert said == ["listener graphs failed and hears no more: ValueError: first\\nsecond"]
