"""A model's figures on a data file: the evaluation of training, asked for by itself.

It knows models and rows and no run folder. Its one invariant: on the same records it gives the figures that the
training run gave.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetwo.core.config import RowsConfig, SamplingConfig, TrainConfig
from finetwo.core.errors import InputError
from finetwo.data.cache import Chunks
from finetwo.data.examples import Loaded, load_splits
from finetwo.data.loader import Sequences
from finetwo.data.sequences import Sequence
from finetwo.generate.pipeline import Model
from finetwo.insight.answers import Answering, AnswerOptions
from finetwo.insight.classes import Told, add_class_figures, add_comparison, check_comparable
from finetwo.insight.figures import Figures
from finetwo.insight.stride import Tokens, documents_of, exp, strided
from finetwo.insight.wikitext import read_joined
from finetwo.tasks.registry import find_task
from finetwo.tasks.task import Task
from finetwo.train.corpora import prepare_stream
from finetwo.train.evaluate import byte_lengths, class_logits, evaluate
from finetwo.train.prepare import detect_task, prepare_records
from finetwo.train.templates import make_template

Say = Callable[[str], None]


@dataclass(frozen=True)
class MeasureOptions:
    """What to measure, and on what."""

    part: str = "all"
    rows: RowsConfig = field(default_factory=RowsConfig)
    template: str | None = None
    max_length: int | None = None
    batch_size: int = 8
    answer_tokens: int = 0
    """Answer each prompt with at most this many tokens and score the answers as `answers` says; 0: do not."""
    seed: int = 0
    """Of a split by fractions, of sampling and of the intervals."""
    answers: AnswerOptions = field(default_factory=AnswerOptions)
    stride: int | None = None
    """Plain text: score by a window that moves on by this many tokens; None: in chunks side by side, as in training."""
    against: Model | None = None
    """Another classifier to compare with on the same records."""
    wikitext: bool = False
    """Plain text: join the lines as Hugging Face's recipe for WikiText does."""


@dataclass(frozen=True)
class _Asked:
    """A model, what it is measured on, and the settings that data is prepared by."""

    model: Model
    data: Path
    options: MeasureOptions
    config: TrainConfig
    length: int
    say: Say

    @property
    def precision(self) -> str:
        return str(self.model.network.head_weight.dtype).removeprefix("torch.")


def measure(model: Model, data: Path, options: MeasureOptions, say: Say) -> dict[str, Any]:
    """Return the figures of `model` on `data`, with the protocols they were taken by and their intervals.

    Raises InputError for data that cannot be read, has no record in the asked part or is of another kind than an
    option needs, and what `Answering` raises.
    """
    limit = model.network.config.n_positions
    length = options.max_length or limit
    if not 2 <= length <= limit:
        raise InputError("--max_length", f"must be from 2 to the model's context of {limit}", length, "leave it out")
    rows = replace(options.rows, format="txt") if options.wikitext and options.rows.format == "auto" else options.rows
    rows = replace(rows, split="train:1.0") if options.part == "all" and rows.split is None else rows
    config = TrainConfig(data=str(data), rows=rows, template=options.template, max_length=length, seed=options.seed)
    asked = _Asked(model, data, options, config, length, say)
    if model.network.config.labels:
        return _measure_classes(asked)
    task = detect_task(config, data)
    if task.head == "classes":
        fix = "take a tuned classifier, or name the columns of its texts: --rows.columns.text NAME"
        raise InputError(str(data), "holds classes, and the model is a language model", model.name, fix)
    return _measure_texts(asked) if task.layout == "stream" else _measure_records(asked, task)


def _measure_records(asked: _Asked, task: Task) -> dict[str, Any]:
    """Records with a prompt: losses, and figures of the answers if asked."""
    options, model = asked.options, asked.model
    for name, given in (("--stride", options.stride), ("--wikitext", options.wikitext)):
        if given:
            raise InputError(
                name, "is for plain text, and these are records with answers", str(asked.data), "leave it out"
            )
    answering = _answering(options, asked.say)
    loaded = load_splits(asked.data, asked.config.rows, options.seed, asked.say)
    known = sorted({k for e in loaded.splits["train"][:1] for k in e.fields if k != "completion"})
    template = make_template(task, options.template, model.template, loaded.columns, known)
    assert template is not None
    prepared = prepare_records(loaded, task, template, model.tokenizer, asked.config, asked.length, asked.say)
    figures = Figures()
    protocol = _add_losses(figures, asked, _chosen(prepared.splits(), options.part), "records")
    if answering is not None:
        examples = [e for name, part in loaded.splits.items() if options.part in ("all", name) for e in part]
        figures.join(answering.measure(replace(model, template=template), examples))
    return figures.to_dict(protocol)


def _measure_classes(asked: _Asked) -> dict[str, Any]:
    """Texts or pairs with a class: how often the classifier is right, and how well it knows."""
    options, model = asked.options, asked.model
    idle = {"--stride": options.stride, "--wikitext": options.wikitext, "--exact_match": options.answer_tokens}
    for name, given in idle.items():
        if given:
            raise InputError(name, "is for language models, and this is a classifier", model.name, "leave it out")
    if options.against is not None:
        check_comparable(model, options.against)
    task = find_task(model.task or "classify")
    loaded = load_splits(asked.data, asked.config.rows, options.seed, asked.say, task.kind, model.network.config.labels)
    told = _told(asked, loaded, task, model)
    protocol = f"part {options.part}, documents of at most {_length(asked, model)} tokens, {asked.precision}"
    figures = Figures()
    tables = add_class_figures(figures, told, model, protocol, options.seed)
    if options.against is not None:
        other = _told(asked, loaded, task, options.against)
        add_comparison(figures, (told, other), (model, options.against))
    return figures.to_dict(protocol) | tables


def _length(asked: _Asked, model: Model) -> int:
    """How many tokens of a document a classifier is given."""
    limit = model.network.config.n_positions
    return min(limit, asked.options.max_length or model.max_length or limit)


def _told(asked: _Asked, loaded: Loaded, task: Task, model: Model) -> Told:
    """What one classifier says of the asked part, read by its own tokenizer and as far as it reads."""
    say = asked.say if model is asked.model else lambda _: None
    prepared = prepare_records(loaded, task, None, model.tokenizer, asked.config, _length(asked, model), say)
    data = _chosen(prepared.splits(), asked.options.part)
    found = class_logits(model.network, data, asked.options.batch_size)
    assert found is not None
    return found


def _answering(options: MeasureOptions, say: Say) -> Answering | None:
    """What to do with answers, if prompts are to be answered."""
    if not options.answer_tokens:
        return None
    how = options.answers
    sampling = SamplingConfig(options.answer_tokens, how.temperature, how.top_k, how.top_p, seed=options.seed)
    return Answering(how, sampling, options.batch_size, say)


def _measure_texts(asked: _Asked) -> dict[str, Any]:
    """Plain text: losses in chunks as training has them, or by a sliding window."""
    options, tokenizer = asked.options, asked.model.tokenizer
    if options.answer_tokens:
        fix = "leave out what needs answers, or name the columns: --rows.columns.prompt, --rows.columns.completion"
        raise InputError(str(asked.data), "plain text has no prompts to answer", None, fix)
    if options.stride is not None and not 1 <= options.stride <= asked.length:
        raise InputError(
            "--stride", f"must be from 1 to the window of {asked.length} tokens", options.stride, "256 is usual"
        )
    rows, task, figures = asked.config.rows, find_task("style"), Figures()
    data = read_joined(asked.data, rows, asked.say) if options.wikitext else asked.data
    with tempfile.TemporaryDirectory(prefix="finetwo-") as folder:
        prepared = prepare_stream(data, task, tokenizer, asked.config, asked.length, Path(folder), asked.say)
        splits = prepared.splits()
        if options.stride is None:
            protocol = _add_losses(figures, asked, _chosen(splits, options.part), "chunks")
        else:
            protocol = _add_strided(figures, asked, options.stride, _documents(splits, options.part, tokenizer.eot))
    return figures.to_dict(protocol)


class _Joined:
    """Several sets one after the other."""

    def __init__(self, sets: list[Sequences]) -> None:
        self._sets = sets

    def __len__(self) -> int:
        return sum(map(len, self._sets))

    def get(self, index: int, epoch: int) -> Sequence:
        for data in self._sets:
            if index < len(data):
                return data.get(index, epoch)
            index -= len(data)
        raise IndexError(index)


def _chosen(splits: dict[str, Sequences], part: str) -> Sequences:
    """The asked part, or all of them; InputError when there is nothing in it."""
    found = _Joined([data for name, data in splits.items() if part in ("all", name)])
    if not len(found):
        raise InputError("--part", "this part of the data has no record", part, "give --rows.split, or --part all")
    return found


def _documents(splits: dict[str, Sequences], part: str, eot: int) -> Iterator[Tokens]:
    """The documents of the asked part."""
    _chosen(splits, part)
    for name, chunks in splits.items():
        if part in ("all", name):
            assert isinstance(chunks, Chunks)
            yield from documents_of(chunks.corpus.tokens, eot)


def _add_losses(figures: Figures, asked: _Asked, data: Sequences, unit: str) -> str:
    """Add the losses that training takes; return their protocol."""
    model, part = asked.model, asked.options.part
    found = evaluate(model.network, data, asked.options.batch_size, byte_lengths=byte_lengths(model.tokenizer))
    assert found is not None
    protocol = f"{unit} of at most {asked.length} tokens, part {part}, sum of losses / sum of tokens, {asked.precision}"
    every = f"all tokens, nats a token; {protocol}"
    learned = f"answers and their ends, nats a token; {protocol}" if unit == "records" else every
    figures.add({"loss": found.loss, "perplexity": found.perplexity, "tokens": found.tokens}, learned)
    same = {"loss_all": found.loss_all, "perplexity_all": exp(found.loss_all), "tokens_all": found.tokens_all}
    figures.add(same, every)
    figures.add({"bits_per_byte": found.bits_per_byte}, f"all tokens, per UTF-8 byte of their text; {protocol}")
    figures.add({"records": found.records}, f"{unit} measured")
    return protocol


def _add_strided(figures: Figures, asked: _Asked, stride: int, documents: Iterator[Tokens]) -> str:
    """Add perplexity by a sliding window; return its protocol."""
    model, options = asked.model, asked.options
    found = strided(model.network, documents, model.tokenizer, asked.length, stride, options.batch_size)
    if not found.tokens:
        raise InputError(str(asked.data), "no token has one before it to be told from", None, "give a longer text")
    text = "lines joined as Hugging Face's WikiText recipe does" if options.wikitext else "text as it stands"
    protocol = (
        f"window {asked.length}, stride {stride}, {text}, part {options.part}, each token scored once but for "
        f"{found.unscored:,} without context, sum of losses / sum of tokens, {asked.precision}"
    )
    every = f"all tokens, nats a token; {protocol}"
    figures.add({"loss": found.loss, "perplexity": found.perplexity, "tokens": found.tokens}, every)
    figures.add({"loss_all": found.loss, "perplexity_all": found.perplexity, "tokens_all": found.tokens}, every)
    words = {"word_perplexity": found.word_perplexity, "words": found.words}
    figures.add(words, f"exp(sum of losses / words between white space); {protocol}")
    figures.add({"bits_per_byte": found.bits_per_byte}, f"per UTF-8 byte of the scored tokens' text; {protocol}")
    figures.add({"records": found.documents, "windows": found.windows}, "documents and windows measured")
    return protocol
