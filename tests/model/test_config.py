"""config.json: what is implemented is read, everything else is refused by name (row 65)."""

from __future__ import annotations

from typing import Any

import pytest
from tests.standins.models import tiny_config

from finetwo.core.errors import InputError
from finetwo.model.config import ACTIVATIONS, SIZES, GPT2Config

GOOD = {"model_type": "gpt2", "vocab_size": 61, "n_positions": 19, "n_embd": 24, "n_layer": 3, "n_head": 4}


def test_round_trip() -> None:
    for config in (*SIZES.values(), tiny_config(n_inner=5, activation_function="relu"), tiny_config(post_norm=True)):
        assert GPT2Config.from_dict(config.to_dict()) == config


def test_defaults_and_ignored_keys() -> None:
    config = GPT2Config.from_dict(GOOD | {"n_ctx": 19, "attn_pdrop": 0.1, "task_specific_params": {}, "n_inner": None})
    assert config == GPT2Config(61, 19, 24, 3, 4, eos_token_id=60) and config.inner == 96
    without = {k: v for k, v in GOOD.items() if k != "model_type"}
    assert GPT2Config.from_dict(without) == config


@pytest.mark.parametrize(
    ("given", "meant"), [(61, 60), (50256, 60), (-1, 60), ([1, 2], 1), (None, 60), ("x", 60), ([], 60)]
)
def test_an_end_that_is_none_is_the_last_id(given: object, meant: int) -> None:
    """transformers leaves 50256 in configs of other vocabularies; the tokenizer's own end-of-text counts."""
    assert GPT2Config.from_dict(GOOD | {"eos_token_id": given}).eos_token_id == meant


def test_what_transformers_writes_is_read() -> None:
    from transformers import GPT2Config as HFConfig

    theirs = HFConfig(vocab_size=61, n_positions=19, n_embd=24, n_layer=3, n_head=4, eos_token_id=5, bos_token_id=5)
    assert GPT2Config.from_dict(theirs.to_dict()) == GPT2Config(61, 19, 24, 3, 4, eos_token_id=5)
    ours = HFConfig(**tiny_config(n_inner=7, scale_attn_by_inverse_layer_idx=True).to_dict())
    assert (ours.n_inner, ours.scale_attn_by_inverse_layer_idx, ours.vocab_size) == (7, True, 61)
    assert ours.resid_pdrop == ours.embd_pdrop == ours.attn_pdrop == 0.0


def test_a_post_norm_model_is_not_taken_for_gpt2_elsewhere() -> None:
    content = tiny_config(post_norm=True).to_dict()
    assert content["model_type"] != "gpt2" and "post_norm" not in tiny_config().to_dict()
    for part in ({"model_type": "gpt2"}, {"post_norm": False}):
        with pytest.raises(InputError, match="post_norm = "):
            GPT2Config.from_dict(content | part)


@pytest.mark.parametrize("key", ["vocab_size", "n_positions", "n_embd", "n_layer", "n_head"])
@pytest.mark.parametrize("value", ["absent", None, 0, -1, 1.5, "24", True, 10**9, [24]])
def test_bad_sizes(key: str, value: Any) -> None:
    content = {k: v for k, v in GOOD.items() if k != key} if value == "absent" else GOOD | {key: value}
    with pytest.raises(InputError, match=rf"^config\.json: .*{key}"):
        GPT2Config.from_dict(content)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ({"n_head": 5}, "n_head must divide n_embd = 24 (got 5)"),
        ({"model_type": "llama"}, "model_type is not of the GPT-2 architecture (got llama)"),
        ({"model_type": None}, "model_type is not of the GPT-2 architecture"),
        ({"n_ctx": "1024"}, "n_ctx must be an integer (got 1024)"),
        ({"n_ctx": True}, "n_ctx must be an integer"),
        ({"auto_map": {"AutoModel": "x.Evil"}}, "auto_map is not supported"),
        ({"trust_remote_code": True}, "trust_remote_code is not supported"),
        ({"add_cross_attention": True}, "add_cross_attention is not supported"),
        ({"is_encoder_decoder": True}, "is_encoder_decoder is not supported"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings is not supported"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is not supported"),
        ({"pruned_heads": {"0": [1]}}, "pruned_heads is not supported"),
        ({"activation_function": "silu"}, "activation_function is not supported (got silu)"),
        ({"activation_function": ["gelu"]}, "activation_function is not supported"),
        ({"n_inner": 0}, "n_inner must be an integer"),
        ({"n_inner": "96"}, "n_inner must be an integer"),
        ({"n_inner": True}, "n_inner must be an integer"),
        ({"layer_norm_epsilon": 0}, "layer_norm_epsilon must be a number above 0"),
        ({"layer_norm_epsilon": "1e-5"}, "layer_norm_epsilon must be a number above 0"),
        ({"initializer_range": -0.02}, "initializer_range must be a number above 0"),
        ({"initializer_range": float("nan")}, "initializer_range must be a number above 0"),
        ({"scale_attn_weights": "no"}, "scale_attn_weights must be true or false"),
        ({"scale_attn_by_inverse_layer_idx": 1}, "scale_attn_by_inverse_layer_idx must be true or false"),
        ({"post_norm": "yes"}, "post_norm must be true or false"),
    ],
)
def test_refused_by_name(part: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as e:
        GPT2Config.from_dict(GOOD | part, "m/config.json")
    assert str(e.value).startswith("m/config.json: ") and said in str(e.value) and "\n" not in str(e.value)


def test_the_refusals_tell_what_is_supported() -> None:
    with pytest.raises(InputError, match=", ".join(ACTIVATIONS)):
        GPT2Config.from_dict(GOOD | {"activation_function": "swish"})
    with pytest.raises(InputError, match="only tie_word_embeddings = True is"):
        GPT2Config.from_dict(GOOD | {"tie_word_embeddings": False})
