"""The Python and the commands of the pages run as they stand, and a task of one's own is short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetwo.store.yaml import read_settings

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8"), flags=re.S)


PROOF = re.split(r"^(?=## )", (ROOT / "docs" / "proof.md").read_text(encoding="utf-8"), flags=re.M)[1:]


def run(code: str, where: Path) -> None:
    """Run code in a fresh interpreter; it must not fail."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_task_is_added_in_under_forty_lines(tmp_path: Path) -> None:
    (block,) = [b for b in BLOCKS if "register(" in b]
    assert len(block.splitlines()) < 40
    learned = "assert report.steps == 2 and report.model.task == 'both-sides'\n"
    events = "import json; steps = [json.loads(l) for l in open('runs/both-sides/metrics.jsonl')]\n"
    first = "step = next(s for s in steps if s['event'] == 'step')\n"
    run(block + learned + events + first + "assert step['learned'] > 0.8 * step['tokens'], step\n", tmp_path)
    task = {s.name: s.value for s in read_settings(tmp_path / "runs" / "both-sides" / "config.yaml")}["task"]
    assert task == "both-sides"


def test_the_other_python_runs(tmp_path: Path) -> None:
    others = [b for b in BLOCKS if "register(" not in b]
    assert others
    for block in others:
        run(block, tmp_path)


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda p: p.name)
def test_links_between_pages_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.skipif(os.name != "posix", reason="the commands are for a shell")
@pytest.mark.parametrize("section", PROOF, ids=lambda s: s.splitlines()[0].removeprefix("## "))
def test_commands_and_python_of_the_proofs_run(section: str, tmp_path: Path) -> None:
    for name, arguments in (("finetwo", " -m finetwo"), ("python", "")):
        (tmp_path / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n', encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    (tmp_path / "work").mkdir()
    blocks = re.findall(r"```(bash|python)\n(.*?)```", section, flags=re.S)
    assert blocks
    for language, block in blocks:
        command = ["bash", "-euo", "pipefail", "-c", block] if language == "bash" else [sys.executable, "-c", block]
        done = subprocess.run(
            command, cwd=tmp_path / "work", env=env, capture_output=True, text=True, timeout=600, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        if "finetwo plan" in block:
            assert "refused: 1 duplicate" in done.stdout and "--strict refuses it for 2 reasons" in done.stderr
            assert "MiB taken" in done.stderr and (tmp_path / "work" / "plan.html").is_file()
        if "certify(" in block:
            assert done.stdout.count("FAILED") == 4 and "FAILED  padding out of the loss: 5 of 5" in done.stdout
