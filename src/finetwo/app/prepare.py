"""`finetwo prepare`: data tokenised once into a folder, from which any number of runs start at once."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.config import RowsConfig, TrainConfig, check_seed
from finetwo.core.errors import InputError

if TYPE_CHECKING:
    from finetwo.text.template import Template
    from finetwo.text.tokenizer import Tokenizer

_USAGE = "finetwo prepare DATA --out FOLDER [--model NAME] [--task NAME] [--option VALUE ...]"
_ABOUT = """Read, check, split and tokenise data once. The folder holds the tokens memory-mapped, and metadata.json with
what they are: split sizes, lengths, hashes. `finetwo train FOLDER` starts from it; nothing is read or tokenised again.
(A run keeps such a cache for itself, too: preparing is for many runs, or for another machine.)

examples:
  finetwo prepare alpaca_data.json --out prepared/alpaca --model gpt2 --max_length 512
  finetwo train prepared/alpaca --model gpt2 --max_length 512
  finetwo prepare novels/ --task pretrain --tokenizer my-vocabulary --out prepared/novels
"""


@dataclass
class PrepareArguments:
    """Options of `finetwo prepare`."""

    out: str | None = None
    """Folder to write; it must be new or empty."""
    task: str = "auto"
    """instruct, classify, entail, style, pretrain; auto tells by the columns."""
    model: str = "tiny"
    """The model whose tokenizer, template and context count."""
    tokenizer: str | None = None
    """Tokenizer folder, in place of a model's (pretrain)."""
    template: str | None = None
    """alpaca, dolly, chat, plain, a text with {field} placeholders, or a file holding one."""
    max_length: int | None = None
    """Longest sequence in tokens (default: the model's context)."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    seed: int = 0
    """Seed of a split by fractions; train with the same."""


def _settle(arguments: PrepareArguments, words: Words) -> PrepareArguments:
    words.expect("prepare", 1, 1, "one data file or folder is needed", _USAGE)
    check_seed("--seed", arguments.seed)
    arguments.rows.check()
    if arguments.out is None and not words.print_config:
        raise InputError("--out", "no folder given", None, _USAGE)
    if arguments.max_length is not None and arguments.max_length < 2:
        raise InputError("--max_length", "must be >= 2", arguments.max_length, "give 2 or more")
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(PrepareArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name,) = asked
    assert arguments.out is not None
    out = Path(arguments.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("--out", "exists and is not an empty folder", str(out), "give a new folder")
    from finetwo.app.console import say
    from finetwo.store.hub_data import data_path
    from finetwo.train.prepare import detect_task
    from finetwo.train.prepared import Wanted, write_prepared

    data = data_path(name, say)
    config = TrainConfig(data=str(data), task=arguments.task, rows=arguments.rows, seed=arguments.seed)
    task = detect_task(config, data)
    say(f"task: {task.name} ({task.about})")
    tokenizer, context, template = _model(arguments, fresh=task.fresh)
    length = arguments.max_length or context
    if length > context:
        what = f"the context of {arguments.model} is {context} tokens"
        raise InputError("--max_length", what, length, f"give {context} or less")
    config = replace(config, max_length=length, template=arguments.template)
    content = write_prepared(Wanted(config, data, task, tokenizer, template), out, say)
    for split, summary in content["splits"].items():
        say(f"{split}: {', '.join(f'{k} {v:,}' for k, v in summary.items() if isinstance(v, int))}")
    say(f"prepared in {out}; next: finetwo train {out} --model {arguments.model}")
    return 0


def _model(arguments: PrepareArguments, *, fresh: bool) -> tuple[Tokenizer, int, Template | None]:
    """Tokenizer, context and template of the model, or the tokenizer of a folder for fresh weights."""
    from finetwo.store.folder import load_tokenizer, read_config, read_extras
    from finetwo.store.hub import resolve
    from finetwo.text.tokenizer import Tokenizer as Loaded

    if fresh:
        folder = Path(arguments.tokenizer) if arguments.tokenizer else resolve("tiny")
        return Loaded.load(folder), arguments.max_length or 1024, None
    if arguments.tokenizer is not None:
        fix = "leave it out: the tokenizer is the model's"
        raise InputError("--tokenizer", "only for --task pretrain", arguments.tokenizer, fix)
    folder = resolve(arguments.model)
    config = read_config(folder)
    return load_tokenizer(folder, config), config.n_positions, read_extras(folder).template
