"""The user's model: a network with its tokenizer and its prompt template, asked in words and answering in words.

It knows no files and no training. Its one invariant: the prompt it writes for a record is, token for token, the prompt
that training wrote for that record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from finetwo.core.config import LoraConfig, SamplingConfig
from finetwo.core.errors import InputError
from finetwo.generate.engine import Engine, FinishReason, Request
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model, state_digest
from finetwo.store.peft import save_adapter
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

Prompt = str | Mapping[str, str]
"""A text, or the fields of a record (`prompt` and `input`, also by the names of Alpaca and Dolly)."""
_ALIASES = {"prompt": ("instruction", "question"), "input": ("context",)}


@dataclass(frozen=True)
class Answer:
    """The n answers to one prompt."""

    prompt: Prompt
    texts: list[str]
    """The continuations only, without end-of-text and stop strings."""
    finish_reasons: list[FinishReason]
    prompt_tokens: int
    """Tokens of the prompt as the network read it, template included."""
    truncated: bool
    """Whether the prompt was longer than the context and lost its beginning."""


@dataclass
class Model:
    """A network with everything needed to use it."""

    network: Network
    tokenizer: Tokenizer
    template: Template | None = None
    """How a prompt is written; None: as it stands."""
    task: str | None = None
    name: str = "model"
    base: str | None = None
    """The name of the weights underneath an adapter."""

    @property
    def n_parameters(self) -> int:
        """Number of parameters, the tied head counted once and adapters included."""
        return sum(p.numel() for p in self.network.parameters())

    def add_lora(self, config: LoraConfig | None = None, seed: int = 0, **settings: object) -> int:
        """Place low-rank adapters (see `LoraConfig` for the settings); return how many linears carry one."""
        return self.network.add_lora(config, seed, **settings)

    def freeze_all_but_lora(self) -> None:
        """Let only adapter parameters learn."""
        self.network.freeze_all_but_lora()

    def save(self, folder: Path | str) -> None:
        """Write a Hugging Face folder, or for an adapter a PEFT folder; InputError if `folder` is in use."""
        folder = Path(folder)
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise InputError("folder", "exists and is not an empty folder", str(folder), "give a new folder")
        extras = Extras(task=self.task, template=self.template)
        if self.network.lora is None:
            save_model(folder, self.network, self.tokenizer, extras)
        else:
            extras.base, extras.base_sha256 = self.base, state_digest(self.network.state())
            save_adapter(folder, self.network, self.tokenizer, extras)

    def prompt_ids(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Return the token ids of a prompt in the model's template (as it stands if `raw` or without a template).

        Raises:
            InputError: a field is missing or is not text.
        """
        if raw or self.template is None:
            return self.tokenizer.encode(_plain(prompt))
        return self.tokenizer.encode(self.template.prompt(prompt_fields(prompt)))

    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, raw: bool = False, **sampling: object
    ) -> str | list[str] | list[list[str]]:
        """Answer a prompt or a list of prompts; `sampling` takes the settings of `SamplingConfig`.

        One prompt gives its text, or a list of n texts if n > 1; a list of prompts gives a list of those. `raw` leaves
        the template out. Greedy by default; with a temperature the same seed and prompt give the same text, alone or in
        a list (for different answers to one prompt, ask for n).

        Raises:
            InputError: an unknown or impossible setting, or a prompt that the template cannot use.
        """
        config = sampling_config(sampling)
        single = isinstance(prompts, str | Mapping)
        answers = self.answers([prompts] if isinstance(prompts, str | Mapping) else prompts, config, raw=raw)
        if config.n == 1:
            texts = [a.texts[0] for a in answers]
            return texts[0] if single else texts
        many = [a.texts for a in answers]
        return many[0] if single else many

    def answers(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig | None = None, *, raw: bool = False
    ) -> list[Answer]:
        """Answer each prompt `sampling.n` times (greedy, 128 tokens, once by default)."""
        sampling = sampling or SamplingConfig()
        engine = Engine(self.network, self.tokenizer)
        requests = [Request(self.prompt_ids(p, raw=raw), sampling) for p in prompts]
        found = []
        for prompt, request, done in zip(prompts, requests, engine.complete(requests), strict=True):
            kept, truncated = engine.fit(request.tokens, sampling.max_new_tokens)
            reasons = [c.finish_reason for c in done]
            found.append(Answer(prompt, [c.text for c in done], reasons, len(kept), truncated))
        return found

    def stream(self, prompt: Prompt, sampling: SamplingConfig | None = None, *, raw: bool = False) -> Iterator[str]:
        """Yield the answer to one prompt piece by piece; joined, the pieces are what `answers` gives."""
        sampling = sampling or SamplingConfig()
        if sampling.n != 1:
            raise InputError("n", "a stream is one answer", sampling.n, "use n = 1, or answers(...)")
        events = Engine(self.network, self.tokenizer).stream([Request(self.prompt_ids(prompt, raw=raw), sampling)])
        return (event.text for event in events if event.text)


def prompt_fields(prompt: Prompt) -> dict[str, str]:
    """Return the fields for a template: a text is the field `prompt`; the names of Alpaca and Dolly are understood.

    Raises:
        InputError: a value is not text.
    """
    if isinstance(prompt, str):
        return {"prompt": prompt}
    found = dict(prompt)
    for name, value in found.items():
        if not isinstance(value, str):
            raise InputError("prompt", f"the field {name!r} must be text", value)
    for name, others in _ALIASES.items():
        given = next((o for o in others if o in found), None)
        if name not in found and given is not None:
            found[name] = found[given]
    return found


def _plain(prompt: Prompt) -> str:
    given = prompt_fields(prompt)
    if "prompt" not in given:
        raise InputError("prompt", "the field 'prompt' is missing", sorted(given), "give {'prompt': ...} or a text")
    if given.get("input", "").strip():
        raise InputError(
            "prompt", "without a template an input has no place", given["input"], "write it into the prompt"
        )
    return given["prompt"]


def sampling_config(settings: Mapping[str, object]) -> SamplingConfig:
    """Return a checked `SamplingConfig` from keyword arguments; InputError lists the names there are."""
    defaults = SamplingConfig()
    known = [f.name for f in fields(SamplingConfig)]
    config = SamplingConfig()
    for name, value in settings.items():
        if name not in known:
            raise InputError(name, "no such sampling setting", None, f"the settings are {', '.join(known)}")
        default = getattr(defaults, name)
        if name == "stop":
            value = [value] if isinstance(value, str) else value
            if not isinstance(value, list | tuple) or not all(isinstance(s, str) for s in value):
                raise InputError(name, "must be a string or a list of strings", value)
            value = list(value)
        elif isinstance(value, bool) or not isinstance(value, int if isinstance(default, int) else (int, float)):
            raise InputError(name, f"must be {'an integer' if isinstance(default, int) else 'a number'}", value)
        setattr(config, name, value)
    config.check("")
    return config
