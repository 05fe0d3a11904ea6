"""A model's figures on a data file: the evaluation of training, asked for by itself.

It knows models and rows and no run folder. Its one invariant: on the same records it gives the figures that the
training run gave.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetwo.core.config import RowsConfig, SamplingConfig, TrainConfig
from finetwo.core.errors import InputError
from finetwo.data.examples import Example, load_splits
from finetwo.data.loader import Sequences
from finetwo.data.sequences import Sequence
from finetwo.generate.pipeline import Model
from finetwo.tasks.registry import find_task
from finetwo.train.corpora import prepare_stream
from finetwo.train.evaluate import byte_lengths, evaluate
from finetwo.train.prepare import detect_task, prepare_records
from finetwo.train.templates import make_template


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure on."""

    part: str = "all"
    rows: RowsConfig = field(default_factory=RowsConfig)
    template: str | None = None
    max_length: int | None = None
    batch_size: int = 8
    answer_tokens: int = 0
    """Answer each prompt with at most this many tokens and count exact matches; 0: do not."""
    seed: int = 0


def measure(model: Model, data: Path, options: MeasureOptions, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the figures of `model` on `data`, with the protocol they were taken by.

    Raises InputError for data that cannot be read or has no record in the asked part.
    """
    limit = model.network.config.n_positions
    length = options.max_length or limit
    if not 2 <= length <= limit:
        raise InputError("--max_length", f"must be from 2 to the model's context of {limit}", length)
    whole = options.part == "all"
    rows = replace(options.rows, split="train:1.0") if whole and options.rows.split is None else options.rows
    config = TrainConfig(data=str(data), rows=rows, template=options.template, max_length=length, seed=options.seed)
    task = detect_task(config, data)
    examples: list[Example] = []
    if task.layout == "stream":
        with tempfile.TemporaryDirectory(prefix="finetwo-") as folder:
            prepared = prepare_stream(data, find_task("style"), model.tokenizer, config, length, Path(folder), say)
            figures = _losses(model, _chosen(prepared.splits(), options.part), options)
    else:
        loaded = load_splits(data, rows, options.seed, say)
        known = sorted({k for e in loaded.splits["train"][:1] for k in e.fields if k != "completion"})
        template = make_template(task, options.template, model.template, loaded.columns, known)
        assert template is not None
        prepared = prepare_records(loaded, task, template, model.tokenizer, config, length, say)
        figures = _losses(model, _chosen(prepared.splits(), options.part), options)
        parts = loaded.splits if whole else {options.part: loaded.splits[options.part]}
        examples = [example for part in parts.values() for example in part]
        if options.answer_tokens:
            figures |= _exact_match(replace(model, template=template), examples, options.answer_tokens)
    unit = "chunks" if task.layout == "stream" else "records"
    figures["protocol"] = (
        f"{unit} of at most {length} tokens, part {options.part}, sum of losses / sum of tokens, float32"
    )
    return figures


class _Joined:
    """Several sets one after the other."""

    def __init__(self, sets: list[Sequences]) -> None:
        self._places = [(data, i) for data in sets for i in range(len(data))]

    def __len__(self) -> int:
        return len(self._places)

    def get(self, index: int, epoch: int) -> Sequence:
        data, place = self._places[index]
        return data.get(place, epoch)


def _chosen(splits: dict[str, Sequences], part: str) -> Sequences:
    """The asked part, or all of them; InputError when there is nothing in it."""
    found = _Joined([data for name, data in splits.items() if part in ("all", name)])
    if not len(found):
        raise InputError("--part", "this part of the data has no record", part, "give --rows.split, or --part all")
    return found


def _losses(model: Model, data: Sequences, options: MeasureOptions) -> dict[str, Any]:
    found = evaluate(model.network, data, options.batch_size, byte_lengths=byte_lengths(model.tokenizer))
    assert found is not None
    return {**found.to_dict(), "perplexity": found.perplexity}


def _exact_match(model: Model, examples: list[Example], answer_tokens: int) -> dict[str, Any]:
    """Share of greedy answers equal to the reference, blanks at the ends ignored, and share that ended by itself."""
    answers = model.answers([e.fields for e in examples], SamplingConfig(max_new_tokens=answer_tokens))
    right = sum(a.texts[0].strip() == e.fields["completion"].strip() for a, e in zip(answers, examples, strict=True))
    ended = sum(a.finish_reasons[0] == "stop" for a in answers)
    count = max(1, len(examples))
    return {"exact_match": right / count, "stop_rate": ended / count}
