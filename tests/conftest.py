"""What many tests share: tiny models, a tokenizer trained here, and the shared data where it is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub.constants  # noqa: F401  (it reads HF_HUB_OFFLINE once, so before any test sets it)
import pytest
import torch
from tests.standins.models import TEXT, hf_twin, random_network, tiny_config

from finetwo.model.config import GPT2Config
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer, train_vocabulary

torch.set_num_threads(1)

SHARED = Path(__file__).parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the checkout; the test is skipped where there is none."""
    if not SHARED.is_dir():
        pytest.skip("no shared data here")
    return SHARED


@pytest.fixture(scope="session")
def gpt2_tokenizer(shared_data: Path) -> Tokenizer:
    """The published GPT-2 vocabulary."""
    folder = shared_data / "tokenizer" / "gpt2"
    if not (folder / "encoder.json").is_file():
        pytest.skip("no published vocabulary here")
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of 400 ids, trained by FineTwo on a text written for these tests."""
    return Tokenizer(train_vocabulary(iter([TEXT] * 4), 400))


@pytest.fixture(scope="session")
def tiny_shape() -> GPT2Config:
    """A shape that fits the tiny tokenizer."""
    return tiny_config(vocab_size=400)


@pytest.fixture(scope="session")
def _tiny_state(tiny_shape: GPT2Config) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in random_network(tiny_shape).state().items()}


@pytest.fixture
def tiny_network(tiny_shape: GPT2Config, _tiny_state: dict[str, torch.Tensor]) -> Network:
    """A random network of the tiny shape, fresh for each test."""
    network = Network(tiny_shape)
    network.load_state(_tiny_state, "fixture")
    return network.eval()


@pytest.fixture
def tiny_hf(tiny_network: Network) -> Any:
    """The same weights in transformers' GPT-2."""
    return hf_twin(tiny_network)


@pytest.fixture
def tiny_folder(tmp_path: Path, tiny_network: Network, tiny_tokenizer: Tokenizer) -> Path:
    """The tiny network and tokenizer as a saved model folder."""
    folder = tmp_path / "tiny-model"
    save_model(folder, tiny_network, tiny_tokenizer, Extras())
    return folder
