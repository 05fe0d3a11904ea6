"""The style proof: does a model write like its author, and how much of that is copying?

It knows a tuned model, its base and texts, and no command line. Its one invariant: model, base and author are measured
on the same passages and the same openings.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from finetwo.core.errors import InputError
from finetwo.generate.engine import Engine, Request
from finetwo.generate.pipeline import Model
from finetwo.insight import extraction
from finetwo.insight.copying import matches
from finetwo.insight.library import LEAST_ANSWER, Library, Reading, Say, Share, evenly, open_library
from finetwo.insight.passages import passage_losses
from finetwo.insight.stages import stages
from finetwo.insight.strength import Base
from finetwo.insight.style_figures import ORDERS, SHORTEST, State, StyleOptions, Texts, figures
from finetwo.model.network import Network

PREFIXES = (32, 64)
"""Lengths, in tokens, of the prefixes that the extraction test gives."""


def prove(model: Model, name: str, base: Base, options: StyleOptions, say: Say) -> dict[str, Any]:
    """Return the style proof of `model` (opened by `name`) as JSON content.

    Raises:
        InputError: a text that cannot be read or is too short, or a model that cannot be measured.
    """
    window = model.network.config.n_positions
    for option, tokens in (
        ("--passage_tokens", options.passage_tokens),
        ("--max_new_tokens", options.opening_tokens + options.sampling.max_new_tokens),
    ):
        if tokens > window:
            raise InputError(option, f"more than the model's context of {window} tokens", tokens, "give less")
    with tempfile.TemporaryDirectory(prefix="finetwo-") as folder:
        texts = _read(model, options, Path(folder), say)
        say("style: the base, on the same passages and openings")
        with base.under(model.network) as network:
            under = _measure(network, texts, options)
        say("style: the model")
        state = _measure(model.network, texts, options)
        found, own = [("the base", under)], "this model"
        for label, same in (
            stages(name, model.network, base.name if base.network is None else None) if options.stages else ()
        ):
            if same:
                own = f"{label}, this model"
                continue
            say(f"style: {label}")
            found.append((label, _measure(model.network, texts, options)))
        return figures(model, base, texts, options, (under, state, [*found, (own, state)]))


def _read(model: Model, options: StyleOptions, folder: Path, say: Say) -> Texts:
    reading = Reading(model.tokenizer, model.template, options.rows, options.sampling.seed)
    share: dict[str, Share] = {"train": "train", "held_out": "held_out", "others": "all"}
    libraries = {
        part: open_library(getattr(options, part), reading, folder / part, wanted) for part, wanted in share.items()
    }
    for part, library in libraries.items():
        say(f"--{part}: {len(library.starts):,} documents, {len(library.tokens):,} tokens")
    _check_apart(libraries)
    window = model.network.config.n_positions
    own, foreign = (
        libraries[part].scored(options.passage_tokens, options.passages, SHORTEST, window)
        for part in ("held_out", "others")
    )
    for part, found in (("--held_out", own), ("--others", foreign)):
        if len(found) < 2:
            least = LEAST_ANSWER if libraries[part.strip("-")].records else SHORTEST
            what = f"has fewer than two passages of {least} to {options.passage_tokens} tokens"
            raise InputError(part, what, ", ".join(getattr(options, part.strip("-"))), "give more text")
    openings, true = _openings(libraries["held_out"], options)
    if not openings:
        raise InputError("--held_out", "too short for an opening and its continuation", None, "give more text")
    recite = {}
    for prefix in PREFIXES if not libraries["train"].records else (window // 2,):
        if prefix + extraction.CONTINUATION <= window:
            label = "the prompt" if libraries["train"].records else f"{prefix} tokens"
            recite[label] = (
                extraction.passages(libraries["train"], prefix, options.extractions),
                extraction.passages(libraries["held_out"], prefix, options.extractions),
            )
    canaries = extraction.find_canaries(libraries["train"], options.canaries)
    return Texts(
        libraries["train"], libraries["held_out"], libraries["others"], own, foreign, openings, true, recite, canaries
    )


def _check_apart(libraries: dict[str, Library]) -> None:
    """Refuse a document that is training text and something else too: it would prove nothing."""
    places = {
        part: {(Path(file).resolve(), line, number) for file, line, number in library.places}
        for part, library in libraries.items()
    }
    for part in ("held_out", "others"):
        twice = places["train"] & places[part]
        if twice:
            path, _, number = min(twice)
            what = "names a text that is also training text"
            fix = "leave it out of one of them, or say --rows.hold_out PATTERN (of records --rows.split) as in training"
            raise InputError(f"--{part}", what, f"{path}, record {number:,}", fix)


def _openings(held: Library, options: StyleOptions) -> tuple[list[list[int]], list[list[int]]]:
    """Openings of held-out text, and how each goes on there; of records the prompts and their answers."""
    length, new = options.opening_tokens, options.sampling.max_new_tokens
    if held.records:
        fit = np.flatnonzero(held.ends - held.bodies >= min(ORDERS))
        chosen = evenly(fit, options.openings)
        places = [(int(held.starts[d]), int(held.bodies[d]), int(held.ends[d])) for d in chosen]
    else:
        places = [(b, b + length, e) for b, e in held.spread(length + new, options.openings)]
    tokens = held.tokens
    return (
        [[int(t) for t in tokens[begin:at]] for begin, at, _ in places],
        [[int(t) for t in tokens[at : min(end, at + new)]] for _, at, end in places],
    )


def _measure(network: Network, texts: Texts, options: StyleOptions) -> State:
    """Everything that is asked of one set of weights."""
    losses = []
    for library, places in ((texts.held_out, texts.own), (texts.others, texts.foreign)):
        passages = [(library.tokens[begin:end], first - begin) for begin, first, end in places]
        losses.append(passage_losses(network, passages, options.batch_size))
    engine = Engine(network, texts.train.tokenizer)
    done = engine.complete([Request(ids, options.sampling) for ids in texts.openings])
    eot = texts.train.tokenizer.eot
    written = [[t for t in answers[0].tokens if t != eot] for answers in done]
    return State(
        own=losses[0][0] / losses[0][1],
        foreign=losses[1][0] / losses[1][1],
        own_loss=float(losses[0][0].sum() / losses[0][1].sum()),
        written=written,
        copied=matches(texts.train.tokens, written, min(ORDERS)),
        recited={
            label: (
                extraction.recited(network, texts.train, seen),
                extraction.recited(network, texts.held_out, unseen),
            )
            for label, (seen, unseen) in texts.recite.items()
        },
        told=extraction.told(network, texts.train, texts.canaries, SHORTEST),
    )
