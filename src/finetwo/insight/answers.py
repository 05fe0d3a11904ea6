"""A model's answers to the prompts of records: generated in groups, scored and written down as they come.

It knows models and records and no task layouts. Its one invariant: no more than one group of answers is in memory; what
is kept of the others is on disk.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from finetwo.core.config import SamplingConfig
from finetwo.core.files import replacing
from finetwo.data.examples import Example
from finetwo.generate.engine import Engine, Request
from finetwo.generate.pipeline import Model
from finetwo.insight.figures import Figures
from finetwo.insight.judge import Judge, JudgeOptions
from finetwo.insight.metric import Answered, Metric
from finetwo.insight.predictions import check_new, read_predictions, write_judged, written
from finetwo.insight.scores import make_metrics
from finetwo.text.template import turns_from_json

Say = Callable[[str], None]
_GROUP = 64
_SAY_EVERY = 30.0
"""Seconds between lines of progress."""


@dataclass(frozen=True)
class AnswerOptions:
    """How prompts are answered, and what is taken of the answers."""

    metrics: tuple[str, ...] = ("exact_match", "stop_rate")
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    predictions: Path | None = None
    """File for every prompt, reference and answer, one JSON object a line; it must not exist yet."""
    judge: JudgeOptions | None = None


class Answering:
    """What is to be done with answers: set up before anything slow begins, then run once."""

    def __init__(self, options: AnswerOptions, sampling: SamplingConfig, slots: int, say: Say) -> None:
        """Answers are computed `slots` side by side.

        Raises:
            InputError: a metric's package is missing, the predictions file exists, or the judge refuses.
            EnvironmentFault: the judge cannot be reached.
        """
        self._sampling, self._slots, self._say = sampling, slots, say
        self._path = options.predictions
        if self._path is not None:
            check_new(self._path)
        self._metrics = make_metrics(options.metrics, sampling.seed)
        self._judge = _judge(options.judge, sampling.seed, say)

    def measure(self, model: Model, examples: Sequence[Example]) -> Figures:
        """Answer the prompt of each example and return the figures of the answers.

        Raises:
            InputError: a prompt that the model's template cannot use, or the judge refuses.
            EnvironmentFault: the predictions cannot be written, or the judge cannot be reached.
        """
        condition, figures = _condition(model, self._sampling), Figures()
        with ExitStack() as stack:
            path = self._path
            if path is None and self._judge is not None:
                path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="finetwo-"))) / "answers.jsonl"
            answers = _answers(model, examples, self._sampling, self._slots, self._say)
            if path is None:
                _score(answers, self._metrics)
            else:
                with replacing(path) as file:
                    _score(written(answers, file), self._metrics)
            for metric in self._metrics:
                figures.add_result(metric, condition)
            if self._judge is not None and path is not None:
                _let_judge(self._judge, path, len(examples), self._say)
                figures.add_result(self._judge, condition)
        return figures


def _condition(model: Model, sampling: SamplingConfig) -> str:
    """How answers are made, in words."""
    way = "greedy"
    if sampling.temperature:
        way = f"sampled (temperature {sampling.temperature:g}, top_p {sampling.top_p:g}, top_k {sampling.top_k}, "
        way += f"seed {sampling.seed})"
    template = model.template.name if model.template else "none"
    return f"answers {way}, at most {sampling.max_new_tokens} new tokens, template {template}"


def _answers(
    model: Model, examples: Sequence[Example], sampling: SamplingConfig, slots: int, say: Say
) -> Iterator[Answered]:
    engine = Engine(model.network, model.tokenizer, max_slots=slots)
    shortened, heard = 0, time.monotonic()
    for start in range(0, len(examples), _GROUP):
        group = examples[start : start + _GROUP]
        asked = [_ask(model, example.fields, sampling.max_new_tokens) for example in group]
        completions = engine.complete([Request(one.ids, sampling) for one in asked])
        for one, (done,) in zip(asked, completions, strict=True):
            shortened += done.truncated_prompt or one.shortened
            yield Answered(one.prompt, one.input, one.reference, done.text, done.finish_reason)
        if time.monotonic() - heard > _SAY_EVERY:
            heard = time.monotonic()
            say(f"answered {start + len(group):,} of {len(examples):,}")
    if shortened:
        say(f"warning: {shortened:,} prompts were longer than the context and lost their beginning")


@dataclass(frozen=True)
class _Prompt:
    """What a record asks, for the model and for a reader, and the answer it has."""

    ids: list[int]
    prompt: str
    input: str
    reference: str
    shortened: bool = False


def _ask(model: Model, fields: Mapping[str, str], room: int) -> _Prompt:
    """The prompt of a record; of a conversation all turns before the last answer, which is the reference."""
    if "messages" not in fields:
        return _Prompt(model.prompt_ids(fields), fields["prompt"], fields.get("input", ""), fields["completion"])
    turns = turns_from_json(fields["messages"])
    last = max(i for i, turn in enumerate(turns) if turn.role == "assistant")
    kept, dropped = model.fit_turns(turns[:last], room)
    text = "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns[:last])
    return _Prompt(model.prompt_ids(kept), text, "", turns[last].content, dropped > 0)


def _score(answers: Iterator[Answered], metrics: list[Metric]) -> None:
    for answered in answers:
        for metric in metrics:
            metric.add(answered)


def _judge(options: JudgeOptions | None, seed: int, say: Say) -> Judge | None:
    """The judge, tried out; None where none was asked for."""
    if options is None:
        return None
    judge = Judge(options, seed)
    if judge.endpoint.keeps_key:
        say("warning: the key in OPENAI_API_KEY is not sent: the judge is on another machine, over plain http")
    if not judge.try_out():
        say(
            f"warning: {options.model} did not reply with a score when tried out; such replies are counted, not guessed"
        )
    return judge


def _let_judge(judge: Judge, path: Path, count: int, say: Say) -> None:
    """Have the answers in the file judged, and add the score to each."""
    say(f"judge: {count:,} prompts, references and answers go to {judge.endpoint.place}")
    heard = time.monotonic()
    with replacing(path) as file:
        for number in write_judged(judge.scores(read_predictions(path)), file):
            if time.monotonic() - heard > _SAY_EVERY:
                heard = time.monotonic()
                say(f"judged {number:,} of {count:,}")
