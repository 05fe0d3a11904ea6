"""The Python of docs/tasks.md runs as it stands, and a task of one's own is short."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from finetwo.store.yaml import read_settings

ROOT = Path(__file__).parents[1]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8"), flags=re.S)


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
