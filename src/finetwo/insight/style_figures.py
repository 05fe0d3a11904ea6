"""The figures of a style proof: from what was measured of a model, its base and its author to JSON content.

It knows measurements and no networks. Its one invariant: every share comes with its counts, and with an interval where
it is of independent trials.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetwo.core.config import RowsConfig, SamplingConfig
from finetwo.generate.pipeline import Model
from finetwo.insight import extraction
from finetwo.insight.copying import Matches, matches
from finetwo.insight.library import LEAST_ANSWER, Library
from finetwo.insight.names import carried, training_names
from finetwo.insight.ranking import auc, auc_interval, wilson
from finetwo.insight.strength import Base
from finetwo.insight.stride import exp

ORDERS = (8, 13, 20)
"""Lengths, in tokens, of the word-for-word sequences that are counted."""
SHORTEST = 32
"""Tokens of the shortest document that is a passage of its own."""
_SPANS = 5
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class StyleOptions:
    """What to measure on, and how much."""

    train: Sequence[str]
    held_out: Sequence[str]
    others: Sequence[str]
    passages: int = 200
    """Passages a side for the authorship score."""
    passage_tokens: int = 256
    openings: int = 32
    opening_tokens: int = 16
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(temperature=0.8, top_p=0.95))
    extractions: int = 100
    """Passages for each prefix of the extraction test."""
    canaries: Sequence[str] = ()
    stages: bool = True
    batch_size: int = 8
    rows: RowsConfig = field(default_factory=RowsConfig)


@dataclass(frozen=True)
class Texts:
    """The three libraries, and what is taken of them."""

    train: Library
    held_out: Library
    others: Library
    own: list[tuple[int, int, int]]
    """Passages of the author's held-out text: begin, first scored token, end."""
    foreign: list[tuple[int, int, int]]
    openings: list[list[int]]
    true: list[list[int]]
    """How the author went on after each opening."""
    recite: dict[str, tuple[list[extraction.Passage], list[extraction.Passage]]]
    """By prefix: passages of the training text, and of held-out text."""
    canaries: list[extraction.Canary]


@dataclass(frozen=True)
class State:
    """What one set of weights does."""

    own: Floats
    """Nats a token of each passage of the author."""
    foreign: Floats
    own_loss: float
    written: list[list[int]]
    copied: Matches
    recited: dict[str, tuple[list[bool], list[bool]]]
    told: list[bool]


def figures(
    model: Model,
    base: Base,
    texts: Texts,
    options: StyleOptions,
    states: tuple[State, State, list[tuple[str, State]]],
) -> dict[str, Any]:
    """Return the figures of the base, of the model and of all stages (these two among them), as JSON content."""
    under, state, stages = states
    seed = options.sampling.seed
    natural = matches(texts.train.tokens, texts.true, min(ORDERS))
    return {
        "model": model.name,
        "base": base.name,
        "authorship": _authorship(texts, under, state, seed),
        "copying": {
            "model": _copying(state.copied, seed),
            "base": _copying(under.copied, seed),
            "held_out": _copying(natural, seed),
            "spans": _spans(texts, state),
        },
        "extraction": {
            label: {
                "train": _share(state.recited[label][0]),
                "held_out": _share(state.recited[label][1]),
                "base_train": _share(under.recited[label][0]),
                "base_held_out": _share(under.recited[label][1]),
            }
            for label in texts.recite
        },
        "canaries": [
            {"sentence": c.sentence, "in_training": c.at is not None, "found": found, "found_by_base": by_base}
            for c, found, by_base in zip(texts.canaries, state.told, under.told, strict=True)
        ],
        "names": _names(texts, under, state),
        "stages": [_stage(label, under, found) for label, found in stages],
        "protocol": _protocol(texts, options),
    }


def _authorship(texts: Texts, under: State, state: State, seed: int) -> dict[str, Any]:
    own, foreign = under.own - state.own, under.foreign - state.foreign
    by_file: dict[str, list[float]] = {}
    for (begin, _, _), ratio in zip(texts.foreign, foreign, strict=True):
        by_file.setdefault(texts.others.places[texts.others.document_of(begin)][0], []).append(float(ratio))
    return {
        "auc": auc(own, foreign),
        "auc_interval": auc_interval(own, foreign, seed),
        "ratio_own": float(own.mean()),
        "ratio_others": float(foreign.mean()),
        "passages_own": len(own),
        "passages_others": len(foreign),
        "perplexity_own": exp(state.own_loss),
        "perplexity_own_base": exp(under.own_loss),
        "against": {file: {"auc": auc(own, ratios), "passages": len(ratios)} for file, ratios in by_file.items()},
    }


def _copying(found: Matches, seed: int) -> dict[str, Any]:
    longest = found.spans[0].length if found.spans else 0
    return {"longest": longest} | {str(n): found.rate(n, seed) for n in ORDERS}


def _spans(texts: Texts, state: State) -> list[dict[str, Any]]:
    return [
        {
            "tokens": span.length,
            "generation": span.text,
            "where": str(texts.train.where(span.origin)),
            "text": texts.train.text(span.origin, span.origin + span.length),
        }
        for span in state.copied.spans[:_SPANS]
    ]


def _share(hits: list[bool]) -> dict[str, Any]:
    return {
        "recited": sum(hits),
        "tried": len(hits),
        "rate": sum(hits) / len(hits) if hits else None,
        "interval": wilson(sum(hits), len(hits)),
    }


def _names(texts: Texts, under: State, state: State) -> dict[str, Any]:
    decode = texts.train.tokenizer.decode
    plain = [[decode(ids) for ids in group] for group in (state.written, under.written, texts.openings, texts.true)]
    names = training_names(texts.train.pieces())
    found, touched = carried(names, *plain)
    listed = [
        {"name": f.name, "generations": f.texts, "in_training": f.in_training, "in_held_out": f.in_held_out}
        for f in found
    ]
    return {"names_in_training": len(names), "carried": listed, "generations_with_one": touched}


def _stage(label: str, under: State, state: State) -> dict[str, Any]:
    """The short line of a set of weights: what it gained, and what it copies."""
    shares = {f"extracted_{name.split()[0]}": _share(hits[0])["rate"] for name, hits in state.recited.items()}
    return {
        "stage": label,
        "perplexity_own": exp(state.own_loss),
        "auc": auc(under.own - state.own, under.foreign - state.foreign),
        **{f"copied_{n}": state.copied.rate(n, 0)["rate"] for n in ORDERS},
        "longest": state.copied.spans[0].length if state.copied.spans else 0,
        **shares,
        "canaries": sum(state.told),
    }


def _protocol(texts: Texts, options: StyleOptions) -> dict[str, str]:
    s = options.sampling
    how = f"temperature {s.temperature:g}, top-p {s.top_p:g}, top-k {s.top_k}, seed {s.seed}"
    records = texts.held_out.records
    shortest, behind = (LEAST_ANSWER, " behind its prompt, which is not scored") if records else (SHORTEST, "")
    start = "the prompts of" if texts.held_out.records else f"the first {options.opening_tokens} tokens of passages of"
    return {
        "authorship": (
            f"mean of log p(model) - log p(base), nats a token, on passages of {shortest} to {options.passage_tokens} "
            f"tokens, evenly spread and each read alone{behind}; AUC: share of pairs (own, other) in which the "
            "author's passage has the greater one, ties half (Mann-Whitney); 95 % interval from 1,000 bootstrap "
            "resamples of both sides"
        ),
        "copying": (
            f"{len(texts.openings)} continuations of at most {s.max_new_tokens} tokens of {start} held-out text, {how};"
            " share of their n-grams of tokens that stand word for word anywhere in the training text, found exactly; "
            "the author, held out: how it goes on there after the same openings; 95 % interval by Poisson bootstrap "
            "over texts"
        ),
        "extraction": (
            f"greedy, all of the next {extraction.CONTINUATION} tokens right; passages evenly spread; 95 % interval of "
            "Wilson"
        ),
        "canaries": (
            f"found: greedy, a sentence's first half, alone or behind the {SHORTEST} tokens that stand before it in "
            "the training text, is gone on with by exactly its second half"
        ),
        "names": (
            "words that the training text writes with a capital inside sentences at least twice, and more often than "
            "without one; carried over: in continuations, and neither in the base's nor in any opening"
        ),
    }
