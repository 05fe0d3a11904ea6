"""Fixtures of the training tests: a base small enough to train in a second, and a process that forks runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.standins.models import tiny_config
from tests.train.support import records, write_jsonl
from tests.train.zygote import Zygote

from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer
from finetwo.train import start


@pytest.fixture(scope="session", autouse=True)
def _bf16_in_earnest() -> Iterator[None]:
    """What is asked for in bf16 is computed in bf16, on a processor that imitates it too: these models are tiny."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(start, "only_imitates_bf16", lambda device: False)
        yield


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A model folder: 2 layers, width 32, context 64, fresh weights."""
    folder = tmp_path_factory.mktemp("models") / "base"
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    save_model(folder, Network.fresh(shape, 3), tiny_tokenizer, Extras())
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty records in a file."""
    return write_jsonl(tmp_path_factory.mktemp("data") / "qa.jsonl", records(30))


@pytest.fixture(scope="session")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    """A process with torch imported that forks command lines."""
    process = Zygote(tmp_path_factory.mktemp("zygote"))
    yield process
    process.close()
