"""`finetwo evaluate`: what a model does on a data file, in figures that name their protocol.

It must not know how a figure is taken. Its one invariant: no figure is shown without the protocol it was taken by, and
nothing leaves the machine unless --judge names where to.
"""

from __future__ import annotations

import json
import sys
import textwrap
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

from finetwo.app import front, serving
from finetwo.app.arguments import Words
from finetwo.core.allocator import return_large_blocks
from finetwo.core.config import RowsConfig, SamplingConfig, check_seed
from finetwo.core.errors import InputError

_USAGE = "finetwo evaluate MODEL DATA [--part test] [--option VALUE ...]"
_ABOUT = """Loss of a model over a whole set: sum of losses over sum of tokens, for the answers and for all tokens, with
perplexity and bits per byte. The prompts of records are also answered if --exact_match, --metrics, --predictions or
--judge asks for it, and the answers scored; plain text may be scored by a sliding window (--stride). A classifier gets
accuracy, F1, calibration, confusion and what abstaining buys. Each figure is printed with its protocol and, where it is
a mean over records, with a 95 % interval.

examples:
  finetwo evaluate runs/data-instruct data.jsonl
  finetwo evaluate tiny novel.txt --stride 256
  finetwo evaluate runs/data-instruct test.jsonl --metrics exact_match,rouge_l,stop_rate --predictions answers.jsonl
  finetwo evaluate runs/reviews-classify test.csv --against runs/other
  finetwo evaluate gpt2 wiki.test.raw --wikitext --stride 512
  finetwo evaluate runs/data-instruct test.jsonl --check_serving
  finetwo evaluate runs/data-instruct test.jsonl --judge http://localhost:8000/v1 --judge_model NAME --json

--judge sends the prompts, references and answers of DATA to the URL you name; nothing else leaves your machine. A
key is taken from the environment variable OPENAI_API_KEY only. docs/evaluation.md says what each figure is good for.
"""


@dataclass
class EvaluateArguments:
    """Options of `finetwo evaluate`."""

    part: str = "all"
    """Which split to take: train, validation, test, or all records."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    template: str | None = None
    """Template, when the model has none of its own."""
    max_length: int | None = None
    """Longest sequence in tokens, and the window of --stride (default: the model's context)."""
    batch_size: int = 8
    """Records, windows or answers at a time; the figures do not depend on it."""
    exact_match: bool = False
    """Answer every prompt and count answers equal to the reference, and answers that ended by themselves."""
    metrics: list[str] = field(default_factory=list)
    """Answer every prompt and score the answers: exact_match, stop_rate, bleu, rouge_l, distinct, repetition."""
    predictions: str | None = None
    """Answer every prompt and write prompt, reference and answer to this new file, one JSON object a line."""
    max_new_tokens: int = 128
    """Longest answer."""
    temperature: float = 0.0
    """Of the answers: 0 is greedy; higher is more random."""
    top_k: int = 0
    """Of the answers: keep only the k most likely tokens (0: all)."""
    top_p: float = 1.0
    """Of the answers: keep the smallest set of tokens whose probability reaches p."""
    stride: int | None = None
    """Plain text: score by a window that moves on by this many tokens, each token once with more context."""
    wikitext: bool = False
    """A WikiText file: join its lines as Hugging Face's recipe does, to compare with published perplexities."""
    judge: str | None = None
    """URL of an OpenAI-compatible endpoint that scores each answer from 0 to 100. This sends your prompts, references
    and answers there; the key comes from OPENAI_API_KEY."""
    judge_model: str | None = None
    """Name of the judging model, as its endpoint knows it."""
    judge_timeout: float = 60.0
    """Seconds to wait for one score."""
    judge_parallel: int = 4
    """Answers being judged at a time."""
    check_serving: bool = False
    """In place of figures: are prompts asked as training wrote them, and answered alike by the Python API and the
    command line? A difference ends with exit code 1. --template names training's where no run recorded it."""
    against: str | None = None
    """Classifiers: another model or run, compared on the same records by McNemar's test."""
    base: str | None = None
    """Where the base of an adapter is."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    quantize: Literal["int8", "int4"] | None = None
    """Keep the weights in int8 or int4: smaller and faster on a CPU, a little less exact; an adapter is merged."""
    seed: int = 0
    """Seed of a split by fractions, of sampled answers and of the intervals."""
    json: bool = False
    """Write the figures as one JSON object."""

    @property
    def answering(self) -> bool:
        """Whether prompts are to be answered."""
        return self.exact_match or bool(self.metrics) or self.predictions is not None or self.judge is not None

    @property
    def wanted(self) -> tuple[str, ...]:
        """The metrics to take: those asked for, and where there are none how many answers ended."""
        both = ["exact_match", "stop_rate"] if self.exact_match else []
        return tuple(dict.fromkeys([*both, *self.metrics])) or ("stop_rate",)


def _settle(arguments: EvaluateArguments, words: Words) -> EvaluateArguments:
    """Check everything that needs neither model nor data."""
    from finetwo.data.split import parse_split

    words.expect("evaluate", 2, 2, "a model and a data file are needed", _USAGE)
    if arguments.part not in ("all", "train", "validation", "test"):
        raise InputError("--part", "must be train, validation, test or all", arguments.part, "give one of them")
    lows = {"batch_size": 1, "max_new_tokens": 1, "max_length": 2, "stride": 1, "judge_parallel": 1}
    for name, low in lows.items():
        value = getattr(arguments, name)
        if value is not None and value < low:
            raise InputError(f"--{name}", f"must be an integer >= {low}", value, f"give {low} or more")
    check_seed("--seed", arguments.seed)
    arguments.rows.check()
    if arguments.rows.split is not None:
        parse_split(arguments.rows.split)
    _check_answers(arguments)
    if arguments.wikitext and arguments.stride is None:
        raise InputError(
            "--wikitext", "is for a sliding window", None, "add --stride 512, or the stride to compare with"
        )
    return arguments


def _check_answers(arguments: EvaluateArguments) -> None:
    """Check what concerns answers and their judge."""
    if arguments.check_serving:
        idle = ("exact_match", "metrics", "predictions", "judge", "stride", "wikitext", "against", "max_length")
        given = next((name for name in idle if getattr(arguments, name)), None)
        if given is not None:
            what = "has no place beside --check_serving, which takes no figures"
            raise InputError(f"--{given}", what, getattr(arguments, given), "ask for one of them")
    SamplingConfig(temperature=arguments.temperature, top_k=arguments.top_k, top_p=arguments.top_p).check()
    for name in ("temperature", "top_k", "top_p"):
        if not arguments.answering and getattr(arguments, name) != getattr(EvaluateArguments, name):
            fix = "add --metrics, --exact_match, --predictions or --judge"
            raise InputError(f"--{name}", "is for answers, and none are asked for", getattr(arguments, name), fix)
    if arguments.metrics:
        from finetwo.insight.scores import check_metrics

        check_metrics(arguments.metrics)
    if arguments.predictions is not None:
        from finetwo.insight.predictions import check_new

        check_new(Path(arguments.predictions))
    if not 0 < arguments.judge_timeout <= 86400:
        raise InputError("--judge_timeout", "must be > 0 and <= 86400", arguments.judge_timeout, "give seconds")
    if arguments.judge is None and arguments.judge_model is not None:
        raise InputError("--judge_model", "needs --judge", arguments.judge_model, "add --judge URL")
    if arguments.judge is not None:
        from finetwo.insight.endpoint import check_url

        check_url(arguments.judge)
        if not arguments.judge_model:
            raise InputError("--judge", "needs the name of the judging model", None, "add --judge_model NAME")


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(EvaluateArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name, data) = asked
    if arguments.check_serving:
        return _check_serving(name, data, arguments)
    return_large_blocks()  # it shall not need more memory than the training did
    from finetwo.app.api import load
    from finetwo.app.console import say
    from finetwo.insight.measure import measure
    from finetwo.store.hub_data import data_path

    options = _options(arguments)
    model = load(name, base=arguments.base, device=arguments.device, quantize=arguments.quantize)
    if arguments.against is not None:
        options = replace(options, against=load(arguments.against, device=arguments.device))
    figures = measure(model, data_path(data, say), options, say)
    if arguments.json:
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        from finetwo.insight.classes import class_tables

        sys.stdout.write(shown(figures) + class_tables(figures))
    return 0


def _check_serving(name: str, data: str, arguments: EvaluateArguments) -> int:
    """Hold how the model is asked against how it was trained; return the exit code."""
    from finetwo.insight.serving import ServingOptions

    chosen = (arguments.part, arguments.rows, arguments.template, arguments.max_new_tokens, arguments.seed)
    options = ServingOptions(*chosen)
    return serving.run(name, data, options, arguments.base, arguments.device, as_json=arguments.json)


def _options(arguments: EvaluateArguments) -> Any:
    """The options of the measuring, from those of the command line."""
    from finetwo.insight.answers import AnswerOptions
    from finetwo.insight.judge import JudgeOptions
    from finetwo.insight.measure import MeasureOptions

    judge = None
    if arguments.judge is not None and arguments.judge_model is not None:
        judge = JudgeOptions(arguments.judge, arguments.judge_model, arguments.judge_timeout, arguments.judge_parallel)
    answers = AnswerOptions(
        metrics=arguments.wanted,
        temperature=arguments.temperature,
        top_p=arguments.top_p,
        top_k=arguments.top_k,
        predictions=Path(arguments.predictions) if arguments.predictions is not None else None,
        judge=judge,
    )
    return MeasureOptions(
        part=arguments.part,
        rows=arguments.rows,
        template=arguments.template,
        max_length=arguments.max_length,
        batch_size=arguments.batch_size,
        answer_tokens=arguments.max_new_tokens if arguments.answering else 0,
        seed=arguments.seed,
        answers=answers,
        stride=arguments.stride,
        wikitext=arguments.wikitext,
    )


def shown(figures: dict[str, Any]) -> str:
    """The figures as text: name, value and interval, and their protocol below those that share it."""
    width = front.line_width()
    lines: list[str] = []
    for protocol, names in groupby(figures["protocols"], figures["protocols"].__getitem__):
        for name in names:
            interval = figures["intervals"].get(name)
            tail = f"  [{interval[0]:,.4f}, {interval[1]:,.4f}]" if interval else ""
            lines.append(f"{name:<16} {_number(figures[name]):>12}{tail}")
        lines += textwrap.wrap(protocol, width, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    if value is None:
        return "none"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"
