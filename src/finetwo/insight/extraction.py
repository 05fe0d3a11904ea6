"""Whether a model recites: greedy continuations of passages, and of planted sentences, held against what stands there.

It knows tokens and a model and nothing of reports. Its one invariant: a passage counts as recited only if every one of
its next tokens is the right one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetwo.core.config import SamplingConfig
from finetwo.generate.engine import Engine, Request
from finetwo.insight.library import Library, evenly
from finetwo.model.network import Network

CONTINUATION = 32
"""Tokens that must all be right."""
_BLOCK = 1 << 18
_LONGEST = 4096


@dataclass(frozen=True)
class Passage:
    """A prefix, and what follows it in the text."""

    prefix: list[int]
    rest: list[int]


def passages(library: Library, prefix: int, count: int) -> list[Passage]:
    """Return up to `count` passages, evenly spread: `prefix` tokens of text; of records the prompt (at most so long).

    Of a record the answer's first tokens are to be continued.
    """
    tokens = library.tokens
    if library.records:
        fit = np.flatnonzero((library.ends - library.bodies >= CONTINUATION) & (library.bodies > library.starts))
        places = [
            (max(int(library.starts[d]), int(library.bodies[d]) - prefix), int(library.bodies[d]))
            for d in evenly(fit, count)
        ]
    else:
        places = [(begin, begin + prefix) for begin, _ in library.spread(prefix + CONTINUATION, count)]
    return [
        Passage([int(t) for t in tokens[begin:at]], [int(t) for t in tokens[at : at + CONTINUATION]])
        for begin, at in places
    ]


def recited(network: Network, library: Library, asked: Sequence[Passage]) -> list[bool]:
    """Return for each passage whether the network's greedy continuation is the text's own."""
    engine = Engine(network, library.tokenizer)
    requests = [Request(p.prefix, SamplingConfig(max_new_tokens=len(p.rest))) for p in asked]
    return [done[0].tokens == p.rest for done, p in zip(engine.complete(requests), asked, strict=True)]


@dataclass(frozen=True)
class Canary:
    """A planted sentence and where it stands: the tokens before its second half begins, and that half's bytes."""

    sentence: str
    at: int | None
    """Of its first token in the training text; None: it is not in there."""
    split: int = 0
    """Of the first token to be told."""
    rest: bytes = b""
    tokens: int = 0
    """How many tokens the rest takes."""


def find_canaries(library: Library, sentences: Sequence[str]) -> list[Canary]:
    """Look for sentences in the text, any white space between words counting as one."""
    patterns = [re.compile(rb"\s+".join(re.escape(w) for w in s.encode("utf-8").split())) for s in sentences]
    found: dict[int, Canary] = {}
    for start in range(0, len(library.tokens), _BLOCK):
        ids = [int(t) for t in library.tokens[start : start + _BLOCK + _LONGEST]]
        lengths = np.array([0 if t == library.tokenizer.eot else len(library.tokenizer.bytes_of(t)) for t in ids])
        ends = np.cumsum(lengths)
        text = library.tokenizer.decode_bytes(t for t in ids if t != library.tokenizer.eot)
        for number, pattern in enumerate(patterns):
            match = None if number in found else pattern.search(text)
            if match is not None:
                found[number] = _canary(library, sentences[number], start, ends, text, match.span())
    return [found.get(i, Canary(s, None)) for i, s in enumerate(sentences)]


def _canary(
    library: Library,
    sentence: str,
    start: int,
    ends: np.ndarray[tuple[int], np.dtype[np.int64]],
    text: bytes,
    span: tuple[int, int],
) -> Canary:
    """The canary at bytes `span` of `text`, whose tokens end at `ends`; its second half begins with a token."""
    first = int(np.searchsorted(ends, span[0], "right"))
    last = int(np.searchsorted(ends, span[1], "left"))
    split = max(first + 1, (first + last + 1) // 2)
    rest = text[int(ends[split - 1]) : span[1]]
    return Canary(sentence, start + first, start + split, rest, last - split + 1)


def told(network: Network, library: Library, canaries: Sequence[Canary], context: int) -> list[bool]:
    """Return for each canary that is in the text whether it is completed, from its first half or with text before it.

    The first try gives the network the first half alone, the second also the `context` tokens that stand before it.
    """
    engine = Engine(network, library.tokenizer)
    asked = [(i, c) for i, c in enumerate(canaries) if c.at is not None]
    found = [False] * len(canaries)
    for before in (0, context):
        requests = []
        for _, c in asked:
            assert c.at is not None
            document = int(library.starts[library.document_of(c.at)])
            tokens = library.tokens[max(document, c.at - before) : c.split]
            requests.append(Request([int(t) for t in tokens], SamplingConfig(max_new_tokens=max(1, c.tokens))))
        for (i, c), done in zip(asked, engine.complete(requests), strict=True):
            answer = library.tokenizer.decode_bytes(t for t in done[0].tokens if t != library.tokenizer.eot)
            found[i] = found[i] or (c.tokens > 0 and answer.startswith(c.rest))
    return found
