"""The shape of a GPT-2 network, in the words of Hugging Face's `config.json`.

It knows no tensors. Its one invariant: a configuration that was read describes exactly the arithmetic that will
run; whatever FineTwo does not implement is refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from finetwo.core.errors import InputError

ACTIVATIONS = ("gelu_new", "gelu", "relu", "gelu_pytorch_tanh")
_LIMITS = {"vocab_size": 1_000_000, "n_positions": 1_048_576, "n_embd": 65_536, "n_layer": 1_024, "n_head": 1_024}
_POST_NORM = "gpt2-post-norm"  # of our own, so that transformers does not run such a model as the pre-norm one
_MEAN_POOLED = "gpt2-mean-pooled"  # likewise: transformers' classifier reads the last token
_CLASSIFIER = "GPT2ForSequenceClassification"
Pooling = Literal["last", "mean"]
"""What a classifier reads: the hidden state of the last real token, or the mean over all of them."""
# Keys that change the arithmetic, with the only value implemented here.
_ONLY: dict[str, tuple[Any, ...]] = {
    "add_cross_attention": (False, None),
    "is_encoder_decoder": (False, None),
    "tie_word_embeddings": (True, None),
    "quantization_config": (None,),
    "auto_map": (None,),
    "trust_remote_code": (False, None),
    "pruned_heads": ({}, None),
    "is_decoder": (True, False, None),
}


def _is_whole(value: object, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


@dataclass(frozen=True)
class GPT2Config:
    """Shape and constants of a GPT-2 network; the defaults are the 124M model's."""

    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    n_inner: int | None = None
    activation_function: str = "gelu_new"
    layer_norm_epsilon: float = 1e-5
    initializer_range: float = 0.02
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False
    eos_token_id: int = 50256
    post_norm: bool = False
    """Layer norms after the residual sums, as the original Transformer; a pre-training experiment."""
    labels: tuple[str, ...] = ()
    """Names of the classes, in the order of the head's rows; empty for a language model."""
    pooling: Pooling = "last"

    @property
    def inner(self) -> int:
        """Width of the feed-forward layer."""
        return self.n_inner if self.n_inner is not None else 4 * self.n_embd

    @property
    def parameters(self) -> int:
        """Number of parameters, the tied head counted once."""
        d, f = self.n_embd, self.inner
        block = 4 * d + (3 * d * d + 3 * d) + (d * d + d) + (d * f + f) + (f * d + d)
        return (self.vocab_size + self.n_positions) * d + self.n_layer * block + 2 * d + len(self.labels) * d

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], where: str = "config.json") -> GPT2Config:
        """Read a Hugging Face `config.json`; InputError names the key that is missing, wrong or unsupported."""
        kind = content.get("model_type", "gpt2")
        if kind not in ("gpt2", _POST_NORM, _MEAN_POOLED):
            raise InputError(
                where, "model_type is not of the GPT-2 architecture", kind, "FineTwo loads model_type gpt2"
            )
        for key, allowed in _ONLY.items():
            if content.get(key, allowed[0]) not in allowed:
                raise InputError(where, f"{key} is not supported", content[key], f"only {key} = {allowed[0]} is")
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in content.items() if k in known and v is not None}
        for key in ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"):
            if key not in values:
                raise InputError(
                    where, f"the key {key} is missing", None, "take config.json from the model's own repository"
                )
        old = content.get("n_ctx")
        if old is not None and (isinstance(old, bool) or not isinstance(old, int)):
            raise InputError(where, "n_ctx must be an integer", old, "leave n_ctx out: n_positions says the same")
        values["eos_token_id"] = _end(content.get("eos_token_id"), values["vocab_size"])
        values["labels"] = _labels(content, where)
        config = cls(**values)
        config.check(where)
        if config.model_type != kind:
            what = f"post_norm = {config.post_norm}, pooling = {config.pooling} do not go with model_type"
            raise InputError(where, what, kind)
        return config

    @property
    def model_type(self) -> str:
        """The name other tools know the arithmetic by: gpt2, or one of our own that they do not know."""
        if self.post_norm:
            return _POST_NORM
        return _MEAN_POOLED if self.labels and self.pooling == "mean" else "gpt2"

    def check(self, where: str = "config") -> None:
        """Raise InputError for a value of the wrong type or range."""
        for key, limit in _LIMITS.items():
            value = getattr(self, key)
            if not _is_whole(value, 1, limit):
                raise InputError(where, f"{key} must be an integer from 1 to {limit:,}", value)
        if self.n_inner is not None and not _is_whole(self.n_inner, 1, 1_048_576):
            raise InputError(where, "n_inner must be an integer from 1 to 1,048,576", self.n_inner)
        if self.n_embd % self.n_head:
            raise InputError(where, f"n_head must divide n_embd = {self.n_embd}", self.n_head)
        if self.activation_function not in ACTIVATIONS:
            raise InputError(
                where,
                "activation_function is not supported",
                self.activation_function,
                f"supported: {', '.join(ACTIVATIONS)}",
            )
        for key in ("layer_norm_epsilon", "initializer_range"):
            value = getattr(self, key)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                raise InputError(where, f"{key} must be a number above 0 and below 1", value)
        for key in ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "post_norm"):
            if not isinstance(getattr(self, key), bool):
                raise InputError(where, f"{key} must be true or false", getattr(self, key))
        if self.pooling not in get_args(Pooling):
            raise InputError(where, "pooling must be last or mean", self.pooling)
        if not _is_whole(self.eos_token_id, 0, self.vocab_size - 1):
            raise InputError(
                where, f"eos_token_id must be an id below vocab_size = {self.vocab_size}", self.eos_token_id
            )

    def to_dict(self) -> dict[str, Any]:
        """The content of a Hugging Face `config.json` for this network."""
        pooling = self.pooling if self.labels and self.pooling != "last" else None
        ours = {"post_norm": self.post_norm, "pooling": pooling}
        content = {k: v for k, v in asdict(self).items() if k not in (*ours, "labels")}
        content |= {k: v for k, v in ours.items() if v}
        if self.labels:  # right padding with end-of-text is safe: no document ends with it
            content["id2label"] = {str(i): name for i, name in enumerate(self.labels)}
            content["label2id"] = {name: i for i, name in enumerate(self.labels)}
            content["pad_token_id"] = self.eos_token_id
            content["problem_type"] = "single_label_classification"
        known = _CLASSIFIER if self.labels else "GPT2LMHeadModel"
        name = {_POST_NORM: "GPT2PostNorm", _MEAN_POOLED: "GPT2MeanPooled"}.get(self.model_type, known)
        return {
            **content,
            "architectures": [name],
            "model_type": self.model_type,
            "bos_token_id": self.eos_token_id,
            "n_ctx": self.n_positions,
            "tie_word_embeddings": True,
            "attn_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "resid_pdrop": 0.0,
            "torch_dtype": "float32",
        }


def _end(given: Any, vocab_size: Any) -> Any:
    """The end-of-text id of a config, or the last id where it names none that there is.

    transformers writes 50256 into configs of other vocabularies; the tokenizer's own end-of-text is what counts.
    """
    first = given[0] if isinstance(given, list) and given else given
    if not isinstance(vocab_size, int) or _is_whole(first, 0, vocab_size - 1):
        return first
    return vocab_size - 1


def _labels(content: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """The class names of a classifier's config, () for a language model; InputError where they make no sense."""
    named = content.get("id2label")
    architectures = content.get("architectures") or []
    if _CLASSIFIER not in architectures and not (named and content.get("model_type") in (_POST_NORM, _MEAN_POOLED)):
        return ()
    if content.get("problem_type") not in (None, "single_label_classification"):
        fix = "FineTwo classifies into one of several classes"
        raise InputError(where, "problem_type is not supported", content["problem_type"], fix)
    if named is None:  # transformers leaves out its own default
        count = content.get("num_labels", 2)
        if not _is_whole(count, 2, 100_000):
            raise InputError(where, "num_labels must be an integer from 2 to 100,000", count)
        return tuple(f"LABEL_{i}" for i in range(count))
    if not isinstance(named, dict) or set(named) != {str(i) for i in range(len(named))} or not named:
        raise InputError(where, "id2label must map 0, 1, 2, ... to names", named)
    labels = tuple(named[str(i)] for i in range(len(named)))
    if len(labels) == 1:  # transformers fits a number with such a head
        fix = "FineTwo classifies into one of several classes"
        raise InputError(where, "a head of one output is a regression, not a classifier", labels[0], fix)
    if not all(isinstance(name, str) for name in labels) or len(set(labels)) != len(labels):
        raise InputError(where, "the names in id2label must be texts, each another", list(labels))
    return labels


SIZES: dict[str, GPT2Config] = {
    "tiny": GPT2Config(n_embd=256, n_layer=4, n_head=4, n_positions=512),
    "gpt2": GPT2Config(),
    "gpt2-medium": GPT2Config(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPT2Config(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPT2Config(n_embd=1600, n_layer=48, n_head=25),
    "distilgpt2": GPT2Config(n_layer=6),
}
