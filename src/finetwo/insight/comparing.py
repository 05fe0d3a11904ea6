"""A comparison of models: their answers side by side, how far their distributions are apart, where classifiers differ.

It knows answers and figures and no command line. Its one invariant: two local models are compared token by token only
where they read the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from finetwo.core.config import RowsConfig, SamplingConfig
from finetwo.core.errors import InputError
from finetwo.data.examples import load_splits
from finetwo.generate.pipeline import Model, Prompt
from finetwo.insight.divergence import divergences
from finetwo.insight.interval import Bootstrap
from finetwo.insight.library import Say
from finetwo.insight.page import Beside, Block, Page, Section, Table
from finetwo.insight.ranking import wilson
from finetwo.insight.sides import Side, ask, plain, prefixed
from finetwo.tasks.classes import mcnemar
from finetwo.tasks.registry import find_task

_SHOWN = 20
"""Disagreements that a page shows."""
_NOTHING = "(nothing)"
"""Shown where an answer is empty."""
KL_PROTOCOL = (
    "mean KL(first || second) in nats a token, over the tokens that the first wrote in answer to the prompts, each "
    "model reading the same tokens; 95 % interval by Poisson bootstrap over answers; 0: the same model, on these "
    "tokens; left out: empty answers, and those that do not fit the shorter context; models with other tokens have "
    "no KL"
)


@dataclass(frozen=True)
class Asking:
    """How every side is asked."""

    prefix: str = ""
    """Text before every prompt."""
    prefix_for_all: bool = True
    """Whether local models are given it too, or endpoints only."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    raw: bool = False
    """Whether the models' templates are left out."""


def compare_answers(sides: Sequence[Side], prompts: Sequence[Prompt], asking: Asking, say: Say) -> dict[str, Any]:
    """Have every side answer, and return answers and divergences as JSON content."""
    prefix, sampling = asking.prefix, asking.sampling
    for side in sides:
        if side.endpoint is not None:
            say(f"{side.name}: {len(prompts):,} prompts go to {side.endpoint.place}")
        led = asking.prefix_for_all or side.endpoint is not None
        ask(side, [prefixed(prompt, prefix if led else "") for prompt in prompts], sampling, raw=asking.raw)
    answers = [
        {"prompt": plain(prompt), "answers": {side.name: side.answers[i] for side in sides}}
        for i, prompt in enumerate(prompts)
    ]
    settings = {
        "max_new_tokens": sampling.max_new_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "stop": list(sampling.stop),
        "seed": sampling.seed,
    }
    found: dict[str, Any] = {
        "models": [s.name for s in sides],
        "sampling": settings,
        "prefix": prefix,
        "prefix_for_all": asking.prefix_for_all,
        "answers": answers,
    }
    local = [s for s in sides if s.model is not None]
    both_ways = [pair for a, b in combinations(local, 2) for pair in ((a, b), (b, a))]
    found["kl"] = [_kl(first, second, sampling) for first, second in both_ways]
    return found | {"protocols": {"kl": KL_PROTOCOL}}


def _kl(first: Side, second: Side, sampling: SamplingConfig) -> dict[str, Any]:
    """The divergence of one model from another on the first's answers; there is none where their tokens differ."""
    assert first.model is not None and second.model is not None
    if first.model.tokenizer.digest != second.model.tokenizer.digest:
        none = {"kl": None, "interval": None, "tokens": 0, "left_out": len(first.written), "same_tokens": False}
        return {"first": first.name, "second": second.name} | none
    networks = first.model.network, second.model.network
    vocab = min(first.model.tokenizer.vocab_size, *(n.config.vocab_size for n in networks))
    found = divergences(*networks, first.written, vocab)
    bootstrap = Bootstrap(2, sampling.seed)
    for one in found:
        bootstrap.add(one)
    nats, tokens = sum(one[0] for one in found), sum(one[1] for one in found)
    return {
        "first": first.name,
        "second": second.name,
        "kl": nats / tokens if tokens else None,
        "interval": bootstrap.interval(lambda sums: sums[:, 0] / sums[:, 1]),
        "tokens": tokens,
        "left_out": sum(not one[1] for one in found),
        "same_tokens": True,
    }


def compare_classes(models: Sequence[Model], data: Path, rows: RowsConfig, say: Say) -> dict[str, Any]:
    """Return where classifiers disagree on labelled data, and McNemar's test of each pair.

    Raises:
        InputError: a model is no classifier, their classes differ, or the data cannot be read.
    """
    for model in models:
        if not model.network.config.labels:
            raise InputError(
                "--data", "compares classifiers, and this is a language model", model.name, "use --prompts"
            )
    labels, task = models[0].network.config.labels, find_task(models[0].task or "classify")
    for model in models[1:]:
        theirs = model.network.config.labels
        if set(theirs) != set(labels):
            what = f"its classes are not those of {models[0].name}, {', '.join(labels[:6])}"
            raise InputError(model.name, what, ", ".join(theirs[:6]), "compare classifiers of the same classes")
        if find_task(model.task or "classify").kind != task.kind:
            what = f"reads other records than {models[0].name}: single texts and pairs do not compare"
            raise InputError(model.name, what, model.task, "compare classifiers of the same task")
    whole = RowsConfig(**{**vars(rows), "split": rows.split or "train:1.0"})
    loaded = load_splits(data, whole, 0, say, task.kind, labels)
    examples = [example for part in loaded.splits.values() for example in part]
    said = [model.predict([example.fields for example in examples]) for model in models]
    right = [np.array([p.label == e.fields["label"] for p, e in zip(one, examples, strict=True)]) for one in said]
    names = [model.name for model in models]
    apart = [
        {
            "where": example.where,
            "text": " | ".join(v for k, v in example.fields.items() if k in ("text", "first", "second")),
            "label": example.fields["label"],
            "said": {
                n: {"label": p[i].label, "probability": p[i].probability} for n, p in zip(names, said, strict=True)
            },
        }
        for i, example in enumerate(examples)
        if len({p[i].label for p in said}) > 1
    ]
    pairs = [
        {"first": names[i], "second": names[j]} | mcnemar(right[i], right[j])
        for i, j in combinations(range(len(names)), 2)
    ]
    accuracy = {
        name: {"right": int(hits.sum()), "rate": float(hits.mean()), "interval": wilson(int(hits.sum()), len(hits))}
        for name, hits in zip(names, right, strict=True)
    }
    return {"models": names, "records": len(examples), "accuracy": accuracy, "mcnemar": pairs, "disagreements": apart}


# --- pages --------------------------------------------------------------------------------------------------------


def answers_page(found: dict[str, Any]) -> Page:
    """Return the page of `compare_answers`."""
    page = Page(" beside ".join(found["models"]))
    for number, one in enumerate(found["answers"], 1):
        answers = Beside([(name, text or _NOTHING) for name, text in one["answers"].items()])
        page.sections.append(Section(f"Prompt {number}", [Beside([("prompt", one["prompt"])]), answers]))
    if found["kl"]:
        page.sections.append(_apart(found))
    settings = ", ".join(f"{name} {value}" for name, value in found["sampling"].items() if value != [])
    blocks: list[Block] = [
        settings + ". Endpoints are sent temperature, top_p, seed, stop and the limit, and no top_k."
    ]
    if found["prefix"]:
        who = "every prompt" if found["prefix_for_all"] else "every prompt to an endpoint"
        blocks.append(Beside([(f"put before {who}", found["prefix"])]))
    page.sections.append(Section("How they were asked", blocks))
    return page


def _apart(found: dict[str, Any]) -> Section:
    rows = []
    for one in found["kl"]:
        value = _nats(one["kl"]) if one["same_tokens"] else "other tokens"
        row = (one["first"], one["second"], value, _between(one["interval"]), f"{one['tokens']:,}")
        rows.append((*row, f"{one['left_out']:,}"))
    header = ("first", "second", "KL, nats a token", "95 % interval", "tokens", "answers left out")
    return Section("How far apart they are", [Table(header, rows), found["protocols"]["kl"]])


def _nats(value: float | None) -> str:
    return "-" if value is None else f"{value:.6f}" if value else "0"


def _between(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{interval[0]:.6f} to {interval[1]:.6f}"


def classes_page(found: dict[str, Any]) -> Page:
    """Return the page of `compare_classes`."""
    rows = [
        (name, f"{one['rate']:.2%} [{one['interval'][0]:.2%}, {one['interval'][1]:.2%}]", f"{one['right']:,}")
        for name, one in found["accuracy"].items()
    ]
    page = Page(" beside ".join(found["models"]))
    page.sections.append(
        Section(
            f"Accuracy on {found['records']:,} records",
            [Table(("model", "accuracy, 95 % interval of Wilson", "right"), rows)],
        )
    )
    tests = [
        (m["first"], m["second"], f"{m['only_first_right']:,}", f"{m['only_second_right']:,}",
         f"{m['difference']:+.2%}", f"{m['p_value']:.4g}")
        for m in found["mcnemar"]
    ]  # fmt: skip
    header = ("first", "second", "only first right", "only second right", "difference", "p")
    page.sections.append(Section("McNemar's test", [Table(header, tests), found["mcnemar"][0]["protocol"]]))
    apart = [
        (one["where"], one["text"][:200], one["label"],
         *(f"{s['label']} {s['probability']:.2f}" for s in one["said"].values()))
        for one in found["disagreements"][:_SHOWN]
    ]  # fmt: skip
    heading = f"{len(found['disagreements']):,} records on which they disagree"
    heading += f" (the first {_SHOWN})" if len(found["disagreements"]) > _SHOWN else ""
    table = Table(("record", "text", "true class", *found["models"]), apart)
    page.sections.append(Section(heading, [table] if apart else []))
    return page
