"""The weights a run passed through, one after the other, and the model as it was afterwards."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.standins.models import TEXT, tiny_config

from finetwo.app.api import load, train
from finetwo.insight.stages import stages
from finetwo.model.network import Network
from finetwo.store.checkpoint import open_checkpoint
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer

QUICK = {
    "task": "style",
    "batch_size": 2,
    "max_length": 16,
    "lr": 1e-2,
    "max_steps": 6,
    "sample_every": "0",
    "keep": 9,
    "rows": {"split": "train:0.9,validation:0.1"},
}


@pytest.fixture
def here(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    save_model(
        tmp_path / "base", Network.fresh(tiny_config(vocab_size=400, n_positions=32), 1), tiny_tokenizer, Extras()
    )
    (tmp_path / "text.txt").write_text(TEXT * 3, encoding="utf-8")
    return tmp_path


def weights(network: Network) -> list[torch.Tensor]:
    return [p.detach().clone() for p in network.parameters()]


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("lora", [{}, {"rank": 2}])
def test_every_stage_has_its_weights(lora: dict[str, int], here: Path) -> None:
    settings = QUICK | {"lora": lora} if lora else QUICK
    train("text.txt", model="base", out="run", save_every="2", eval_every="2", **settings)
    model = load("run")
    before = weights(model.network)
    seen = []
    for label, same in stages("run", model.network, "base" if lora else None):
        now = weights(model.network)
        assert same == equal(now, before)
        if label.startswith("step"):
            saved = open_checkpoint(Path("run") / f"checkpoint-{label.split()[1]}").tensors("weights")
            parameters = dict(model.network.named_parameters())
            assert saved
            assert all(torch.equal(parameters[name], tensor) for name, tensor in saved.items())
        seen.append((label, now))
    assert [label for label, _ in seen][:2] == ["step 2", "step 4"]
    assert not any(equal(seen[i][1], seen[j][1]) for i in range(len(seen)) for j in range(i))  # each comes once
    assert sum(equal(now, before) for _, now in seen) == 1
    final = load("run/final")
    assert any(equal(now, weights(final.network)) for _, now in seen)
    assert equal(weights(model.network), before)


def test_the_model_is_whole_again_if_one_stops_midway(here: Path) -> None:
    train("text.txt", model="base", out="run", save_every="2", eval_every="0", **QUICK)
    model = load("run")
    before = weights(model.network)
    walk = stages("run", model.network, None)
    next(walk)
    assert not equal(weights(model.network), before)
    walk.close()  # type: ignore[attr-defined]
    assert equal(weights(model.network), before)


def test_what_is_no_run_has_no_stages(here: Path) -> None:
    assert list(stages("base", load("base").network, None)) == []
    assert list(stages("tiny", load("base").network, None)) == []
