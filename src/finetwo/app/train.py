"""`finetwo train`: one job from the command line, with a live progress line."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.allocator import keep_large_blocks
from finetwo.core.config import TrainConfig
from finetwo.core.errors import InputError

_USAGE = "finetwo train DATA [--model NAME] [--lora.rank 8] [--config FILE] [--option VALUE ...]"
_ABOUT = """Tune a model on your data: instructions (prompts and answers, or conversations), classes (a text or a pair
of texts with a label), or plain text. Everything not given is detected and said aloud. The same command again goes on
with a run that was stopped.

examples:
  finetwo train notes.txt
  finetwo train data.jsonl --model gpt2 --lora.rank 8 --epochs 3
  finetwo train data.csv --rows.columns.prompt question --rows.columns.completion answer
  finetwo train reviews.csv --task classify --rows.columns.text review --rows.columns.label stars
  finetwo train pairs.tsv --task entail
  finetwo train novels/ --task pretrain --size 4,256,4 --tokenizer my-vocabulary

finetwo plan, with the same words, looks before: data, loss, time and memory.
"""
C = TypeVar("C", bound=TrainConfig)


@dataclass
class TrainArguments(TrainConfig):
    """Options of `finetwo train`: those of the job, and its plan."""

    plan: str | None = None
    """A plan of this job (finetwo plan ... --report FILE.json): the end of the run grades its estimates."""


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(TrainArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, config = asked[0], job_of(asked[0])
    if config.data is None:
        raise InputError("train", "no data given", None, "finetwo train DATA")
    check_early(config)
    if config.quantize == "none":  # else memory matters more, and `train` lets blocks go
        keep_large_blocks()  # before torch is there: what is allocated earlier stays as it is
    from finetwo.app.console import Console, say
    from finetwo.train.job import train

    plan = _plan(arguments.plan, config) if arguments.plan is not None else None
    console = Console(sys.stderr)

    def look(*read: Any) -> None:
        from finetwo.insight.doctor import cheap_findings

        for line in cheap_findings(*read):
            say(line)

    report = train(config, say=say, listeners=[console], look=look)
    from finetwo.insight.explain import explained  # after the run: the first step need not wait for it

    graded = [] if plan is None else [_graded(plan, report.folder)]
    for line in [*report.lines(), *graded, *explained(report.folder)]:
        say(line)
    shown = report.folder
    say(f"model: {shown} (best/ and final/ inside)" if report.best and report.best["step"] else f"model: {shown}/final")
    verb = "predict" if report.model.network.config.labels else "generate"
    say(f'next: finetwo {verb} {shown} "..."')
    say(f"      finetwo evaluate {shown} DATA")
    say(f"      finetwo export {shown} --out FOLDER")
    return 0


def job_of(arguments: TrainConfig) -> TrainConfig:
    """The job's own part of the options of a verb."""
    return TrainConfig(**{f.name: getattr(arguments, f.name) for f in fields(TrainConfig)})


def with_data(arguments: C, words: Words, verb: str, usage: str) -> C:
    """The options with the data that was named without an option, checked."""
    from finetwo.data.split import parse_split

    words.expect(verb, 0, 1 if arguments.data is None else 0, "one data file or folder is needed", usage)
    if words.positional:
        arguments = replace(arguments, data=words.positional[0])
    arguments.check()
    if arguments.rows.split is not None:
        parse_split(arguments.rows.split)
    return arguments


def _settle(arguments: TrainArguments, words: Words) -> TrainArguments:
    return with_data(arguments, words, "train", "finetwo train DATA")


def _plan(name: str, config: TrainConfig) -> Mapping[str, Any]:
    from finetwo.insight.grade import check_same, read_plan

    plan = read_plan(Path(name))
    check_same(plan, config, name)
    return plan


def _graded(plan: Mapping[str, Any], folder: Path) -> str:
    """Grade the plan by the run's receipt, and keep the grade in the run folder."""
    from finetwo.core.files import write_json
    from finetwo.insight.grade import grade, graded
    from finetwo.train.recorded import read_receipt

    found = grade(plan, read_receipt(folder))
    write_json(folder / "plan.json", found)
    return graded(found)


def check_early(config: TrainConfig) -> None:
    """Refuse listeners and prompts that are not there before model and data are read, which may take minutes."""
    from finetwo.generate.prompts import read_prompts
    from finetwo.train.listeners import make_listener

    elsewhere = {e.name for e in entry_points(group="finetwo.listeners")}
    for name in config.track:
        if name not in elsewhere:  # those may do something when made; ours do not
            make_listener(name, Path())
    if config.sample_prompts is not None:
        read_prompts(Path(config.sample_prompts))
