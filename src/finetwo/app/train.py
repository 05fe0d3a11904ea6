"""`finetwo train`: one job from the command line, with a live progress line."""

from __future__ import annotations

import sys
from dataclasses import replace

from finetwo.app.arguments import cut, options_of, parse, print_config, show_help
from finetwo.core.config import TrainConfig
from finetwo.core.errors import InputError

_PROG = "finetwo train"
_USAGE = "finetwo train DATA [--model NAME] [--lora.rank 8] [--config FILE] [--option VALUE ...]"
_ABOUT = """Tune a model on your data: instructions (prompt and answer columns), or plain text. Everything not given is
detected and said aloud. The same command again goes on with a run that was stopped.

examples:
  finetwo train notes.txt
  finetwo train data.jsonl --model gpt2 --lora.rank 8 --epochs 3
  finetwo train data.csv --rows.columns.prompt question --rows.columns.completion answer
  finetwo train novels/ --task pretrain --size 4,256,4 --tokenizer my-vocabulary
"""


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    cut_words = cut(words, options_of(TrainConfig))
    if cut_words.help:
        show_help(TrainConfig, _USAGE, _ABOUT, config=True)
        return 0
    config = parse(TrainConfig, cut_words, _PROG, _ABOUT)
    if len(cut_words.positional) > 1 or (cut_words.positional and config.data is not None):
        raise InputError(
            "train", "one data file or folder is needed", " ".join(cut_words.positional), "finetwo train DATA"
        )
    if cut_words.positional:
        config = replace(config, data=cut_words.positional[0])
    config.check()
    if cut_words.print_config:
        print_config(config)
        return 0
    if config.data is None:
        raise InputError("train", "no data given", None, "finetwo train DATA")
    from finetwo.app.console import Console, say
    from finetwo.train.job import train

    console = Console(sys.stderr)
    report = train(config, say=say, listeners=[console])
    for line in report.lines():
        say(line)
    shown = report.folder
    say(f"model: {shown} (best/ and final/ inside)" if report.best and report.best["step"] else f"model: {shown}/final")
    say(
        f'next: finetwo generate {shown} "..."   |   finetwo evaluate {shown} DATA'
        f"   |   finetwo export {shown} --out FOLDER"
    )
    return 0
