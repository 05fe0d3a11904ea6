"""From a user's data to sequences: which task, which template, which splits, and what was cut or left out.

It knows rows, tasks and tokens, and no tensors. Its one invariant: every record read is in a sequence or in a
count that is said aloud.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from finetwo.core.config import RowsConfig, TrainConfig
from finetwo.core.errors import InputError
from finetwo.data.columns import Kind, detect_columns
from finetwo.data.documents import is_document
from finetwo.data.encoding import encode_records
from finetwo.data.examples import Example, Loaded, columns_in_memory
from finetwo.data.labels import label_index
from finetwo.data.loader import InMemory, Sequences
from finetwo.data.records import Place
from finetwo.data.sealed import is_prepared, read_metadata
from finetwo.data.sequences import IGNORE, Fate, Sequence, encode_document
from finetwo.data.source import find_files, place, read_rows
from finetwo.tasks.registry import find_task
from finetwo.tasks.task import Task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

Say = Callable[[str], None]
_WINDOW = 4096
"""Records looked at at a time."""
_USUAL: dict[Kind, str] = {"instruct": "instruct", "text": "style", "classify": "classify", "entail": "entail"}
"""The task that data of a kind stands for where none is asked."""


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
    where_of: Callable[[int], str] = "chunk {}".format
    """Names the record behind a training sequence's number."""
    whole: Sequences | None = None
    """The training set as it is measured: a stream without the random offsets of training."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the targets; empty for language."""
    class_counts: dict[str, int] = field(default_factory=dict)
    """Training records of each class."""
    places: list[Place] = field(default_factory=list)
    """Where the records of all splits came from, in order; empty for a stream and for a cache."""

    def splits(self) -> dict[str, Sequences]:
        """The sets that are there, by name, each token in them once."""
        named = {"train": self.whole or self.train, "validation": self.validation, "test": self.test}
        return {name: data for name, data in named.items() if data is not None}


def detect_task(config: TrainConfig, data: object) -> Task:
    """Return the asked task, or the one that the columns of the data stand for."""
    if config.task != "auto":
        return find_task(config.task)
    columns = config.rows.columns
    if isinstance(data, str | Path) and is_prepared(data):
        return find_task(str(read_metadata(Path(data))["task"]))
    if not isinstance(data, str | Path):
        return find_task(_USUAL[columns_in_memory(data, config.rows).kind])
    files = [p for group in find_files(Path(data)).values() for p in group]
    if is_document(files[0], config.rows):  # not read whole only to see that it is text
        return find_task(_USUAL[detect_columns(["text"], columns, f"{files[0]}:1: record 1").kind])
    first = next(iter(read_rows(files[0], replace(config.rows, limit=1, split=None))))
    return find_task(_USUAL[detect_columns(list(first.fields), columns, first.where).kind])


def prepare_records(
    loaded: Loaded,
    task: Task,
    template: Template | None,
    tokenizer: Tokenizer,
    config: TrainConfig,
    max_length: int,
    say: Say,
) -> Prepared:
    """Turn examples into sequences in memory, counting what was cut and what did not fit."""
    if not loaded.splits["train"]:
        raise InputError("--rows.split", "leaves no record for train", config.rows.split, "give train a share")
    counts: Counter[str] = Counter()
    sets: dict[str, list[Sequence]] = {}
    places: list[Place] = []
    writer = _Writer(task, template, tokenizer, max_length, loaded.labels)
    for name, examples in loaded.splits.items():
        kept: list[Sequence] = []
        for example, (sequence, fate) in zip(examples, writer.write(examples), strict=True):
            if fate != "kept":
                sequence = _too_long(example, config.rows, sequence, fate, max_length, counts)
            if sequence is not None:
                kept.append(sequence)
                places.append((example.file, example.line, example.number))
        sets[name] = kept
        counts[name] = len(kept)
    _say_long(counts, max_length, task, say)
    if not sets["train"]:
        raise InputError(
            loaded.origin,
            f"no record is left to train on: {counts['too_long']} were too long for max_length {max_length}",
            None,
            "raise --max_length or shorten the prompts",
        )
    classes = Counter(loaded.labels[int(s.targets[-1])] for s in sets["train"]) if loaded.labels else Counter()
    _say_train(sets["train"], tokenizer, loaded.labels, classes, say)
    return Prepared(
        task,
        template,
        InMemory(sets["train"]),
        InMemory(sets["validation"]) if sets["validation"] else None,
        InMemory(sets["test"]) if sets["test"] else None,
        loaded.digest,
        loaded.counts | dict(counts),
        lambda index: place(*places[index]),
        labels=loaded.labels,
        class_counts=dict(classes),
        places=places,
    )


@dataclass(frozen=True)
class _Writer:
    """Writes records as a task does, many at a time so that the tokenizer can use every core."""

    task: Task
    template: Template | None
    tokenizer: Tokenizer
    max_length: int
    labels: tuple[str, ...]

    def write(self, examples: list[Example]) -> Iterator[tuple[Sequence | None, Fate]]:
        """Yield for each record its sequence, or None where nothing that is learned fits."""
        if self.task.head == "language":
            records = (self.task.write(example.fields, self.template) for example in examples)
            yield from encode_records(self.tokenizer, records, self.max_length)
            return
        for start in range(0, len(examples), _WINDOW):
            window = examples[start : start + _WINDOW]
            segments = [self.task.write(example.fields, self.template) for example in window]
            known = self.tokenizer.ahead({segment.text for record in segments for segment in record})
            for example, record in zip(window, segments, strict=True):
                target = label_index(example.fields["label"], self.labels, example.where)
                yield encode_document(known, record, self.max_length, target, example.where)


def _say_train(
    train: list[Sequence], tokenizer: Tokenizer, labels: tuple[str, ...], classes: Mapping[str, int], say: Say
) -> None:
    """Say what the training set holds, and what of it is learned."""
    total = sum(map(len, train))
    if labels:
        shares = ", ".join(f"{name} {classes[name]:,}" for name in labels[:12]) + (" ..." if len(labels) > 12 else "")
        say(f"train: {len(train):,} records, {total:,} tokens, {len(labels)} classes: {shares}")
        return
    learned = ends = 0
    for start in range(0, len(train), _WINDOW):
        window = train[start : start + _WINDOW]
        targets = np.concatenate([s.targets for s in window])
        numbers = np.repeat(np.arange(len(window)), [len(s) for s in window])
        learned += int((targets != IGNORE).sum())
        ends += len(np.unique(numbers[targets == tokenizer.eot]))
    say(
        f"train: {len(train):,} records, {total:,} tokens, {learned:,} carry loss ({learned / total:.0%}); "
        f"end-of-text is learned in {ends:,}"
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


def _say_long(counts: Counter[str], max_length: int, task: Task, say: Say) -> None:
    if counts["truncated"]:
        lost = "; their answers have no end to learn" if task.head == "language" else ""
        say(
            f"warning: {counts['truncated']:,} records were cut at {max_length} tokens{lost} "
            "(--rows.on_long skip leaves them out)"
        )
    if counts["too_long"]:
        say(f"warning: {counts['too_long']:,} records were left out: longer than {max_length} tokens")
