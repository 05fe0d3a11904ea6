"""The commands of docs/receipts.md, run as they stand."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "receipts.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="the page is for a shell")
def test_the_page_runs(tmp_path: Path) -> None:
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.S)
    command = tmp_path / "bin" / "finetwo"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m finetwo "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    script = ["bash", "-euo", "pipefail", "-c", block]
    done = subprocess.run(script, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    for said in ("identical: 4 steps, every loss and the final weights", "nothing found:", "serving check: passed"):
        assert said in done.stdout
    assert "logits changed by at most" in done.stderr and (tmp_path / "animals-bf16" / "model.safetensors").is_file()


def test_the_page_names_the_fields_of_a_receipt(tmp_path: Path) -> None:
    from finetwo import train

    rows = [{"prompt": f"{i}?", "completion": "yes"} for i in range(3)]
    train(rows, model="tiny", out=str(tmp_path / "run"), max_steps=1)
    fields = set(json.loads((tmp_path / "run" / "receipt.json").read_text(encoding="utf-8"))) - {"format"}
    table = PAGE.partition("## The receipt")[2].partition("The chain")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    assert set(re.findall(r"`(\w+)`", " ".join(cells))) == fields
