"""What stands beside what in a comparison: local models and chat endpoints, asked the same prompts.

It knows prompts and answers and no reports. Its one invariant: every side is given the same prompts, prefix, sampling
settings and seed, as far as it takes them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.pool import ThreadPool
from typing import Any
from urllib.parse import urldefrag

from finetwo.core.config import SamplingConfig
from finetwo.core.errors import InputError
from finetwo.generate.engine import Engine, Request
from finetwo.generate.pipeline import Model, Prompt, prompt_fields
from finetwo.insight.divergence import Written
from finetwo.insight.endpoint import Endpoint, check_url
from finetwo.text.template import parse_turns

_TIMEOUT_OPTION = "--timeout"


@dataclass
class Side:
    """One model of a comparison, and what it answered."""

    name: str
    model: Model | None = None
    endpoint: Endpoint | None = None
    answers: list[str] = field(default_factory=list)
    written: list[Written] = field(default_factory=list)
    """Of a local model: prompts and answers as tokens, a closing end-of-text included."""


def is_endpoint(name: str) -> bool:
    """Whether a side's name is the URL of an endpoint."""
    return name.startswith(("http://", "https://"))


def open_endpoint(name: str, timeout: float) -> Endpoint:
    """Return the endpoint named URL#MODEL; InputError where one of them is missing or no such thing."""
    url, model = urldefrag(name)
    if not model:
        raise InputError(name, "does not say which model", None, f"write {url}#MODEL, as the endpoint knows it")
    check_url(url, "compare")
    return Endpoint(url, model, timeout, option="endpoint", timeout_option=_TIMEOUT_OPTION)


def prefixed(prompt: Prompt, prefix: str) -> Prompt:
    """Return a prompt with a text put before it: before its words, a record's question, or the last question."""
    if not prefix:
        return prompt
    if isinstance(prompt, str):
        return prefix + prompt
    if isinstance(prompt, Mapping):
        fields = prompt_fields(prompt)
        return {**fields, "prompt": prefix + fields.get("prompt", "")}
    turns = parse_turns(prompt, "prompt", answered=False)
    return [*map(asdict, turns[:-1]), {**asdict(turns[-1]), "content": prefix + turns[-1].content}]


def plain(prompt: Prompt) -> str:
    """Return a prompt as one text to be shown, or to be sent as one message."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping):
        fields = prompt_fields(prompt)
        extra = fields.get("input", "")
        return f"{fields.get('prompt', '')}\n\n{extra}" if extra.strip() else fields.get("prompt", "")
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in parse_turns(prompt, "prompt", answered=False))


def ask(side: Side, prompts: Sequence[Prompt], sampling: SamplingConfig, *, raw: bool = False) -> None:
    """Have a side answer the prompts; raises what its model or endpoint does."""
    if side.endpoint is not None:
        _ask_endpoint(side, side.endpoint, prompts, sampling)
        return
    assert side.model is not None
    model = side.model
    engine = Engine(model.network, model.tokenizer)
    ids = [_ids(model, prompt, sampling, raw) for prompt in prompts]
    done = engine.complete([Request(i, sampling) for i in ids])
    side.answers = [answers[0].text for answers in done]
    side.written = [
        Written(engine.fit(i, sampling.max_new_tokens)[0], answers[0].tokens)
        for i, answers in zip(ids, done, strict=True)
    ]


def _ids(model: Model, prompt: Prompt, sampling: SamplingConfig, raw: bool) -> list[int]:
    if isinstance(prompt, str | Mapping):
        return model.prompt_ids(prompt, raw=raw)
    return model.prompt_ids(model.fit_turns(prompt, sampling.max_new_tokens)[0], raw=raw)


def _ask_endpoint(side: Side, endpoint: Endpoint, prompts: Sequence[Prompt], sampling: SamplingConfig) -> None:
    settings: dict[str, Any] = {"temperature": sampling.temperature}
    if sampling.temperature > 0:
        settings |= {"top_p": sampling.top_p, "seed": sampling.seed}
    if sampling.stop:
        settings["stop"] = list(sampling.stop)

    def one(prompt: Prompt) -> str:
        return endpoint.complete(_messages(prompt), sampling.max_new_tokens, **settings)

    with ThreadPool(4) as pool:
        side.answers = pool.map(one, prompts, chunksize=1)


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    if isinstance(prompt, str | Mapping):
        return [{"role": "user", "content": plain(prompt)}]
    return [asdict(turn) for turn in parse_turns(prompt, "prompt", answered=False)]
