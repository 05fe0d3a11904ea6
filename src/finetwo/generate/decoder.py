"""The network with slots: a prompt goes into a slot, then every step gives the logits after one more token.

It knows neither text nor sampling nor when a sequence ends. Invariant: in float32 on CPU the logits of a slot do not
depend, bit for bit, on how many other slots are in use or on what they hold.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from finetwo.generate.replay import Replay
from finetwo.model.cached import BLOCK, Decode, Fill, KVCache, round_up
from finetwo.model.fused import Fused
from finetwo.model.mixed import TILE
from finetwo.model.network import Network

ROWS = 8
"""Decoding computes a multiple of this many rows: a float32 product of 1 row rounds differently from one of 8."""


_SPAN = 256
"""Positions that a recorded step looks at come in such numbers."""


class Decoder:
    """Prefill and decode of sequences in slots.

    A prompt is computed alone, so its shape is its own. A step computes the first 8, 16, ... slots that cover the live
    ones if `rows_agree` finds that equal bits come out of that, else group by group of 8.
    """

    def __init__(self, network: Network, vocab: int, slots: int, capacity: int) -> None:
        """`vocab`: ids from here on are never produced; `slots`: rounded up to a multiple of 8; `capacity`: tokens."""
        weight = network.head_weight.detach()
        self._network, self._vocab = network, vocab
        self.device = weight.device
        self.slots = round_up(slots, ROWS)
        self._cache = KVCache(network.config, self.slots, capacity, device=weight.device, dtype=weight.dtype)
        self._lengths, self._tokens = [0] * self.slots, [0] * self.slots
        self._owners: list[int | None] = [None] * self.slots
        self._after_prompt: Tensor = weight.new_empty(0)
        gpu = weight.device.type == "cuda"
        fill = -vocab % TILE if gpu and weight.dtype != torch.float32 else 0
        self._head = pad(weight[:vocab], (0, 0, 0, fill)) if fill else weight[:vocab]
        self._replay = Replay(self._compute, self.slots, weight.device) if gpu else None
        promised = weight.device.type == "cpu" and weight.dtype == torch.float32
        self._together = self.slots == ROWS or not promised or rows_agree(network, self.slots)

    @torch.inference_mode()
    def start(self, slot: int, owner: int, prompt: Sequence[int]) -> Tensor:
        """Put a prompt (at least one token id) in `slot`; return the logits after it, (1, V) float32.

        `owner` names the prompt: several slots started one after the other with the same owner compute it once.
        """
        if owner in self._owners:
            source = self._owners.index(owner)
            if source != slot:
                self._cache.copy(source, slot, len(prompt))
        else:
            tokens = torch.tensor([prompt], device=self.device)
            positions = torch.arange(len(prompt), device=self.device)[None]
            hidden = self._network.transformer(tokens, positions, Fill(self._cache, slot))
            self._after_prompt = self._logits(hidden[:, -1])
        self._owners[slot], self._lengths[slot], self._tokens[slot] = owner, len(prompt), 0
        return self._after_prompt

    @torch.inference_mode()
    def step(self, tokens: Mapping[int, int]) -> Tensor:
        """Append one token to each slot given (slot -> id, slots ascending); return the logits, (N, V) float32.

        Slots in between are computed along. Each writes only at the place after its own last token, so that a prompt
        that further samples will start from stays whole.
        """
        for slot, token in tokens.items():
            self._tokens[slot] = token
        if self._replay is not None:
            return self._replayed(self._replay, list(tokens))
        ids = torch.tensor(self._tokens, device=self.device)
        positions = torch.tensor(self._lengths, device=self.device)
        span = round_up(max(self._lengths[slot] for slot in tokens) + 1, BLOCK)
        parts = []
        for first, count in self._groups(list(tokens)):
            rows = slice(first, first + count)
            live = [slot - first for slot in tokens if first <= slot < first + count]
            attend = Decode(self._cache, first, positions[rows][: live[-1] + 1], span)
            hidden = self._network.transformer(ids[rows, None], positions[rows, None], attend)
            logits = self._logits(hidden[:, 0])
            parts.append(logits if len(live) == count else logits[live])
        for slot in tokens:
            self._lengths[slot] += 1
        return torch.cat(parts) if len(parts) > 1 else parts[0]

    def _replayed(self, replay: Replay, live: list[int]) -> Tensor:
        """The step on a GPU, of which few shapes are recorded: rows and positions are taken in coarse numbers."""
        rows = min(self.slots, max(ROWS, 1 << live[-1].bit_length()))
        span = min(self._cache.capacity, round_up(max(self._lengths[slot] for slot in live) + 1, _SPAN))
        logits = replay(self._tokens, self._lengths, rows, span)
        for slot in live:
            self._lengths[slot] += 1
        return logits if len(live) == rows else logits[live]

    def _compute(self, ids: Tensor, places: Tensor, rows: int, span: int) -> Tensor:
        """One token in each of the first `rows` slots."""
        attend = Decode(self._cache, 0, places, span)
        return self._logits(self._network.transformer(ids[:, None], places[:, None], attend)[:, 0])

    def _logits(self, hidden: Tensor) -> Tensor:
        """(rows, D) -> (rows, V) float32."""
        if self._network.quantised is not None:
            return self._network.logits(hidden)[:, : self._vocab].float()
        return (hidden @ self._head.t())[:, : self._vocab].float()

    def _groups(self, live: list[int]) -> Iterator[tuple[int, int]]:
        """The (first slot, number of slots) to compute so that all of `live` are."""
        if self._together:
            yield 0, round_up(max(live) + 1, ROWS)
            return
        for first in sorted({slot // ROWS * ROWS for slot in live}):
            yield first, ROWS


_WORTH = 8
"""Tokens in common below which copying a slot does not pay."""


class FusedDecoder:
    """The same by the compiled kernel, each step one call on the live slots alone."""

    def __init__(self, network: Network, vocab: int, slots: int, capacity: int) -> None:
        """As of `Decoder`; the kernel must be usable for the network."""
        self.device, self.slots = torch.device("cpu"), slots
        self._fused = Fused(network, vocab, slots, capacity)
        self._held: list[list[int]] = [[] for _ in range(slots)]
        self._owners: list[int | None] = [None] * slots
        self._after_prompt = torch.empty(0)

    @torch.inference_mode()
    def start(self, slot: int, owner: int, prompt: Sequence[int]) -> Tensor:
        """Put a prompt (at least one token id) in `slot`; return the logits after it, (1, V) float32.

        `owner` names the prompt: several slots started one after the other with the same owner compute it once. What a
        prompt begins with in common with a slot's tokens, such as a template's words, is taken over from there.
        """
        if owner in self._owners:
            source, known = self._owners.index(owner), len(prompt)
        else:
            source, known = self._longest(prompt)
        if source != slot and known:
            self._fused.copy(source, slot)
        if owner not in self._owners:
            self._after_prompt = self._fused.prompt(slot, prompt, known)
        self._owners[slot], self._held[slot] = owner, list(prompt)
        return self._after_prompt

    def _longest(self, prompt: Sequence[int]) -> tuple[int, int]:
        """The slot that begins most like `prompt`, and how many tokens they share; never all of the prompt."""
        shared = [
            next((i for i, (a, b) in enumerate(zip(held, prompt[:-1], strict=False)) if a != b), least)
            for held in self._held
            for least in (min(len(held), len(prompt) - 1),)
        ]
        source = max(range(self.slots), key=shared.__getitem__)
        return source, shared[source] if shared[source] >= _WORTH else 0

    @torch.inference_mode()
    def step(self, tokens: Mapping[int, int]) -> Tensor:
        """Append one token to each slot given (slot -> id, slots ascending); return the logits, (N, V) float32."""
        slots = list(tokens)
        places = [len(self._held[s]) for s in slots]
        logits = self._fused.forward(list(tokens.values()), places, slots, range(len(slots)))
        for slot, token in tokens.items():
            self._held[slot].append(token)
        return logits


@torch.inference_mode()
def rows_agree(network: Network, rows: int) -> bool:
    """Whether this machine gives a row the same bits among 16, 24, ... `rows` rows as among 8.

    Matrix libraries choose their kernel by shape, so it is tried on this network's own layers, in some five steps'
    time; attention is left out, being a product per slot anyway.
    """

    def only_self(layer: int, q: Tensor, k: Tensor, v: Tensor, scale: float, dropout: float) -> Tensor:
        return v

    def logits(ids: Tensor) -> Tensor:
        hidden = network.transformer(ids[:, None], torch.zeros_like(ids)[:, None], only_self)
        out: Tensor = hidden[:, 0] @ network.head_weight.t()
        return out

    ids = torch.arange(rows, device=network.head_weight.device) % network.config.vocab_size
    eights = torch.cat([logits(part) for part in ids.split(ROWS)])
    return all(torch.equal(logits(ids[:n]), eights[:n]) for n in range(2 * ROWS, rows + 1, ROWS))
