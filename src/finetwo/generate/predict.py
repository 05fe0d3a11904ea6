"""A classifier's answers: for each text or pair of texts the classes with their probabilities.

It knows no files and no training. Its one invariant: what it says of a text does not depend on what else is asked at
the same time, nor on how much of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from finetwo.core.errors import InputError
from finetwo.data.batch import pack
from finetwo.data.sequences import Sequence, encode_document
from finetwo.model.attend import Packed
from finetwo.model.fused import make_ready
from finetwo.model.network import Network
from finetwo.model.quantised import Kind
from finetwo.store.models import open_model
from finetwo.tasks.classes import probabilities
from finetwo.tasks.registry import find_task
from finetwo.text.tokenizer import Tokenizer

_WINDOW = 1024
"""Documents sorted by length at a time, so that a batch has little padding inside attention."""


@dataclass(frozen=True)
class Prediction:
    """What a classifier says of one document."""

    label: str | None
    """The likeliest class; None where it abstains."""
    probability: float
    """Of the likeliest class, calibrated."""
    probabilities: dict[str, float]
    """Of every class, in the model's order."""
    truncated: bool
    """Whether the document was longer than the model reads, and lost its end."""


class Predictor:
    """A classifier that is asked many documents, a few at a time."""

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        *,
        task: str = "classify",
        temperature: float = 1.0,
        max_length: int | None = None,
    ) -> None:
        """`task` says how a document is written; documents are cut at `max_length` tokens (default: the context).

        Raises:
            InputError: the network is not a classifier.
        """
        if not network.config.labels:
            what = "is a language model, not a classifier"
            raise InputError("model", what, None, "tune one: finetwo train DATA --task classify")
        self.network, self.tokenizer, self.temperature = network, tokenizer, temperature
        self.labels = network.config.labels
        self.max_length = min(max_length or network.config.n_positions, network.config.n_positions)
        self._task = find_task(task)

    @property
    def pairs(self) -> bool:
        """Whether a document is a pair of texts."""
        return self._task.kind == "entail"

    def predict(
        self, documents: Iterable[Mapping[str, str]], *, batch_size: int = 32, abstain: float = 0.0
    ) -> Iterator[Prediction]:
        """Yield a prediction for each document, in order; below the probability `abstain` there is no label.

        A document has the fields of its task: `text`, or `first` and `second`.

        Raises:
            InputError: a field is missing or empty.
        """
        queue = enumerate(documents, start=1)
        while window := list(islice(queue, _WINDOW)):
            encoded = [self._encode(document, f"document {number}") for number, document in window]
            shares = probabilities(self._logits([s for s, _ in encoded], batch_size), self.temperature)
            for row, (_, truncated) in zip(shares, encoded, strict=True):
                best = int(row.argmax())
                sure = float(row[best])
                label = self.labels[best] if sure >= abstain else None
                yield Prediction(label, sure, dict(zip(self.labels, map(float, row), strict=True)), truncated)

    def _encode(self, document: Mapping[str, str], where: str) -> tuple[Sequence, bool]:
        wanted = ("first", "second") if self.pairs else ("text",)
        for name in wanted:
            value = document.get(name)
            if not isinstance(value, str) or not value.strip():
                raise InputError(where, f"the field {name!r} is missing or empty", value, "give a text to classify")
        sequence, fate = encode_document(self.tokenizer, self._task.write(document, None), self.max_length, 0)
        return sequence, fate == "truncated"

    @torch.inference_mode()
    def _logits(self, sequences: list[Sequence], batch_size: int) -> NDArray[np.float64]:
        """Logits (N, C) in the order of `sequences`, batched by length."""
        found = np.empty((len(sequences), len(self.labels)))
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        device = self.network.head_weight.device
        was_training = self.network.training
        self.network.eval()
        try:
            for i in range(0, len(order), batch_size):
                chosen = order[i : i + batch_size]
                batch = pack([sequences[j] for j in chosen])
                tokens, positions, targets = (
                    torch.from_numpy(a).to(device) for a in (batch.tokens, batch.positions, batch.targets)
                )
                logits = self.network.class_logits(tokens, positions, targets, Packed(positions))
                found[chosen] = logits.cpu().double().numpy()
        finally:
            self.network.train(was_training)
        return found


def document_of(item: object, pairs: bool, where: str) -> Mapping[str, str]:
    """Return the fields of a text, a pair (first, second), or a mapping that has them already.

    Raises:
        InputError: anything else, at `where`.
    """
    if isinstance(item, Mapping):
        return item
    if pairs:
        if isinstance(item, list | tuple) and len(item) == 2:
            return {"first": item[0], "second": item[1]}
        raise InputError(where, "this model reads pairs of texts", item, "give (first, second)")
    if isinstance(item, str):
        return {"text": item}
    raise InputError(where, "must be a text", item, "give a string")


def open_predictor(
    name: str,
    base: str | None = None,
    revision: str | None = None,
    device: str = "cpu",
    quantize: Kind | None = None,
) -> Predictor:
    """Open a classifier by name (a folder, a run, an adapter on its `base`, a hub name) on a torch device.

    `quantize`, int8 or int4, keeps its weights as codes, an adapter merged.

    Raises:
        InputError: it is not there, damaged, or no classifier.
    """
    opened = open_model(name, base, revision)
    if not opened.network.config.labels:
        what = "is a language model, not a classifier"
        raise InputError(name, what, None, "tune one: finetwo train DATA --task classify")
    opened.network.to(device)
    make_ready(opened.network, quantize)
    extras = opened.extras
    return Predictor(
        opened.network.eval(),
        opened.tokenizer,
        task=extras.task or "classify",
        temperature=extras.temperature,
        max_length=extras.max_length,
    )
