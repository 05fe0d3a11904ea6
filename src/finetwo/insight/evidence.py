"""What a run folder tells of its run: the log, the settings, the counts, and the texts it was trained on.

It knows files and no verdicts. Its one invariant: whatever a run did not leave behind is None or empty, never guessed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from finetwo.core.config import SamplingConfig
from finetwo.core.errors import FineTwoError, InputError
from finetwo.core.files import read_json
from finetwo.core.strict_json import parse_json
from finetwo.data.records import Records
from finetwo.data.sealed import METADATA, read_metadata
from finetwo.data.sequences import IGNORE
from finetwo.generate.engine import Engine, Request
from finetwo.store.folder import read_config, read_extras
from finetwo.store.local import EMBEDDED, embedded_folder, local_folder
from finetwo.store.models import is_adapter_folder, open_model
from finetwo.store.run import CACHE, is_run_folder, model_folder_of_run
from finetwo.store.yaml import read_settings
from finetwo.tasks.registry import find_task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.receipt import RECEIPT
from finetwo.train.recorded import read_receipt
from finetwo.train.resume import ENVIRONMENT
from finetwo.train.start import usual_lr

_LOOKED_AT = 400
"""Training records that are read as text."""
_LONGEST = 256
"""Most tokens of an answer that is asked for."""


@dataclass(frozen=True)
class Reply:
    """An answer to a prompt, and why it ended."""

    prompt: str
    text: str
    finish: str


@dataclass(frozen=True)
class Texts:
    """Records of the training set as text."""

    prompts: list[str]
    answers: list[str]
    """For a classifier the name of the class."""
    lengths: list[int]
    """Tokens of each answer, its end included."""
    ended: float
    """Share of them whose last learned token is end-of-text."""

    def top_answer(self) -> tuple[str, float]:
        """The commonest answer and its share."""
        return self.share(Counter(answer.strip() for answer in self.answers))

    def share(self, counts: Counter[str]) -> tuple[str, float]:
        """The commonest text of a count and its share of the records; ('', 0) of none."""
        (top, number), *_ = counts.most_common(1) or [("", 0)]
        return top, number / max(1, len(self.answers))


@dataclass
class Evidence:
    """Everything that the checks look at."""

    run: Path
    settings: dict[str, str] = field(default_factory=dict)
    """The resolved configuration, dotted names to texts."""
    steps: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    """Answers of the last sampling, or of a probe."""
    counts: dict[str, int] = field(default_factory=dict)
    total_steps: int = 0
    failure: str | None = None
    """How a numeric guard ended the run."""
    template: str | None = None
    """Digest of the template that the run was trained with."""
    stored: Template | None = None
    """The template of the model that the run wrote."""
    base: Template | None = None
    """The template that the model brought along."""
    labels: tuple[str, ...] = ()
    texts: Texts | None = None
    usual: float = 5e-4
    """The learning rate that FineTwo takes for such a job."""

    def number(self, name: str, default: float = 0.0) -> float:
        """A setting as a number."""
        with suppress(ValueError):
            return float(self.settings.get(name, default))
        return default

    def series(self, name: str) -> list[float]:
        """A figure of every step; steps without one are left out."""
        return [float(s[name]) for s in self.steps if isinstance(s.get(name), int | float)]

    @property
    def peak_lr(self) -> float:
        """The highest learning rate that the run reached."""
        return max(self.series("lr"), default=0.0)

    @property
    def epochs(self) -> float:
        """Passes over the data that were made."""
        return float(self.steps[-1].get("epoch") or 0.0) if self.steps else 0.0

    @property
    def stopped_early(self) -> bool:
        """Whether --patience ended the run."""
        return self.number("patience") > 0 and bool(self.steps) and int(self.steps[-1]["step"]) < self.total_steps

    @property
    def answers_end(self) -> bool:
        """Whether the task is one whose answers are to end by themselves."""
        return self.settings.get("task") not in ("style", "pretrain") and not self.labels


def gather(run: Path) -> Evidence:
    """Read what the run folder `run` holds; InputError when it is none, or has taken no step and told nothing."""
    if not is_run_folder(run):
        fix = "give the folder that `finetwo train` wrote"
        raise InputError(str(run), "is not a run folder", None, fix)
    found = Evidence(run)
    if (run / "config.yaml").is_file():
        found.settings = {s.name: str(s.value) for s in read_settings(run / "config.yaml")}
    _read_log(found, run / "metrics.jsonl")
    if (run / ENVIRONMENT).is_file():
        content = read_json(run / ENVIRONMENT)
        found.counts = {k: int(v) for k, v in content.get("counts", {}).items()}
        prints = content.get("fingerprint", {})
        found.template, found.total_steps = prints.get("template"), int(prints.get("total_steps") or 0)
    if (run / RECEIPT).is_file():
        failure = read_receipt(run)["failure"]
        found.failure = failure["line"] if failure and failure["type"] == "NumericError" else None
    if not found.steps and not found.evaluations and found.failure is None:
        raise InputError(str(run), "this run has taken no step: there is nothing to explain", None, "let it train")
    _read_models(found)
    with suppress(FineTwoError):  # a damaged cache is built anew by the next start, and no matter of this run's
        _read_texts(found)
    return found


def _read_log(found: Evidence, path: Path) -> None:
    samples: list[dict[str, Any]] = []
    for record in _lines(path):
        kind = record.get("event")
        if kind == "step":
            found.steps.append(record)
        elif kind == "evaluation":
            found.evaluations.append(record)
        elif kind == "sample":
            samples.append(record)
    last = max((s["step"] for s in samples), default=0)
    for sample in samples if last else ():
        if sample["step"] == last:
            pairs = zip(sample["texts"], sample["finish_reasons"], strict=True)
            found.replies += [Reply(str(sample["prompt"]), text, why) for text, why in pairs]


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.endswith("\n"):  # a torn last line goes at the next start
                    yield parse_json(line, f"{path}:{number}")


def _start_folder(found: Evidence) -> Path | None:
    """The folder of the model that the run began with, where it is on this machine."""
    name = found.settings.get("model", "")
    with suppress(FineTwoError):
        return embedded_folder() if name == EMBEDDED else local_folder(name)
    return None


def _made_folder(found: Evidence) -> Path | None:
    with suppress(FineTwoError):
        return model_folder_of_run(found.run)
    return None


def _read_models(found: Evidence) -> None:
    """Templates of the models before and after, and the learning rate that is usual for them."""
    start, made = _start_folder(found), _made_folder(found)
    fresh = False
    with suppress(FineTwoError):
        fresh = find_task(found.settings.get("task", "")).fresh
    lora = any(name.startswith("lora.") for name in found.settings)
    width = 768
    for folder in (f for f in (start, made) if f is not None):
        if is_adapter_folder(folder):
            lora = True
        else:
            with suppress(FineTwoError):
                width = read_config(folder).n_embd
    found.usual = usual_lr(fresh=fresh, lora=lora, width=width)
    found.base = read_extras(start).template if start is not None and not fresh else None
    found.stored = read_extras(made).template if made is not None else None


def _prepared_folder(found: Evidence) -> Path | None:
    places = (found.run / CACHE, Path(found.settings.get("data", "")))
    return next((p for p in places if (p / METADATA).is_file()), None)


def _tokenizer(found: Evidence) -> Tokenizer | None:
    for folder in (_made_folder(found), _start_folder(found)):
        if folder is not None and (folder / "vocab.json").is_file():
            return Tokenizer.load(folder)
    return None


def _read_texts(found: Evidence) -> None:
    """Decode training records from the run's own prepared data."""
    folder, tokenizer = _prepared_folder(found), _tokenizer(found)
    if folder is None or tokenizer is None:
        return
    content = read_metadata(folder)
    found.labels = tuple(content.get("labels") or ())
    if content["layout"] != "records":
        return
    records = Records.open(folder / "train", content["key"], content["vocab_size"])
    if records is None:
        return
    prompts, answers, lengths, ended = [], [], [], 0
    chosen = np.linspace(0, len(records) - 1, min(len(records), _LOOKED_AT)).astype(int)
    for index in chosen.tolist():
        sequence = records.get(index, 0)
        if found.labels:
            prompts.append(tokenizer.decode(sequence.tokens.tolist()))
            answers.append(found.labels[int(sequence.targets[-1])])
            continue
        first = int(np.argmax(sequence.targets != IGNORE))
        learned = [int(t) for t in sequence.targets[first:] if t != IGNORE]
        prompts.append(tokenizer.decode(sequence.tokens[: first + 1].tolist()))
        answers.append(tokenizer.decode([t for t in learned if t != tokenizer.eot]))
        lengths.append(len(learned))
        ended += learned[-1] == tokenizer.eot
    found.texts = Texts(prompts, answers, lengths, ended / max(1, len(lengths)))


def ask(found: Evidence, count: int) -> None:
    """Let the run's model answer `count` different prompts it was not trained on, if it has such, greedily.

    A run that answered prompts of the user's keeps those answers.
    """
    folder = _prepared_folder(found)
    if found.replies or found.labels or folder is None or count < 1 or _made_folder(found) is None:
        return
    content = read_metadata(folder)
    if content["layout"] != "records" or content.get("labels"):
        return
    name = "validation" if "validation" in content["splits"] else "train"
    records = Records.open(folder / name, content["key"], content["vocab_size"])
    if records is None:
        return
    opened = open_model(str(found.run), found.settings.get("base"))
    lengths = found.texts.lengths if found.texts is not None else []
    limit = min(_LONGEST, max(16, int(1.5 * np.percentile(lengths, 95)))) if lengths else 64
    room = opened.network.config.n_positions - limit  # a prompt without it would have its answer cut by the context
    asked = [list(ids) for ids in dict.fromkeys(_prompts(records)) if len(ids) <= room][:count]
    requests = [Request(ids, SamplingConfig(max_new_tokens=limit)) for ids in asked]
    for ids, (done,) in zip(asked, Engine(opened.network, opened.tokenizer).complete(requests), strict=True):
        found.replies.append(Reply(opened.tokenizer.decode(ids), done.text, done.finish_reason))


def _prompts(records: Records) -> Iterator[tuple[int, ...]]:
    for index in range(min(len(records), _LOOKED_AT)):
        sequence = records.get(index, 0)
        yield tuple(sequence.tokens[: int(np.argmax(sequence.targets != IGNORE)) + 1].tolist())
