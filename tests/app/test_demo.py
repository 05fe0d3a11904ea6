"""The demo's promise: what is learnt carries over to unseen words, and it is the base that makes it possible."""

from __future__ import annotations

import re
from pathlib import Path

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
