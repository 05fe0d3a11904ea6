"""The commands of the README, run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(os.name != "posix", reason="the tour is for a shell")
def test_the_tour_runs(tmp_path: Path) -> None:
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)
    assert len(blocks) == 1
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, arguments in (("finetwo", " -m finetwo"), ("python", "")):
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{arguments} "$@"\n', encoding="utf-8")
        (commands / name).chmod(0o755)
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    work = tmp_path / "work"
    work.mkdir()
    script = ["bash", "-euo", "pipefail", "-c", blocks[0]]
    done = subprocess.run(script, cwd=work, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (work / "capitals-model" / "model.safetensors").is_file()
    assert (work / "capitals-adapter" / "adapter_model.safetensors").is_file()
    assert (work / "runs" / "notes-style" / "final").is_dir()
