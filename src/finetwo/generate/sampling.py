"""Logits to the next token, each row by its own settings.

The steps are those of Hugging Face's `generate`, in its order: repetition penalty, temperature, top-k, top-p, min-p,
draw. Invariant: a row's token depends on its own logits, settings, prompt and step, never on the other rows.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from finetwo.core.config import SamplingConfig
from finetwo.core.errors import NumericError

GREEDY_BELOW = 1e-5
"""Temperatures below this are greedy: dividing by them would overflow float32."""
_INF = float("inf")


def penalise(logits: Tensor, seen: Tensor, penalty: Tensor) -> Tensor:
    """Divide positive, multiply negative logits of `seen` tokens (R, V) bool by `penalty` (R,) (CTRL, Keskar 2019)."""
    by = penalty[:, None]
    return torch.where(seen, torch.where(logits < 0, logits * by, logits / by), logits)


def keep_top_k(logits: Tensor, k: Tensor) -> Tensor:
    """Set all but the `k` (R,) int64 largest logits of each row to -inf, ties kept; 0 keeps the row as it is."""
    limit = k.clamp(max=logits.shape[1])
    top = logits.topk(max(1, int(limit.max())), dim=-1).values
    least = top.gather(1, (limit - 1).clamp(min=0)[:, None])
    return logits.masked_fill((logits < least) & (limit > 0)[:, None], -_INF)


def keep_top_p(logits: Tensor, p: Tensor) -> Tensor:
    """Keep the smallest set of likeliest tokens whose probability reaches `p` (R,) float64, the crossing one included.

    The sum runs from the unlikeliest token, as in Hugging Face's TopPLogitsWarper; 1 keeps the row as it is.
    """
    ordered, index = torch.sort(logits, descending=False)
    mass = ordered.softmax(dim=-1).cumsum(dim=-1)
    drop = (mass <= (1 - p).to(mass.dtype)[:, None]) & (p < 1)[:, None]
    drop[:, -1] = False
    return logits.masked_fill(drop.scatter(1, index, drop), -_INF)


def keep_min_p(logits: Tensor, p: Tensor) -> Tensor:
    """Set tokens less likely than `p` (R,) times the likeliest of their row to -inf; 0 keeps the row as it is."""
    probabilities = logits.softmax(dim=-1)
    top = probabilities.amax(dim=-1, keepdim=True)
    return logits.masked_fill(probabilities < p.to(top.dtype)[:, None] * top, -_INF)


def warp(logits: Tensor, settings: Sequence[SamplingConfig]) -> Tensor:
    """Apply temperature, top-k, top-p and min-p to logits (R, V), one setting per row; dropped tokens become -inf."""

    def column(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)

    logits = logits / column([s.temperature for s in settings]).to(logits.dtype)[:, None]
    if any(s.top_k > 0 for s in settings):
        # A row's k beyond any vocabulary must still fit int64.
        ks = [min(s.top_k, logits.shape[1]) for s in settings]
        logits = keep_top_k(logits, torch.tensor(ks, device=logits.device))
    if any(s.top_p < 1 for s in settings):
        logits = keep_top_p(logits, column([s.top_p for s in settings]))
    if any(s.min_p > 0 for s in settings):
        logits = keep_min_p(logits, column([s.min_p for s in settings]))
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Return the token (R,) at the quantile `uniform` (R,) float64 in [0, 1) of each row's distribution."""
    mass = logits.softmax(dim=-1).double().cumsum(dim=-1)
    return torch.searchsorted(mass, uniform[:, None] * mass[:, -1:], right=True).squeeze(1)


def stream_key(seed: int, sample: int, prompt: Sequence[int]) -> bytes:
    """Name the random stream of one answer: its seed, its number among the prompt's answers, its prompt's tokens.

    Not its place in a batch, so that an answer is the same alone and in company.
    """
    content = b"".join(i.to_bytes(8, "little") for i in (seed, sample, *prompt))
    return hashlib.blake2b(content, digest_size=32).digest()


def uniform(key: bytes, step: int) -> float:
    """Return the number in [0, 1) of a stream's `step`: a counter hashed (BLAKE2b), the same on every machine."""
    digest = hashlib.blake2b(step.to_bytes(8, "little"), key=key, digest_size=6).digest()
    return int.from_bytes(digest, "little") / 2**48  # 48 bits: times a float64 total it stays below that total


class Sampler:
    """Chooses the next token of the sequences that sit in slots."""

    def __init__(self, slots: int, vocab: int, device: torch.device) -> None:
        # Apple's GPUs have no float64, which the cut-offs need: there the choice is made on the CPU.
        self._shape, self._device = (slots, vocab), torch.device("cpu") if device.type == "mps" else device
        self._settings = [SamplingConfig()] * slots
        self._keys, self._steps = [b""] * slots, [0] * slots
        self._seen: Tensor | None = None  # (slots, V) bool, once somebody asks for a repetition penalty

    @torch.inference_mode()
    def admit(self, slot: int, settings: SamplingConfig, prompt: Sequence[int], sample: int) -> None:
        """Put a new sequence in `slot`: answer number `sample` to `prompt` (token ids)."""
        self._settings[slot], self._steps[slot] = settings, 0
        self._keys[slot] = stream_key(settings.seed, sample, prompt)
        if settings.repetition_penalty != 1.0:
            if self._seen is None:
                self._seen = torch.zeros(self._shape, dtype=torch.bool, device=self._device)
            self._seen[slot] = False
            self._seen[slot, torch.tensor(prompt, device=self._device)] = True

    @torch.inference_mode()
    def choose(self, logits: Tensor, slots: Sequence[int]) -> list[int]:
        """Return the next token of each of `slots` from logits (len(slots), V) float32.

        Raises:
            NumericError: a row's logits are NaN or infinite.
        """
        logits = logits.to(self._device)
        settings = [self._settings[s] for s in slots]
        penalty = [s.repetition_penalty for s in settings]
        if self._seen is not None and any(p != 1.0 for p in penalty):
            logits = penalise(logits, self._seen[list(slots)], torch.tensor(penalty, device=self._device))
        top, tokens = logits.max(dim=-1)
        if not bool(torch.isfinite(top).all()):
            fix = "the weights are damaged or training diverged; try another checkpoint"
            raise NumericError("generation", "the network's output is not finite", fix=fix)
        hot = [i for i, s in enumerate(settings) if s.temperature >= GREEDY_BELOW]
        if hot:
            chosen = logits if len(hot) == len(slots) else logits[hot]
            numbers = [uniform(self._keys[slots[i]], self._steps[slots[i]]) for i in hot]
            at = torch.tensor(numbers, dtype=torch.float64, device=self._device)
            tokens[hot] = draw(warp(chosen, [settings[i] for i in hot]), at)
        if self._seen is not None:
            self._seen[list(slots), tokens] = True
        for slot in slots:
            self._steps[slot] += 1
        result: list[int] = tokens.tolist()
        return result
