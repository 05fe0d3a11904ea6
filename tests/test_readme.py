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
    command = tmp_path / "bin" / "finetwo"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m finetwo "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    (command.parent / "python").symlink_to(sys.executable)
    path = f"{command.parent}{os.pathsep}{os.environ['PATH']}"
    env = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    work = tmp_path / "work"
    work.mkdir()
    script = ["bash", "-euo", "pipefail", "-c", blocks[0]]
    done = subprocess.run(script, cwd=work, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (work / "capitals-model" / "model.safetensors").is_file()
    assert (work / "capitals-adapter" / "adapter_model.safetensors").is_file()
    assert (work / "runs" / "notes-style" / "final").is_dir()
