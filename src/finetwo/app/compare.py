"""`finetwo compare`: models side by side on the same prompts, and classifiers on the same records.

It must not know how answers are made. Its one invariant: prompts leave the machine only for an endpoint whose URL the
user wrote.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.config import RowsConfig, SamplingConfig
from finetwo.core.errors import InputError

if TYPE_CHECKING:
    from finetwo.insight.page import Page

_USAGE = "finetwo compare A B ... --prompts FILE [--prefix FILE] [--option VALUE ...]"
_ABOUT = """Ask several models the same prompts with the same sampling and the same seed; show the answers side by side.
A model is a name, a folder, a run, an adapter, or an OpenAI-compatible endpoint, written URL#MODEL. So a prompted chat
model may stand beside a tuned one: --prefix puts a text, say a few examples, before every prompt (of endpoints only,
if you say --prefix_for endpoints). Local models with the same tokens are also compared token by token: how far is
what the one would say from what the other would (KL, 0 is the same model)?
Classifiers are compared on labelled data: where do they disagree, and is one better (McNemar's test)?

examples:
  finetwo compare tiny runs/austen-style --prompts openings.txt --temperature 0.8
  finetwo compare runs/austen-style http://localhost:8000/v1#llama --prompts openings.txt --prefix shots.txt
  finetwo compare gpt2 runs/a runs/b --prompts questions.jsonl --report answers.html
  finetwo compare runs/a-classify runs/b-classify --data test.csv

An endpoint is sent the prompts, the prefix, temperature, top_p, seed and stop, and a key from the environment variable
OPENAI_API_KEY over https only; nothing else leaves your machine.
"""


@dataclass
class CompareArguments:
    """Options of `finetwo compare`."""

    prompts: str | None = None
    """File of prompts: text (one a line), JSON, JSONL or CSV records."""
    prefix: str | None = None
    """File of text that goes before every prompt, as it stands: an instruction, or examples (few-shot)."""
    prefix_for: str = "all"
    """Who is given the prefix: all or endpoints."""
    data: str | None = None
    """Classifiers: labelled data to compare them on."""
    rows: RowsConfig = field(default_factory=RowsConfig)
    max_new_tokens: int = 128
    """Longest answer."""
    temperature: float = 0.0
    """0 is greedy; higher is more random."""
    top_k: int = 0
    """Keep only the k most likely tokens (0: all); endpoints do not know it."""
    top_p: float = 1.0
    """Keep the smallest set of tokens whose probability reaches p."""
    stop: list[str] = field(default_factory=list)
    """Strings that end an answer (comma-separated, a JSON list, or given again)."""
    raw: bool = False
    """Leave the models' templates out."""
    base: str | None = None
    """Where the base of adapters is."""
    timeout: float = 120.0
    """Seconds to wait for one answer of an endpoint."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    seed: int = 0
    """Seed of the sampling and of the intervals."""
    report: str | None = None
    """Also write the page to this file, .html (one file, no network), .md or .txt."""
    json: bool = False
    """Write everything as one JSON object."""

    @property
    def sampling(self) -> SamplingConfig:
        """How prompts are answered."""
        return SamplingConfig(
            self.max_new_tokens, self.temperature, self.top_k, self.top_p, stop=self.stop, seed=self.seed
        )


def _settle(arguments: CompareArguments, words: Words) -> CompareArguments:
    """Check everything that needs neither models nor data."""
    words.expect("compare", 2, 26, "two models or more are needed", _USAGE)
    arguments.sampling.check()
    arguments.rows.check()
    if not 0 < arguments.timeout <= 86400:
        raise InputError("--timeout", "must be > 0 and <= 86400", arguments.timeout, "give seconds")
    if arguments.prefix_for not in ("all", "endpoints"):
        raise InputError("--prefix_for", "must be all or endpoints", arguments.prefix_for, "give one of them")
    if not words.print_config and (arguments.prompts is None) == (arguments.data is None):
        what = "give prompts, or labelled data for classifiers" + (", not both" if arguments.data else "")
        raise InputError("compare", what, None, _USAGE)
    front.check_page(arguments.report)
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(CompareArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, names = asked

    found, page = _answers(arguments, names) if arguments.data is None else _classes(arguments, names)
    front.show_page(page, found, arguments.report, as_json=arguments.json)
    return 0


def _answers(arguments: CompareArguments, names: list[str]) -> tuple[dict[str, Any], Page]:
    """Answers to prompts, side by side."""
    from finetwo.app.console import say
    from finetwo.app.tuned import load_side
    from finetwo.generate.prompts import read_prompts
    from finetwo.insight.comparing import Asking, answers_page, compare_answers
    from finetwo.insight.library import read_whole
    from finetwo.insight.sides import Side, is_endpoint, open_endpoint

    prompts = read_prompts(Path(str(arguments.prompts)))
    prefix = read_whole(Path(arguments.prefix)) if arguments.prefix is not None else ""
    labels = _labels(names)
    sides = [
        Side(label, endpoint=open_endpoint(name, arguments.timeout)) if is_endpoint(name) else Side(label)
        for name, label in zip(names, labels, strict=True)
    ]
    for side, name in zip(sides, names, strict=True):
        if side.endpoint is None:
            side.model = load_side(name, arguments.base, arguments.device)
            if side.model.network.config.labels:
                fix = "compare classifiers on labelled data: --data FILE"
                raise InputError(name, "is a classifier, it does not answer prompts", None, fix)
    asking = Asking(prefix, arguments.prefix_for == "all", arguments.sampling, arguments.raw)
    found = compare_answers(sides, prompts, asking, say)
    return found, answers_page(found)


def _classes(arguments: CompareArguments, names: list[str]) -> tuple[dict[str, Any], Page]:
    """Classifiers on the same records."""
    from dataclasses import replace

    from finetwo.app.console import say
    from finetwo.app.tuned import load_side
    from finetwo.insight.comparing import classes_page, compare_classes
    from finetwo.store.hub_data import data_path

    data = data_path(str(arguments.data), say)
    models = [
        replace(load_side(name, arguments.base, arguments.device), name=label)
        for name, label in zip(names, _labels(names), strict=True)
    ]
    found = compare_classes(models, data, arguments.rows, say)
    return found, classes_page(found)


def _labels(names: list[str]) -> list[str]:
    """The names that the sides are shown by: as they were given, numbered where one is given twice."""
    return [
        name if names.count(name) == 1 else f"{name} ({names[: i + 1].count(name)})" for i, name in enumerate(names)
    ]
