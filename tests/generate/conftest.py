from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from finetwo.model.config import GPT2Config
from finetwo.model.network import Network
from finetwo.text.tokenizer import Tokenizer, train_vocabulary

TEXT = ["the cat sat on the mat and the dog ran to the house, é ü 猫 🙂 " * 3, "one two three four five six seven " * 3]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer(train_vocabulary(iter(TEXT), 300))


def shape(**settings: object) -> GPT2Config:
    base = {"vocab_size": 300, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2, "eos_token_id": 299}
    return GPT2Config(**(base | settings))  # type: ignore[arg-type]


def random_network(config: GPT2Config, seed: int = 0) -> Network:
    """Weights large enough that the likeliest token changes from step to step."""
    network = Network.fresh(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(torch.empty_like(p).normal_(0, 0.15, generator=generator))
    return network


@pytest.fixture(scope="session")
def network() -> Network:
    return random_network(shape())


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads cost more than they give on networks this small, most of all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
