"""Parity of training and use: are prompts asked as training wrote them, and answered alike by every way of asking?

It knows models, records and ways to ask, and not how a way works (see app/serving.py). Its one invariant: what training
wrote comes from what the run recorded, never from the model folder that is being checked, so a change there shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from finetwo.core.config import RowsConfig, SamplingConfig, TrainConfig
from finetwo.core.errors import InputError, shown
from finetwo.data.examples import Example, Loaded, load_splits
from finetwo.data.loader import InMemory
from finetwo.data.sequences import IGNORE
from finetwo.generate.engine import Engine, Request
from finetwo.generate.pipeline import Model, Prompt
from finetwo.tasks.classes import probabilities
from finetwo.tasks.registry import find_task
from finetwo.tasks.task import Task
from finetwo.text.template import Template, turns_from_json
from finetwo.train.evaluate import class_logits
from finetwo.train.prepare import Prepared, detect_task, prepare_records
from finetwo.train.recorded import Recorded
from finetwo.train.templates import make_template

Say = Callable[[str], None]
_SAMPLE = 16
"""Prompts that are answered, evenly spread; how a prompt is written is compared for all of them."""
_CLOSE = 1e-5
"""By how much a probability may differ: it is computed in other company, and the command line writes six digits."""


@dataclass(frozen=True)
class Served:
    """What a way of asking made of one prompt."""

    ids: tuple[int, ...] = ()
    """Of the prompt as the network read it."""
    text: str = ""
    probabilities: Mapping[str, float] = field(default_factory=dict)
    """Of a classifier's classes, in place of the two others."""


Way = Callable[[Sequence[Any], int], Sequence[Served]]
"""Asks prompts (of a classifier: documents) greedily, for so many new tokens at most."""


@dataclass(frozen=True)
class ServingOptions:
    """What is asked, and how it was written in training where no run tells."""

    part: str = "all"
    rows: RowsConfig = field(default_factory=RowsConfig)
    template: str | None = None
    max_new_tokens: int = 128
    seed: int = 0


@dataclass
class Checked:
    """How one way of asking held up."""

    way: str
    prompts: int = 0
    faults: list[str] = field(default_factory=list)
    """A line for each prompt that was read or answered otherwise."""

    def line(self) -> str:
        """The outcome as one line."""
        if not self.faults:
            return f"{self.way}: as in training, {self.prompts:,} of {self.prompts:,}"
        return f"{self.way}: differs in {len(self.faults):,} of {self.prompts:,}; first: {self.faults[0]}"


@dataclass
class Outcome:
    """The whole check."""

    source: str
    """Where it is known from how training wrote its prompts."""
    checks: list[Checked]
    left_out: int = 0
    """Prompts that leave the answer no room in the context, which serving may shorten."""

    @property
    def passed(self) -> bool:
        """Whether nothing differs."""
        return not any(check.faults for check in self.checks)

    def lines(self) -> list[str]:
        """The outcome for a person."""
        found = [f"training wrote: {self.source}", *(check.line() for check in self.checks)]
        if self.left_out:
            found.append(f"not answered: {self.left_out:,} prompts that leave an answer no room in the context")
        return [*found, "serving check: passed" if self.passed else "serving check: FAILED"]

    def to_dict(self) -> dict[str, Any]:
        """As JSON content."""
        return asdict(self) | {"passed": self.passed}


@dataclass(frozen=True)
class _Check:
    """A model, what it is asked, and by which ways."""

    model: Model
    recorded: Recorded | None
    config: TrainConfig
    options: ServingOptions
    ways: Mapping[str, Way]
    say: Say


def check_serving(
    model: Model, recorded: Recorded | None, data: Path, options: ServingOptions, ways: Mapping[str, Way], say: Say
) -> Outcome:
    """Ask the records of `data` in every one of `ways`, and compare with what training wrote and the network answers.

    `recorded` is what the model's run says (see `recorded_of`). For a classifier the probabilities are compared.

    Raises:
        InputError: data without prompts, nothing in the asked part, or a way that cannot be asked.
    """
    if recorded is not None and recorded.tokenizer != model.tokenizer.digest:
        digests = f"{recorded.tokenizer[:12]} then, {model.tokenizer.digest[:12]} now"
        return Outcome(f"as the run {recorded.run} recorded", [Checked("tokenizer", 1, [f"another one: {digests}"])])
    rows = options.rows
    if options.part == "all" and rows.split is None:
        rows = replace(rows, split="train:1.0")
    length = model.network.config.n_positions
    config = TrainConfig(data=str(data), rows=rows, template=options.template, max_length=length, seed=options.seed)
    check = _Check(model, recorded, config, options, ways, say)
    return _check_classes(check) if model.network.config.labels else _check_prompts(check)


def _prepare(check: _Check, task: Task, loaded: Loaded, template: Template | None, length: int) -> Prepared:
    return prepare_records(loaded, task, template, check.model.tokenizer, check.config, length, lambda _: None)


def _examples(loaded: Loaded, prepared: Prepared, part: str) -> list[tuple[Example, Any]]:
    """The records of the asked part with their sequences."""
    there = {(e.file, e.line, e.number): e for found in loaded.splits.values() for e in found}
    pairs: list[tuple[Example, Any]] = []
    start = 0
    for name, data in prepared.splits().items():
        places = prepared.places[start : start + len(data)]
        start += len(data)
        if part in ("all", name):
            pairs += [(there[place], data.get(i, 0)) for i, place in enumerate(places)]
    if not pairs:
        raise InputError("--part", "this part of the data has no record", part, "give --rows.split, or --part all")
    return pairs


def _spread(count: int) -> list[int]:
    return np.unique(np.linspace(0, count - 1, min(_SAMPLE, count)).astype(int)).tolist() if count else []


# --- language models ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Case:
    """One prompt, and the tokens by which training writes it."""

    where: str
    prompt: Prompt
    ids: tuple[int, ...]


def _check_prompts(check: _Check) -> Outcome:
    """Prompts as training writes them, and the greedy answers that every way gives."""
    model, options = check.model, check.options
    cases, source = _written(check)
    written = Checked("template", len(cases))
    for case in cases:
        written.faults += _other_ids(model, case, tuple(model.prompt_ids(case.prompt)))
    window = model.network.config.n_positions
    room = window - min(options.max_new_tokens, window // 2)
    fitting = [case for case in cases if len(case.ids) <= room]
    asked = [fitting[i] for i in _spread(len(fitting))]
    sampling = SamplingConfig(max_new_tokens=options.max_new_tokens)
    wanted = Engine(model.network, model.tokenizer).complete([Request(case.ids, sampling) for case in asked])
    checks = [written]
    for way, ask in check.ways.items() if asked else ():
        checked = Checked(way, len(asked))
        served = ask([case.prompt for case in asked], options.max_new_tokens)
        for case, got, (answer,) in zip(asked, served, wanted, strict=True):
            checked.faults += _other_ids(model, case, got.ids) or _other_text(case, answer.text, got.text)
        checks.append(checked)
    return Outcome(source, checks, len(cases) - len(fitting))


def _written(check: _Check) -> tuple[list[_Case], str]:
    """The prompts of the asked records by training's template, and where that is known from."""
    model, config, recorded = check.model, check.config, check.recorded
    task = detect_task(config, config.data)
    if task.layout != "records" or task.head != "language":
        fix = "give records with prompts and answers, such as the test part of the training data"
        raise InputError(str(config.data), "holds no prompts that could be served", None, fix)
    if model.task is not None and find_task(model.task).kind == task.kind:
        task = find_task(model.task)
    stored = recorded.template if recorded is not None else model.template
    if stored is None and config.template is None:
        fix = "name the template it was trained with by --template"
        raise InputError(model.name, "nothing tells how training wrote its prompts, if it had any", None, fix)
    loaded = load_splits(Path(str(config.data)), config.rows, config.seed, check.say, task.kind)
    known = sorted({k for e in loaded.splits["train"][:1] for k in e.fields if k != "completion"})
    template = make_template(task, config.template, stored, loaded.columns, known)
    assert template is not None and config.max_length is not None
    prepared = _prepare(check, task, loaded, template, config.max_length)
    cases = [case for e, found in _examples(loaded, prepared, check.options.part) for case in _cases(model, e, found)]
    if config.template is not None:
        return cases, f"the template {template.name}, named by --template"
    if recorded is not None:
        return cases, f"the template {template.name}, as the run {recorded.run} recorded it"
    return cases, f"the template {template.name} of the model itself, as no run lies around it that recorded another"


def _cases(model: Model, example: Example, sequence: Any) -> list[_Case]:
    """The prompts of a record: one, or of a conversation one for each answer."""
    learned = sequence.targets != IGNORE
    begins = np.flatnonzero(learned & ~np.concatenate([[False], learned[:-1]]))
    found = []
    for at, prompt in zip(begins.tolist(), _prompts(example), strict=False):  # a cut record has fewer answers
        end = at + 1 if at else len(model.prompt_ids(prompt))  # a task may learn its prompts, too
        found.append(_Case(example.where, prompt, tuple(sequence.tokens[:end].tolist())))
    return found


def _prompts(example: Example) -> list[Prompt]:
    """What a person would ask to get each answer of a record."""
    if "messages" not in example.fields:
        return [{k: v for k, v in example.fields.items() if k != "completion"}]
    turns = turns_from_json(example.fields["messages"])
    plain = [{"role": str(turn.role), "content": turn.content} for turn in turns]
    return [plain[:i] for i, turn in enumerate(turns) if turn.role == "assistant"]


def _other_ids(model: Model, case: _Case, ids: tuple[int, ...]) -> list[str]:
    """A line where a prompt was read as other tokens: from where on, by text."""
    if ids == case.ids:
        return []
    least = min(len(case.ids), len(ids))
    at = next((i for i in range(least) if case.ids[i] != ids[i]), least)

    def rest(found: tuple[int, ...]) -> str:
        return shown(model.tokenizer.decode(found[max(0, at - 3) :]), 60)

    return [f"{case.where}: from token {at + 1} on training wrote '{rest(case.ids)}', and '{rest(ids)}' is asked"]


def _other_text(case: _Case, wanted: str, got: str) -> list[str]:
    """A line where the same tokens got another answer."""
    if wanted == got:
        return []
    return [f"{case.where}: the network answers '{shown(wanted, 60)}', and '{shown(got, 60)}' comes out"]


# --- classifiers ----------------------------------------------------------------------------------------------------


def _check_classes(check: _Check) -> Outcome:
    """Documents as training writes them, and the probabilities that every way gives."""
    model, labels = check.model, check.model.network.config.labels
    task = find_task(model.task or "classify")
    loaded = load_splits(
        Path(str(check.config.data)), check.config.rows, check.config.seed, check.say, task.kind, labels
    )
    length = model.max_length or model.network.config.n_positions
    pairs = _examples(loaded, _prepare(check, task, loaded, None, length), check.options.part)
    asked = [pairs[i] for i in _spread(len(pairs))]
    told = class_logits(model.network, InMemory([sequence for _, sequence in asked]), 1)
    assert told is not None
    wanted = probabilities(told[0], model.temperature)
    documents = [{k: e.fields[k] for k in ("text", "first", "second") if k in e.fields} for e, _ in asked]
    checks = []
    for way, ask in check.ways.items():
        checked = Checked(way, len(asked))
        for (example, _), row, got in zip(asked, wanted, ask(documents, 0), strict=True):
            gap = max(abs(float(p) - got.probabilities.get(n, 0.0)) for n, p in zip(labels, row, strict=True))
            if not gap <= _CLOSE:
                checked.faults.append(f"{example.where}: a probability differs by {gap:.2g}")
        checks.append(checked)
    return Outcome(f"documents of at most {length:,} tokens, no template, temperature {model.temperature:.4g}", checks)
