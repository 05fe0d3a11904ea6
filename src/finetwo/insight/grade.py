"""How far a plan's estimate lay from what the run then took.

It knows the JSON of a plan and of a receipt, and nothing of how either came about. Its one invariant: a run is graded
by a plan of the same options and the same data only, or it is said why not.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetwo.core.config import TrainConfig, to_dict
from finetwo.core.errors import InputError
from finetwo.core.files import read_json
from finetwo.insight.plan import FORMAT

_FREE = ("out", "resume", "track")
"""Options that change nothing of what a run takes."""
_ESTIMATE = {"seconds": float, "memory_bytes": int, "steps": int}


def read_plan(path: Path) -> dict[str, Any]:
    """Return the plan in a file of `finetwo plan --report FILE.json`; InputError where it is none."""
    content = read_json(path)
    fix = "write one: finetwo plan DATA ... --report FILE.json"
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(str(path), "is not a plan of a format known here", None, fix)
    estimate = content.get("estimate")
    if not isinstance(estimate, dict) or not isinstance(content.get("asked"), dict):
        raise InputError(str(path), "a damaged plan: no estimate in it", None, fix)
    wrong = next((n for n, kind in _ESTIMATE.items() if not isinstance(estimate.get(n), (kind, int))), None)
    if wrong is not None:
        raise InputError(str(path), f"a damaged plan: {wrong} is no number", estimate.get(wrong), fix)
    return content


def check_same(plan: Mapping[str, Any], config: TrainConfig, where: str) -> None:
    """Raise InputError where the plan was made with other options than the job's."""
    then, now = (dict(_flat(part)) for part in (plan["asked"], to_dict(config)))
    for name in now:
        if name not in _FREE and then.get(name) != now[name]:
            what = f"the plan is of another job: --{name} was {then.get(name)}"
            raise InputError(where, what, now[name], "plan with the words of this command, or leave --plan out")


def _flat(content: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


def grade(plan: Mapping[str, Any], receipt: Mapping[str, Any]) -> dict[str, Any]:
    """Return what was estimated, what the run took, and the error of each as a share (0.1: ten per cent too much).

    With `why` in the place of the errors where the two cannot be compared.
    """
    estimate, figures = plan["estimate"], receipt.get("figures") or {}
    found: dict[str, Any] = {
        "estimated": {"seconds": estimate["seconds"], "memory_bytes": estimate["memory_bytes"]},
        "taken": {"seconds": figures.get("seconds"), "memory_bytes": receipt.get("peak_memory_bytes")},
    }
    reasons = {
        "the run is not finished": not receipt.get("finished"),
        "the run stopped early": bool(figures.get("stopped_early")),
        "the data is not what it was": receipt["data"].get("digest") != plan.get("digest"),
        f"the run has {receipt.get('total_steps')} steps": receipt.get("total_steps") != estimate["steps"],
    }
    why = next((words for words, holds in reasons.items() if holds), None)
    taken = found["taken"]
    if why is None and not (taken["seconds"] and taken["memory_bytes"]):
        why = "the receipt has no figures of it"
    if why is not None:
        return found | {"why": why}
    return found | {"errors": {n: found["estimated"][n] / taken[n] - 1 for n in ("seconds", "memory_bytes")}}


def graded(grade: Mapping[str, Any]) -> str:
    """A grade as one line for a person."""
    if "why" in grade:
        return f"plan: not graded: {grade['why']}"
    estimated, taken, errors = grade["estimated"], grade["taken"], grade["errors"]
    return (
        f"plan: {estimated['seconds']:,.0f} s estimated, {taken['seconds']:,.0f} s taken ({errors['seconds']:+.0%}); "
        f"{estimated['memory_bytes'] / 2**20:,.0f} MiB estimated, {taken['memory_bytes'] / 2**20:,.0f} MiB taken "
        f"({errors['memory_bytes']:+.0%})"
    )
