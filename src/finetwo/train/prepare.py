"""From a user's data to sequences: which task, which template, which splits, and what was cut or left out.

It knows rows, tasks and tokens, and no tensors. Its one invariant: every record read is in a sequence or in a
count that is said aloud.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from finetwo.core.config import RowsConfig, TrainConfig
from finetwo.core.errors import InputError
from finetwo.data.columns import detect_columns
from finetwo.data.examples import Example, Loaded, load_rows
from finetwo.data.loader import InMemory, Sequences
from finetwo.data.sequences import Sequence, encode_segments
from finetwo.data.source import find_files, read_rows
from finetwo.tasks.registry import find_task
from finetwo.tasks.task import Task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

Say = Callable[[str], None]


@dataclass
class Prepared:
    """Data ready for the loop."""

    task: Task
    template: Template | None
    train: Sequences
    validation: Sequences | None
    test: Sequences | None
    digest: str
    counts: dict[str, int] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    """Where each training sequence came from; empty for a stream."""
    whole: Sequences | None = None
    """The training set as it is measured: a stream without the random offsets of training."""

    def splits(self) -> dict[str, Sequences]:
        """The sets that are there, by name, each token in them once."""
        named = {"train": self.whole or self.train, "validation": self.validation, "test": self.test}
        return {name: data for name, data in named.items() if data is not None}

    def where_of(self, index: int) -> str:
        """Name the record behind training sequence `index`."""
        return self.places[index] if self.places else f"chunk {index}"


def detect_task(config: TrainConfig, data: object) -> Task:
    """Return the asked task, or the one that the columns of the data stand for."""
    if config.task != "auto":
        return find_task(config.task)
    columns = config.rows.columns
    if columns.text is not None:
        return find_task("style")
    if not isinstance(data, str | Path):
        return find_task("instruct" if columns.prompt else _kind_of_rows(data))
    files = [p for group in find_files(Path(data)).values() for p in group]
    first = next(
        iter(
            read_rows(
                files[0],
                RowsConfig(
                    format=config.rows.format, delimiter=config.rows.delimiter, encoding=config.rows.encoding, limit=1
                ),
            )
        )
    )
    return find_task("style" if detect_columns(list(first.fields), columns, first.where).kind == "text" else "instruct")


def _kind_of_rows(data: object) -> str:
    quiet = load_rows(data, RowsConfig(limit=1), 0, lambda _: None)
    return "style" if quiet.columns.kind == "text" else "instruct"


def prepare_records(
    loaded: Loaded, task: Task, template: Template, tokenizer: Tokenizer, config: TrainConfig, max_length: int, say: Say
) -> Prepared:
    """Turn examples into sequences in memory, counting what was cut and what did not fit."""
    if not loaded.splits["train"]:
        raise InputError("--rows.split", "leaves no record for train", config.rows.split, "give train a share")
    counts: Counter[str] = Counter()
    sets: dict[str, list[Sequence]] = {}
    places: list[str] = []
    for name, examples in loaded.splits.items():
        kept: list[Sequence] = []
        for example in examples:
            sequence, fate = encode_segments(tokenizer, task.write(example.fields, template), max_length)
            if fate != "kept":
                sequence = _too_long(example, config.rows, sequence, fate, max_length, counts)
            if sequence is not None:
                kept.append(sequence)
                if name == "train":
                    places.append(example.where)
        sets[name] = kept
        counts[name] = len(kept)
    _say_long(counts, max_length, say)
    if not sets["train"]:
        raise InputError(
            loaded.origin,
            f"no record is left to train on: {counts['too_long']} were too long for max_length {max_length}",
            None,
            "raise --max_length or shorten the prompts",
        )
    learned = sum(s.learned for s in sets["train"])
    total = sum(len(s) for s in sets["train"])
    ends = sum(int(s.targets[-1] == tokenizer.eot) for s in sets["train"])
    say(
        f"train: {len(sets['train']):,} records, {total:,} tokens, {learned:,} carry loss ({learned / total:.0%}); "
        f"end-of-text is learned in {ends:,}"
    )
    return Prepared(
        task,
        template,
        InMemory(sets["train"]),
        InMemory(sets["validation"]) if sets["validation"] else None,
        InMemory(sets["test"]) if sets["test"] else None,
        loaded.digest,
        loaded.counts | dict(counts),
        places,
    )


def _too_long(
    example: Example, rows: RowsConfig, sequence: Sequence | None, fate: str, max_length: int, counts: Counter[str]
) -> Sequence | None:
    """Apply --rows.on_long to a sequence that did not fit whole."""
    if rows.on_long == "error":
        raise InputError(
            example.where,
            f"longer than max_length {max_length}",
            None,
            "raise --max_length, shorten the record, or --rows.on_long truncate",
        )
    if fate == "too long" or rows.on_long == "skip":
        counts["too_long"] += 1
        return None
    counts["truncated"] += 1
    return sequence


def _say_long(counts: Counter[str], max_length: int, say: Say) -> None:
    if counts["truncated"]:
        say(
            f"warning: {counts['truncated']:,} records were cut at {max_length} tokens; their answers have no end to "
            "learn (--rows.on_long skip leaves them out)"
        )
    if counts["too_long"]:
        say(f"warning: {counts['too_long']:,} records were left out: longer than {max_length} tokens")
