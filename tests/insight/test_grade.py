"""A plan's grade: what is compared, what is not, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from finetwo.core.config import LoraConfig, TrainConfig, to_dict
from finetwo.core.errors import InputError
from finetwo.insight.grade import check_same, grade, graded, read_plan


def plan(**settings: Any) -> dict[str, Any]:
    estimate = {"seconds": 90.0, "memory_bytes": 550 << 20, "steps": 10}
    return {"format": 1, "estimate": estimate, "asked": to_dict(TrainConfig(**settings)), "digest": "abc"}


def receipt(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"finished": True, "data": {"digest": "abc"}, "total_steps": 10}
    content |= {"figures": {"seconds": 100.0, "stopped_early": False}, "peak_memory_bytes": 500 << 20}
    return content | changes


def test_errors_are_shares_of_what_was_taken() -> None:
    found = grade(plan(), receipt())
    assert found["errors"] == pytest.approx({"seconds": -0.1, "memory_bytes": 0.1})
    line = "plan: 90 s estimated, 100 s taken (-10%); 550 MiB estimated, 500 MiB taken (+10%)"
    assert graded(found) == line


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"finished": False}, "the run is not finished"),
        ({"figures": {"seconds": 5.0, "stopped_early": True}}, "the run stopped early"),
        ({"data": {"digest": "other"}}, "the data is not what it was"),
        ({"total_steps": 11}, "the run has 11 steps"),
        ({"peak_memory_bytes": None}, "no figures"),
    ],
)
def test_what_cannot_be_compared_is_said(changes: dict[str, Any], why: str) -> None:
    found = grade(plan(), receipt(**changes))
    assert why in graded(found) and "errors" not in found


def test_a_plan_of_another_job_is_refused() -> None:
    check_same(plan(batch_size=4, out="a"), TrainConfig(batch_size=4, out="b", track=["csv"]), "plan.json")
    with pytest.raises(InputError, match=r"plan\.json: .*--batch_size was 4 \(got 8\)"):
        check_same(plan(batch_size=4), TrainConfig(), "plan.json")
    with pytest.raises(InputError, match=r"--lora\.rank"):
        check_same(plan(), TrainConfig(lora=LoraConfig(rank=8)), "plan.json")


@pytest.mark.parametrize(
    "content", [[], {"format": 2}, {"format": 1}, {"format": 1, "estimate": {"seconds": "x"}, "asked": {}}, "{"]
)
def test_what_is_no_plan_is_refused(content: Any, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(InputError, match=r"plan\.json"):
        read_plan(path)
    path.write_text(json.dumps(plan()))
    assert read_plan(path)["digest"] == "abc"
