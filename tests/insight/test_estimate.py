"""The estimate's counts are those of the run that follows, and making it changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.standins.models import random_network, tiny_config
from tests.train.support import records, write_jsonl

from finetwo import train
from finetwo.core.config import LoraConfig, TrainConfig
from finetwo.data.loader import InMemory, Loader
from finetwo.data.sequences import IGNORE, Sequence
from finetwo.insight.estimate import Estimate, _formula, _times, _words, estimate
from finetwo.insight.plan import make_plan
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer


@pytest.fixture
def base(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Path:
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    save_model(tmp_path / "base", Network.fresh(shape, 3), tiny_tokenizer, Extras())
    return tmp_path / "base"


def sequences(sizes: list[int]) -> InMemory:
    def one(n: int) -> Sequence:
        tokens = torch.arange(n, dtype=torch.int32).numpy() % 50
        targets = tokens.copy()
        targets[: n // 2] = IGNORE
        return Sequence(tokens, targets)

    return InMemory([one(n) for n in sizes])


def made(network: Network, sizes: list[int], **settings: Any) -> Estimate:
    config = TrainConfig(**({"lr": 1e-3, "epochs": 2.0, "batch_size": 2} | settings))
    loader = Loader(sequences(sizes), config.batch_size, config.grad_accum, config.packing, config.seed)
    return estimate(network, loader, sequences([5, 6, 7]), config)


RUNS: dict[str, dict[str, Any]] = {
    "epochs": {"epochs": 2.5, "batch_size": 4},
    "steps": {"max_steps": 13, "batch_size": 2, "grad_accum": 2, "eval_every": "5", "save_every": "4"},
    "lora": {"epochs": 1, "lora": {"rank": 2}, "eval_every": "0", "save_every": "0", "eval_limit": 2},
    "frozen": {"epochs": 1, "freeze": "wte,wpe", "eval_every": "0.5epoch"},
}


@pytest.mark.parametrize("kind", list(RUNS))
def test_counts_are_those_of_the_run(kind: str, base: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "d.jsonl", records(40))
    settings = RUNS[kind] | {"model": str(base), "template": "plain", "keep": 99}
    lora = settings.get("lora")
    config = TrainConfig(**(settings | ({"lora": LoraConfig(**lora)} if lora else {})))
    expected = make_plan(config, data, lambda _: None).estimate
    out = tmp_path / "run"
    report = train(str(data), out=str(out), **settings)
    events = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert expected.steps == report.steps and expected.trainable == report.trainable
    assert expected.parameters == report.trainable + report.frozen
    assert expected.evaluations == sum(e["event"] == "evaluation" for e in events)
    assert expected.checkpoints == len(list(out.glob("checkpoint-*")))
    assert expected.tokens == report.tokens
    assert expected.seconds > 0 and expected.memory_bytes > 50 << 20 and 3 <= expected.timed_steps <= 24


def test_whole_epochs_have_their_exact_tokens() -> None:
    sizes = [3, 9, 4, 30, 8, 2, 12]
    found = made(random_network(tiny_config(n_positions=32)), sizes, epochs=3.0)
    assert (found.steps, found.steps_per_epoch, found.tokens) == (12, 4, 3 * sum(sizes))


@pytest.mark.parametrize("settings", [{}, {"optimizer": "muon"}, {"weight_decay": 0.5, "dropout": 0.2}])
def test_no_weight_and_no_gradient_is_left_changed(settings: dict[str, Any]) -> None:
    network = random_network(tiny_config(n_positions=32))
    before = {n: p.clone() for n, p in network.named_parameters()}
    made(network, [3, 9, 4, 30], **settings)
    assert all(torch.equal(p, before[n]) and p.grad is None for n, p in network.named_parameters())
    assert not network.training


def test_due_every() -> None:
    assert [_times(every, 10, 4) for every in ("0", "3", "5", "10", "99", "1epoch", "2epochs", "0.5epoch")] == [
        1, 4, 2, 1, 1, 3, 2, 5,
    ]  # fmt: skip


def test_the_formula_counts_weights_gradients_moments_and_activations() -> None:
    network = random_network(tiny_config(n_positions=32))
    size = sum(p.numel() for p in network.parameters())
    loader = Loader(sequences([4, 30]), 1, 1, None, 0)
    batches = [loader.batches(s) for s in range(2)]
    cuda = torch.device("cuda")
    few, many = sorted(_formula(network, size, size, b, cuda) for b in batches)
    assert many - few == 26 * 4 * 18 * 24 * 3  # tokens, bytes, floats of the width, width, layers
    assert _formula(network, 0, size, batches[0], cuda) == _formula(network, size, size, batches[0], cuda) - 12 * size
    assert _formula(network, size, size, batches[0], torch.device("cpu")) > 300 << 20


def test_words_for_a_person() -> None:
    assert [_words(s) for s in (3.2, 89, 120, 5399, 7200)] == ["3 s", "89 s", "2 min", "90 min", "2.0 h"]
    found = made(random_network(tiny_config(n_positions=32)), [3, 9])
    lines = found.lines()
    assert len(lines) == 5 and f"{found.trainable:,} of {found.parameters:,}" in lines[0]
    assert json.loads(json.dumps(found.to_dict()))["steps"] == found.steps
