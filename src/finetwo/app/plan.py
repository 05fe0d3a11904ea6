"""`finetwo plan`: what a training job would do, and whether its data and its loss are sound, before it starts.

It must not know how anything is found. Its one invariant: it trains nothing, and writes nothing but the report that was
asked for.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.app.train import check_early, job_of, with_data
from finetwo.core.config import TrainConfig
from finetwo.core.errors import InputError, shown

if TYPE_CHECKING:
    from finetwo.insight.plan import Plan

_USAGE = "finetwo plan DATA [--report FILE.html|FILE.json] [--json] [--strict] [any option of finetwo train]"
_ABOUT = """Look before training: what the data holds (duplicates, overlap between splits, empty answers, classes in
conflict, damage, each with file and record), where the loss lies (a certificate over every record: no padding and no
prompt in the loss, every whole answer ends in a learned end-of-text), and what the run will take (steps, time, memory,
disk).
Takes the words of `finetwo train`, trains nothing, and writes nothing but its report.

examples:
  finetwo plan data.jsonl --model gpt2 --lora.rank 8
  finetwo plan data.jsonl --report plan.html
  finetwo plan data.jsonl --report plan.json && finetwo train data.jsonl --plan plan.json
  finetwo plan reviews.csv --task classify --strict && finetwo train reviews.csv --task classify
  finetwo plan novels/ --task pretrain --size 4,256,4 --json

--strict leaves with exit code 2 on duplicates within a split, overlap between splits, empty answers, a text with two
classes, or a certificate that fails; the records are named. finetwo train looks records over by itself, but for near
duplicates, and says in a few lines what it found; with --plan it grades the plan's time and memory at its end.
"""
_COLOURS = {
    "prompt": "black on bright_cyan",
    "header": "black on bright_black",
    "answer": "black on bright_green",
    "end": "white on green",
    "class": "black on bright_yellow",
    "padding": "bright_black",
    "other": "white on red",
}
_FORMS = (".html", ".htm", ".json")
_WIDTH = 40
_LONGEST = 1500


@dataclass
class PlanArguments(TrainConfig):
    """Options of `finetwo plan`: those of training, and what to do with the plan."""

    report: str | None = None
    """Write the plan to this file: as one HTML page (.html), or as JSON (.json) for finetwo train --plan."""
    json: bool = False
    """Write the plan as one JSON object."""
    strict: bool = False
    """Exit 2 on duplicates within a split, overlap, empty answers, class conflicts or a failed certificate."""
    samples: int = 3
    """How many records to show with the part that each token plays."""


def _settle(arguments: PlanArguments, words: Words) -> PlanArguments:
    arguments = with_data(arguments, words, "plan", _USAGE)
    if not 0 <= arguments.samples <= 100:
        raise InputError("--samples", "must be an integer from 0 to 100", arguments.samples, "3 is usual")
    if arguments.report is not None:
        from finetwo.insight.page import check_report

        check_report(arguments.report, _FORMS)
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(PlanArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, config = asked[0], job_of(asked[0])
    if config.data is None:
        raise InputError("plan", "no data given", None, "finetwo plan DATA")
    check_early(config)
    from finetwo.app.console import say
    from finetwo.core.files import json_bytes, replace_file
    from finetwo.insight.plan import make_plan
    from finetwo.insight.plan_page import page
    from finetwo.store.hub_data import data_path

    plan = make_plan(config, data_path(config.data, say), say, arguments.samples)
    content = plan.to_dict()
    if arguments.json:
        sys.stdout.write(json.dumps(content) + "\n")
    else:
        _show(plan)
    if arguments.report is not None:
        path = Path(arguments.report)
        html = path.suffix.lower() != ".json"
        replace_file(path, page(content).encode("utf-8", "backslashreplace") if html else json_bytes(content))
        say(f"report: {arguments.report}")
    if arguments.strict and plan.refused:
        reasons = plan.refused
        what = f"--strict refuses it for {len(reasons)} reason{'s' if len(reasons) > 1 else ''}: " + "; ".join(reasons)
        raise InputError(plan.data, what, None, "correct the records, or leave --strict out")
    return 0


def _show(plan: Plan) -> None:
    """Write the plan for a person, the samples in colour where there is a terminal."""
    for title, lines in _sections(plan):
        sys.stdout.write(f"\n{title}\n" + "".join(f"  {line}\n" for line in lines))
    sys.stdout.write("\nsamples\n")
    if sys.stdout.isatty():
        _colours(plan)
        return
    for sample in plan.samples:
        sys.stdout.write(f"  {shown(sample.where, 300)}\n")
        for role, text in sample.stretches:
            sys.stdout.write(f"    {role:<7} {_escaped(text)}\n")


def _sections(plan: Plan) -> Iterator[tuple[str, list[str]]]:
    yield "counts", [f"{name}: {count:,}" for name, count in plan.counts.items()]
    if plan.lengths:
        yield "lengths", _bars(plan.lengths)
    for name, part in plan.labels.items():
        yield f"classes ({name})", _bars({shown(label, 40): count for label, count in part.items()})
    found = [("! " if f.strict else "- ") + f.line() for f in plan.findings] or ["nothing found"]
    yield "findings (! is refused by --strict)", [*found, *plan.notes]
    yield "loss-coverage certificate", plan.certificate.lines()
    yield "estimate", plan.estimate.lines()


def _bars(counts: dict[str, int]) -> list[str]:
    top, width = max(counts.values(), default=0) or 1, max(map(len, counts), default=0)
    return [f"{n:<{width}} {c:>11,} {'#' * -(-_WIDTH * c // top)}".rstrip() for n, c in counts.items()]


def _escaped(text: str) -> str:
    return shown(text, 400)


def _colours(plan: Plan) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(file=sys.stdout, highlight=False)
    legend = Text("  ")
    there = {role for sample in plan.samples for role, _ in sample.stretches}
    for role in (role for role in _COLOURS if role in there):
        legend.append(f" {role} ", _COLOURS[role]).append(" ")
    console.print(legend)
    for sample in plan.samples:
        console.print(Text(f"  {shown(sample.where, 300)}"))
        body, left = Text(), _LONGEST
        for role, text in sample.stretches:
            lines = "\n".join(shown(line, _LONGEST) for line in text[:left].split("\n"))
            body.append(lines, _COLOURS[role])
            left = max(0, left - len(text))
        console.print(body)
