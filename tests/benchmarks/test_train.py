"""The training benchmark, on a tiny model: both sides compute the same losses, and every figure is written down."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("transformers")
pytest.importorskip("peft")
SCRIPT = Path(__file__).parents[2] / "benchmarks" / "train.py"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bench") / "train.json"
    command = [sys.executable, str(SCRIPT), "--smoke", "--threads", "1", "--out", str(out)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found | {"printed": done.stdout}


def test_both_sides_learn_the_same(told: dict[str, Any]) -> None:
    assert len(told["results"]) == 8
    for result in told["results"]:
        ours, peer = result["losses"]["ours"], result["losses"]["peer"]
        bound = 1e-4 if "float32" in result["workload"] else 0.02
        assert len(ours) == len(peer) == 4 and len(set(ours)) == 4
        assert max(abs(a - b) for a, b in zip(ours, peer, strict=True)) < bound, result["workload"]


def test_every_figure_is_there(told: dict[str, Any]) -> None:
    for result in told["results"]:
        low, high = result["spread"]["wall"]
        assert 0 < low <= result["ratio"]["wall"] <= high
        assert result["workload"] in told["printed"]
    first = told["results"][0]["peak_mib"]
    assert min(first["ours"], first["peer"]) > 50, "the first workload runs in processes of its own"
    assert told["machine"]["threads"] == 1 and told["machine"]["versions"]["torch"]
