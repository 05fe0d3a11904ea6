"""The demo's promise: what is learnt carries over to unseen words, and it is the base that makes it possible."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from finetwo.app.cli import main

LAST = re.compile(r"demo ok: held-out exact match (\d+\.\d) % -> (\d+\.\d) %, (\d+) s")


def last_line(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[float, float]:
    """Run the demo; return exact match before and after, in percent."""
    assert main(["demo", *words]) == 0
    found = LAST.fullmatch(capsys.readouterr().out.splitlines()[-1])
    assert found is not None
    return float(found[1]), float(found[2])


@pytest.mark.slow
def test_demo_learns_word_games(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = last_line(capsys, "--out", str(tmp_path / "demo"))
    assert before <= 2.0
    assert after >= 75.0


@pytest.mark.slow
def test_a_random_start_does_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, after = last_line(capsys, "--out", str(tmp_path / "demo"), "--start", "random")
    assert after < 5.0


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """A demo without model and training; `after` is the share right in the end, `bases` the bases trained upon."""
    stage: dict[str, Any] = {"after": 0.83, "bases": []}

    def train(config: Any, **_: object) -> SimpleNamespace:
        stage["bases"].append((config.model, Path(config.model).is_dir()))
        return SimpleNamespace(model="tuned")

    def score(model: object, games: Any) -> tuple[float, list[str]]:
        return (stage["after"] if model == "tuned" else 0.005), [""] * len(games.test)

    monkeypatch.setattr("finetwo.app.api.load", lambda name: "base")
    monkeypatch.setattr(import_module("finetwo.train.job"), "train", train)
    monkeypatch.setattr("finetwo.app.demo.score", score)
    monkeypatch.chdir(tmp_path)
    return stage


@pytest.mark.parametrize(
    ("after", "code", "last", "next_shown"),
    [(0.83, 0, "demo ok", True), (0.75, 0, "demo ok", True), (0.74, 1, "demo failed", False)],
)
def test_the_last_line_and_the_exit_code(
    staged: dict[str, Any], capsys: pytest.CaptureFixture[str], after: float, code: int, last: str, next_shown: bool
) -> None:
    staged["after"] = after
    assert main(["demo"]) == code
    shown = capsys.readouterr()
    assert re.fullmatch(
        rf"{last}: held-out exact match 0\.5 % -> {after:.1%}, \d+ s".replace("%,", " %,"), shown.out.strip()
    )
    assert ("finetwo generate runs/demo" in shown.err) == next_shown


def test_a_random_start_is_not_measured_and_leaves_nothing(
    staged: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    staged["after"] = 0.01
    assert main(["demo", "--start", "random"]) == 0
    shown = capsys.readouterr()
    assert LAST.fullmatch(shown.out.strip())
    assert "finetwo generate" not in shown.err
    ((folder, was_there),) = staged["bases"]
    assert was_there
    assert not Path(folder).exists()
    assert not list(tmp_path.iterdir())
