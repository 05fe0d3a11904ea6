"""Answers many prompts at once, piece by piece: sequences enter slots as these fall free and leave when they end.

It knows nothing of templates or of who reads. Its invariants: an answer is the same alone and in company (bit for bit
in float32), and the pieces of the stream joined are the answer; there is no other way to generate.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finetwo.core.config import SamplingConfig
from finetwo.core.errors import InputError
from finetwo.generate.decoder import ROWS, Decoder, FusedDecoder
from finetwo.generate.sampling import Sampler
from finetwo.generate.stops import AnswerText
from finetwo.model.cached import KVCache, round_up
from finetwo.model.fused import Fused, usable
from finetwo.model.network import Network
from finetwo.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length"]
"""stop: end-of-text or a stop string; length: max_new_tokens reached, or the context is full."""
_CACHE_BYTES = 1 << 30
"""More than 8 slots are used only as far as their cache stays below this."""


@dataclass(frozen=True)
class Request:
    """One prompt as token ids, to be answered `sampling.n` times."""

    tokens: Sequence[int]
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(frozen=True)
class Event:
    """One step of one answer."""

    request: int
    """Place of the request in the list given."""
    sample: int
    """Which of the request's n answers."""
    token: int
    """The id chosen; for an answer that ends by it, the end-of-text id."""
    text: str
    """Text that is settled now; often empty, as characters and possible stop strings are not split."""
    finish_reason: FinishReason | None
    """None while the answer goes on; the event that has a reason is the answer's last."""
    truncated_prompt: bool = False
    """Whether the prompt was too long and lost its beginning."""


@dataclass
class Completion:
    """One finished answer: the joined pieces of its stream."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    """All ids chosen, a closing end-of-text and a stop string's tokens included."""
    finish_reason: FinishReason = "length"
    truncated_prompt: bool = False


@dataclass
class _Answer:
    """An answer under way."""

    request: int
    sample: int
    prompt: list[int]
    truncated: bool
    sampling: SamplingConfig
    room: int
    text: AnswerText


class Engine:
    """Generates with a key-value cache, several answers side by side."""

    def __init__(self, network: Network, tokenizer: Tokenizer, *, max_slots: int = 32) -> None:
        """At most `max_slots` answers are computed at a time; it has no influence on what they are.

        Raises:
            InputError: the network is a classifier, which has no language head.
        """
        if network.config.labels:
            raise InputError("model", "is a classifier, it does not write text", None, "use finetwo predict")
        self.network, self.tokenizer, self.max_slots = network, tokenizer, max_slots
        self.vocab = min(network.config.vocab_size, tokenizer.vocab_size)

    def fit(self, tokens: Sequence[int], max_new_tokens: int = 1) -> tuple[list[int], bool]:
        """Return the prompt that the network reads, and whether it lost its beginning.

        The window is the context length. A prompt that leaves no place for a new token keeps its end, so much of it
        that `max_new_tokens` fit behind it, but at least half a context; an empty one becomes end-of-text.
        """
        window = self.network.config.n_positions
        if len(tokens) < window:
            return list(tokens) or [self.tokenizer.eot], False
        most = max(1, window - max(1, min(max_new_tokens, window // 2)))
        return list(tokens[-most:]), True

    def stream(self, requests: Sequence[Request]) -> Iterator[Event]:
        """Yield every answer's steps as they are computed; answers of a group alternate.

        The network is in evaluation mode while the iterator is in use. An answer ends at end-of-text or a stop string
        ("stop"), after max_new_tokens, or when prompt and answer together fill the context ("length").

        Raises:
            InputError: a setting out of range, or a token id that the network does not have.
            NumericError: the network's output is not finite.
        """
        return self._run([a for i, request in enumerate(requests) for a in self._answers(i, request)])

    def complete(self, requests: Sequence[Request]) -> list[list[Completion]]:
        """Return for each request its n answers: the stream, joined."""
        done = [[Completion() for _ in range(r.sampling.n)] for r in requests]
        for event in self.stream(requests):
            completion = done[event.request][event.sample]
            completion.text += event.text
            completion.tokens.append(event.token)
            completion.finish_reason = event.finish_reason or completion.finish_reason
            completion.truncated_prompt = event.truncated_prompt
        return done

    def _answers(self, index: int, request: Request) -> list[_Answer]:
        sampling = request.sampling
        sampling.check()
        wrong = next((t for t in request.tokens if not 0 <= t < self.network.config.vocab_size), None)
        if wrong is not None:
            fix = "use the tokenizer that belongs to the model"
            raise InputError("prompt", f"a token id outside the vocabulary of {self.vocab}", wrong, fix)
        prompt, truncated = self.fit(request.tokens, sampling.max_new_tokens)
        room = min(sampling.max_new_tokens, max(1, self.network.config.n_positions - len(prompt)))
        return [
            _Answer(index, sample, prompt, truncated, sampling, room, AnswerText(self.tokenizer, sampling.stop))
            for sample in range(sampling.n)
        ]

    def _decoder(self, answers: Sequence[_Answer]) -> Decoder | FusedDecoder:
        capacity = max(len(a.prompt) + a.room for a in answers)
        if usable(self.network):
            affordable = max(ROWS, _CACHE_BYTES // Fused.slot_bytes(self.network.config, capacity))
            slots = min(self.max_slots, len(answers), affordable)
            return FusedDecoder(self.network, self.vocab, slots, capacity)
        each = KVCache.slot_bytes(self.network.config, capacity, self.network.head_weight.dtype)
        affordable = max(ROWS, _CACHE_BYTES // each // ROWS * ROWS)
        slots = min(round_up(min(self.max_slots, len(answers)), ROWS), affordable)
        return Decoder(self.network, self.vocab, slots, capacity)

    def _run(self, answers: list[_Answer]) -> Iterator[Event]:
        if not answers:
            return
        was_training = self.network.training
        self.network.eval()
        try:
            decoder = self._decoder(answers)
            sampler = Sampler(decoder.slots, self.vocab, decoder.device)
            waiting, live, last = deque(answers), dict[int, _Answer](), dict[int, int]()
            while waiting or live:
                for slot in range(decoder.slots):
                    while waiting and slot not in live:
                        answer = live[slot] = waiting.popleft()
                        sampler.admit(slot, answer.sampling, answer.prompt, answer.sample)
                        logits = decoder.start(slot, answer.request, answer.prompt)
                        (last[slot],) = sampler.choose(logits, [slot])
                        yield self._take(live, slot, last[slot])
                if live:
                    slots = sorted(live)
                    chosen = sampler.choose(decoder.step({s: last[s] for s in slots}), slots)
                    for slot, token in zip(slots, chosen, strict=True):
                        last[slot] = token
                        yield self._take(live, slot, token)
        finally:
            self.network.train(was_training)

    def _take(self, live: dict[int, _Answer], slot: int, token: int) -> Event:
        """Add `token` to the answer in `slot`, which falls free if that was the last."""
        answer = live[slot]
        answer.room -= 1
        reason: FinishReason | None = None
        if token == self.tokenizer.eot:
            text, reason = answer.text.flush(), "stop"
        else:
            text = answer.text.push(token)
            if not answer.text.stopped and answer.room == 0:
                text, reason = text + answer.text.flush(), "length"
            if answer.text.stopped:
                reason = "stop"
        if reason:
            del live[slot]
        return Event(answer.request, answer.sample, token, text, reason, answer.truncated)
