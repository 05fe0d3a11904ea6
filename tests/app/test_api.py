"""Settings from Python: the names of the command line, lists and texts where either makes sense."""

from __future__ import annotations

from typing import Any

import pytest

from finetwo.app.api import configure
from finetwo.core.errors import InputError


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"learning_rate": 1}, "here it is called lr"),
        ({"lora_r": 8}, "here it is called lora.rank"),
        ({"lora": {"r": 8}}, "here it is called lora.rank"),
        ({"lora": {"rnk": 8}}, "did you mean lora.rank?"),
        ({"max_new_tokens": 8}, "did you mean sampling.max_new_tokens?"),
        ({"load_in_4bit": True}, "here it is called quantize nf4"),
        ({"zzz": 1}, "use data, task"),
        ({"epochs": [1]}, "must be a number"),
        ({"model": ["a"]}, "must be text"),
        ({"track": [1]}, "a list of texts"),
    ],
)
def test_wrong_settings_are_answered_without_dashes(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError) as caught:
        configure(settings)
    assert told in caught.value.line()
    assert "--" not in caught.value.line()


def test_lists_and_texts() -> None:
    config = configure({"lora": {"targets": ["attn.c_attn", "mlp.c_fc"]}, "freeze": ("wte", "wpe"), "track": "csv"})
    assert (config.lora.targets, config.freeze, config.track) == ("attn.c_attn,mlp.c_fc", "wte,wpe", ["csv"])
    assert configure({"lora.targets": ["a", "b"]}).lora.targets == "a,b"
    assert configure({"track": "csv,other"}).track == ["csv", "other"]
    assert configure({"sampling": {"stop": "\n"}}).sampling.stop == ["\n"]
    assert configure({"sampling.stop": ["a,b", "\\n"]}).sampling.stop == ["a,b", "\\n"]
