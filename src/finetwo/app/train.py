"""`finetwo train`: one job from the command line, with a live progress line."""

from __future__ import annotations

import sys
from dataclasses import replace
from importlib.metadata import entry_points
from pathlib import Path

from finetwo.app import front
from finetwo.app.arguments import Words
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
"""


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(TrainConfig, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    config, _ = asked
    if config.data is None:
        raise InputError("train", "no data given", None, "finetwo train DATA")
    _check_early(config)
    from finetwo.app.console import Console, say
    from finetwo.insight.explain import explained
    from finetwo.train.job import train

    console = Console(sys.stderr)
    report = train(config, say=say, listeners=[console])
    for line in [*report.lines(), *explained(report.folder)]:
        say(line)
    shown = report.folder
    say(f"model: {shown} (best/ and final/ inside)" if report.best and report.best["step"] else f"model: {shown}/final")
    verb = "predict" if report.model.network.config.labels else "generate"
    say(f'next: finetwo {verb} {shown} "..."')
    say(f"      finetwo evaluate {shown} DATA")
    say(f"      finetwo export {shown} --out FOLDER")
    return 0


def _settle(config: TrainConfig, words: Words) -> TrainConfig:
    """The configuration with the data that was named without an option, checked."""
    from finetwo.data.split import parse_split

    words.expect("train", 0, 1 if config.data is None else 0, "one data file or folder is needed", "finetwo train DATA")
    if words.positional:
        config = replace(config, data=words.positional[0])
    config.check()
    if config.rows.split is not None:
        parse_split(config.rows.split)
    return config


def _check_early(config: TrainConfig) -> None:
    """Refuse listeners and prompts that are not there before model and data are read, which may take minutes."""
    from finetwo.generate.prompts import read_prompts
    from finetwo.train.listeners import make_listener

    elsewhere = {e.name for e in entry_points(group="finetwo.listeners")}
    for name in config.track:
        if name not in elsewhere:  # those may do something when made; ours do not
            make_listener(name, Path())
    if config.sample_prompts is not None:
        read_prompts(Path(config.sample_prompts))
