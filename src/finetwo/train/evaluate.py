"""Loss over a whole set: sum of losses over sum of tokens, for all tokens and for the learned ones; or of classes.

It knows no run folder and no optimizer. Its one invariant: the figures do not depend on batch size or packing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Sequence_
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from finetwo.data.batch import Batch, layout
from finetwo.data.loader import Sequences
from finetwo.data.sequences import IGNORE, Sequence
from finetwo.model.attend import Attend, Causal, Packed, Varlen, sent
from finetwo.model.loss import kept
from finetwo.model.native_attend import Native
from finetwo.model.network import Network
from finetwo.tasks import classes
from finetwo.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Evaluation:
    """Mean losses in nats per token over a set, and how much they were taken over."""

    loss: float
    """Over the tokens that carry loss in training (the answer and its end; for plain text every token)."""
    loss_all: float
    """Over all tokens, the prompt's included."""
    tokens: int
    tokens_all: int
    bits_per_byte: float
    """Over all tokens, per byte of their text (end-of-text has a loss but no bytes)."""
    records: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(min(self.loss, 700.0))

    def to_dict(self) -> dict[str, float]:
        """As JSON content."""
        return asdict(self)


@dataclass(frozen=True)
class ClassEvaluation:
    """How a classifier does on a set."""

    loss: float
    """Mean cross-entropy, nats a record (weighted as in training)."""
    accuracy: float
    macro_f1: float
    temperature: float
    """The divisor of the logits that fits their probabilities to this set."""
    ece: float
    """Expected calibration error before that temperature."""
    records: int

    def to_dict(self) -> dict[str, float]:
        """As JSON content."""
        return asdict(self)


@dataclass(frozen=True)
class Placed:
    """A batch on the device; what can be told of its layout was told on the CPU, so no GPU is waited for."""

    tokens: torch.Tensor
    """(B, T) int64, like the next two."""
    positions: torch.Tensor
    targets: torch.Tensor
    keep: torch.Tensor
    """(K,) the places of the targets that carry loss."""
    attend: Attend
    """The attention that the batch's layout needs."""


def place(batch: Batch, network: Network, precision: str) -> Placed:
    """Put a batch where the network is."""
    device = next(network.parameters()).device
    tokens, positions, targets = (torch.from_numpy(a) for a in (batch.tokens, batch.positions, batch.targets))
    attend: Attend = Causal()
    config = network.config
    width = config.n_embd // config.n_head
    if precision.startswith("bf16") and Native.usable(device, width):
        attend = Native(positions, None if batch.packed else attend)
    elif batch.packed:
        ragged = precision != "float32" and Varlen.usable(device, width)
        attend = Varlen.of(batch.positions, device) if ragged else Packed(positions, device)
    tokens, positions, targets, keep = sent([tokens, positions, targets, kept(targets)], device)
    return Placed(tokens, positions, targets, keep, attend)


_MIXED = {"bf16": torch.bfloat16, "fp16": torch.float16}


def lowered(precision: str, network: Network) -> AbstractContextManager[object]:
    """Mixed precision when asked for: float32 weights, matrix products in 16 bits."""
    return network.lowered(_MIXED[precision]) if precision in _MIXED else nullcontext()


@contextmanager
def _evaluating(network: Network, precision: str) -> Iterator[None]:
    """Dropout off, and mixed precision if asked, for as long as the network is looked at."""
    was_training = network.training
    network.eval()
    try:
        with lowered(precision, network):
            yield
    finally:
        network.train(was_training)


def _all_targets(sequence: Sequence) -> NDArray[np.int32]:
    """Every next token as a target; what follows the last token is known only if it is learned."""
    return np.append(sequence.tokens[1:], sequence.targets[-1]).astype(np.int32)


@torch.no_grad()
def evaluate(  # noqa: PLR0913 (keywords, each with its own meaning)
    network: Network,
    data: Sequences,
    batch_size: int,
    *,
    byte_lengths: NDArray[np.int64],
    precision: str = "float32",
    packing: bool | None = None,
    limit: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Evaluation | None:
    """Return the losses over `data` (its first `limit` sequences); None when `stopping()` became true.

    byte_lengths (V,) gives the bytes of each token's text, 0 for end-of-text.
    """
    count = len(data) if limit is None else min(limit, len(data))
    learned = every = 0.0
    n_learned = n_every = n_bytes = 0
    with _evaluating(network, precision):
        for i in range(0, count, batch_size):
            if stopping():
                return None
            chosen = [data.get(j, 0) for j in range(i, min(i + batch_size, count))]
            batch = layout([Sequence(s.tokens, _all_targets(s)) for s in chosen], packing)
            on = place(batch, network, precision)
            mask = layout(chosen, packing).targets.reshape(-1) != IGNORE
            real = batch.targets.reshape(-1) != IGNORE
            hidden = network.hidden(on.tokens, on.positions, on.attend)
            flat, wanted = hidden.reshape(-1, hidden.shape[-1]), on.targets.reshape(-1)
            losses = network.token_losses(flat.index_select(0, on.keep), wanted.index_select(0, on.keep))
            array = losses.cpu().double().numpy()
            every += float(array.sum())
            learned += float(array[mask[real]].sum())
            n_every += int(real.sum())
            n_learned += int(mask.sum())
            n_bytes += int(byte_lengths[batch.targets.reshape(-1)[real]].sum())
    bits = every / math.log(2) / n_bytes if n_bytes else math.nan
    return Evaluation(learned / max(1, n_learned), every / max(1, n_every), n_learned, n_every, bits, count)


@torch.no_grad()
def class_logits(
    network: Network,
    data: Sequences,
    batch_size: int,
    *,
    precision: str = "float32",
    packing: bool | None = None,
    limit: int | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Return logits (N, C) and true classes (N,) over `data` (its first `limit` records); None when stopped."""
    count = len(data) if limit is None else min(limit, len(data))
    logits: list[NDArray[np.float64]] = []
    truth: list[NDArray[np.int64]] = []
    with _evaluating(network, precision):
        for i in range(0, count, batch_size):
            if stopping():
                return None
            batch = layout([data.get(j, 0) for j in range(i, min(i + batch_size, count))], packing)
            on = place(batch, network, precision)
            found = network.class_logits(on.tokens, on.positions, on.targets, on.attend, on.keep)
            logits.append(found.cpu().double().numpy())
            truth.append(batch.targets[batch.targets != IGNORE])
    return np.concatenate(logits), np.concatenate(truth)


def class_evaluation(
    logits: NDArray[np.float64], truth: NDArray[np.int64], class_weights: Sequence_[float] | None = None
) -> ClassEvaluation:
    """Return the short figures of training for logits (N, C) and true classes (N,)."""
    weights = np.ones(logits.shape[1]) if class_weights is None else np.asarray(class_weights, dtype=np.float64)
    each = -np.log(np.maximum(classes.probabilities(logits)[np.arange(len(truth)), truth], 1e-300))
    table = classes.confusion(truth, logits.argmax(axis=1), logits.shape[1])
    sure = classes.probabilities(logits).max(axis=1)
    return ClassEvaluation(
        loss=float((weights[truth] * each).sum() / weights[truth].sum()),
        accuracy=float(classes.accuracy(table)),
        macro_f1=float(classes.macro_f1(table)),
        temperature=classes.fit_temperature(logits, truth),
        ece=classes.calibration_error(sure, logits.argmax(axis=1) == truth),
        records=len(truth),
    )


def byte_lengths(tokenizer: Tokenizer) -> NDArray[np.int64]:
    """Bytes of each token's text (V,), 0 for end-of-text."""
    lengths = np.array([len(tokenizer.bytes_of(i)) for i in range(tokenizer.vocab_size)], dtype=np.int64)
    lengths[tokenizer.eot] = 0
    return lengths
