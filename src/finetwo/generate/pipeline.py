"""The user's model: a network with its tokenizer and its prompt template, asked in words and answering in words.

It knows no files and no training. Its one invariant: the prompt it writes for a record is, token for token, the prompt
that training wrote for that record.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import cast

from finetwo.core.config import LoraConfig, SamplingConfig
from finetwo.core.errors import InputError
from finetwo.generate.engine import Engine, FinishReason, Request
from finetwo.generate.predict import Prediction, Predictor, document_of
from finetwo.model.fused import matrices
from finetwo.model.network import Network
from finetwo.model.stored import count_parameters
from finetwo.store.folder import Extras, base_digest, save_model
from finetwo.store.peft import save_adapter
from finetwo.text.template import Template, Turn, parse_turns
from finetwo.text.tokenizer import Tokenizer

Conversation = Sequence[Turn | Mapping[str, str]]
"""Turns ({"role": ..., "content": ...}, or as ShareGPT has them); the last is the user's."""
Prompt = str | Mapping[str, str] | Conversation
"""A text, the fields of a record (`prompt` and `input`, also by the names of Alpaca and Dolly), or a conversation."""
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
    dropped_turns: int = 0
    """How many of the oldest turns of a conversation had no place in the context; `truncated` is set then too."""
    prompt_ids: tuple[int, ...] = ()
    """The ids of the prompt as the network read them."""
    ids: tuple[tuple[int, ...], ...] = ()
    """The ids of each text, a closing end-of-text and a stop string's tokens included."""


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
    temperature: float = 1.0
    """Of a classifier: the divisor of its logits that calibrates its probabilities."""
    max_length: int | None = None
    """Of a classifier: the longest document it was trained on, in tokens."""

    @property
    def n_parameters(self) -> int:
        """Number of parameters, the tied head counted once and adapters included."""
        stored = sum(m.outputs * m.inputs for m in matrices(self.network))
        return stored + count_parameters(self.network)

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
        extras = Extras(
            task=self.task, template=self.template, temperature=self.temperature, max_length=self.max_length
        )
        if self.network.lora is None:
            save_model(folder, self.network, self.tokenizer, extras)
        else:
            extras.base, extras.base_sha256 = self.base, base_digest(self.network)
            save_adapter(folder, self.network, self.tokenizer, extras)

    def predict(
        self, documents: str | Mapping[str, str] | Sequence[object], *, abstain: float = 0.0
    ) -> list[Prediction]:
        """Tell the class of a text, or of a list of texts (for a model of pairs, a list of two texts each).

        Below the probability `abstain` a prediction has no label.

        Raises:
            InputError: the model is no classifier, or a document is empty or of the wrong form.
        """
        predictor = Predictor(
            self.network,
            self.tokenizer,
            task=self.task or "classify",
            temperature=self.temperature,
            max_length=self.max_length,
        )
        items = [documents] if isinstance(documents, str | Mapping) else documents
        asked = [document_of(item, predictor.pairs, f"documents[{i}]") for i, item in enumerate(items)]
        return list(predictor.predict(asked, abstain=abstain))

    def prompt_ids(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """Return the token ids of a prompt in the model's template (as it stands if `raw` or without a template).

        A conversation is written piece by piece as training does, each answer closed by end-of-text.

        Raises:
            InputError: a field is missing or is not text, or there is a conversation and no template.
        """
        if not isinstance(prompt, str | Mapping):
            return self._turn_ids(self._template_for_turns(raw), parse_turns(prompt, "prompt", answered=False))
        if raw or self.template is None:
            return self.tokenizer.encode(_plain(prompt))
        return self.tokenizer.encode(self.template.prompt(prompt_fields(prompt)))

    def _turn_ids(self, template: Template, turns: Sequence[Turn]) -> list[int]:
        ids: list[int] = []
        for text, is_answer in template.conversation(turns):
            ids += self.tokenizer.encode(text) + ([self.tokenizer.eot] if is_answer else [])
        return ids

    def _template_for_turns(self, raw: bool) -> Template:
        if raw or self.template is None:
            why = "with raw" if raw else f"{self.name} has none"
            fix = "ask in one text, or use a model tuned on instructions or conversations"
            raise InputError("prompt", f"a conversation needs a template, and {why}", None, fix)
        return self.template

    def fit_turns(self, prompt: Conversation, max_new_tokens: int = 128) -> tuple[list[Turn], int]:
        """Return the turns of a conversation that have a place in the context, and how many of the oldest have none.

        They leave whole, a question with its answer, until `max_new_tokens` (at most half a context) have room behind
        the rest; the system's turn and the last question stay.

        Raises:
            InputError: as `prompt_ids`.
        """
        template = self._template_for_turns(raw=False)
        turns = parse_turns(prompt, "prompt", answered=False)
        system = [turn for turn in turns if turn.role == "system"]
        rest = turns[len(system) :]
        window = self.network.config.n_positions
        room = window - max(1, min(max_new_tokens, window // 2))
        lengths = [len(self._turn_ids(template, [turn])) for turn in rest]
        left = room - len(self._turn_ids(template, system)) - sum(lengths)
        first = 0
        while left < 0 and first + 2 < len(rest):
            left += sum(lengths[first : first + 2])
            first += 2
        return [*system, *rest[first:]], first

    def generate(
        self, prompts: Prompt | Sequence[Prompt], *, raw: bool = False, **sampling: object
    ) -> str | list[str] | list[list[str]]:
        """Answer a prompt or a list of prompts; `sampling` takes the settings of `SamplingConfig`.

        One prompt gives its text, or a list of n texts if n > 1; a list of prompts gives a list of those; a list of
        turns is one prompt. `raw` leaves the template out. Greedy by default; with a temperature the same seed and
        prompt give the same text, alone or in a list (for different answers to one prompt, ask for n).

        Raises:
            InputError: an unknown or impossible setting, or a prompt that the template cannot use.
        """
        config = sampling_config(sampling)
        single = isinstance(prompts, str | Mapping) or any(map(_is_turn, prompts))
        asked = [cast(Prompt, prompts)] if single else cast(Sequence[Prompt], prompts)
        answers = self.answers(asked, config, raw=raw)
        if config.n == 1:
            texts = [a.texts[0] for a in answers]
            return texts[0] if single else texts
        many = [a.texts for a in answers]
        return many[0] if single else many

    def answers(
        self, prompts: Sequence[Prompt], sampling: SamplingConfig | None = None, *, raw: bool = False
    ) -> list[Answer]:
        """Answer each prompt `sampling.n` times (greedy, 128 tokens, once by default).

        A conversation loses its oldest turns where it would leave no room for the answer (see `fit_turns`).
        """
        sampling = sampling or SamplingConfig()
        engine = Engine(self.network, self.tokenizer)
        fitted = [self._fit(p, sampling, raw) for p in prompts]
        requests = [Request(ids, sampling) for ids, _ in fitted]
        found = []
        for prompt, (ids, dropped), done in zip(prompts, fitted, engine.complete(requests), strict=True):
            kept, truncated = engine.fit(ids, sampling.max_new_tokens)
            texts, reasons = [c.text for c in done], [c.finish_reason for c in done]
            written = tuple(tuple(c.tokens) for c in done)
            cut = truncated or dropped > 0
            found.append(Answer(prompt, texts, reasons, len(kept), cut, dropped, tuple(kept), written))
        return found

    def _fit(self, prompt: Prompt, sampling: SamplingConfig, raw: bool) -> tuple[list[int], int]:
        """The token ids of a prompt, of a conversation without the turns that have no place, and how many those are."""
        if raw or isinstance(prompt, str | Mapping):
            return self.prompt_ids(prompt, raw=raw), 0
        turns, dropped = self.fit_turns(prompt, sampling.max_new_tokens)
        return self.prompt_ids(turns), dropped

    def stream(self, prompt: Prompt, sampling: SamplingConfig | None = None, *, raw: bool = False) -> Iterator[str]:
        """Yield the answer to one prompt piece by piece; joined, the pieces are what `answers` gives."""
        sampling = sampling or SamplingConfig()
        if sampling.n != 1:
            raise InputError("n", "a stream is one answer", sampling.n, "use n = 1, or answers(...)")
        request = Request(self._fit(prompt, sampling, raw)[0], sampling)
        events = Engine(self.network, self.tokenizer).stream([request])
        return (event.text for event in events if event.text)


def _is_turn(item: object) -> bool:
    """Whether `item` is a turn of a conversation rather than a record to be asked about."""
    return isinstance(item, Turn) or (isinstance(item, Mapping) and ("role" in item or "from" in item))


def prompt_fields(prompt: str | Mapping[str, str]) -> dict[str, str]:
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


def _plain(prompt: str | Mapping[str, str]) -> str:
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
