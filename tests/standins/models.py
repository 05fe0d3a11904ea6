"""Tiny models with weights worth comparing, and their twins in other libraries."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from finetwo.data.batch import Batch, layout
from finetwo.data.sequences import Sequence
from finetwo.model.config import GPT2Config
from finetwo.model.network import Network

TEXT = (
    "The lamp in the harbour went out at nine, and the keeper's daughter counted 365 steps to the top. "
    '"Who\'s there?" she asked; nobody answered, for the wind had taken every word.\n\n'
    "Zoë's café sells crème brûlée, naïve tourists say; 猫 sleep on the wall, and a 🙂 hangs over the door.\n"
    "def steps(n):\n    return [i * i for i in range(n)]\n\tand they'll say it's done, won't they?\n"
)
"""Written for these tests: prose, code, accents, an emoji, contractions."""


def tiny_config(**settings: Any) -> GPT2Config:
    """Return a small shape in which no two sizes are equal; `settings` replace parts of it."""
    shape: dict[str, Any] = {"vocab_size": 61, "n_positions": 19, "n_embd": 24, "n_layer": 3, "n_head": 4}
    shape |= settings
    return GPT2Config(**({"eos_token_id": shape["vocab_size"] - 1} | shape))


def random_network(config: GPT2Config, seed: int = 0) -> Network:
    """Return a network in which every parameter, norms and biases included, is random and matters."""
    network = Network(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            p.normal_(0.0, 0.2, generator=generator)
            if name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight")):
                p.add_(1.0)
    return network.eval()


def hf_twin(network: Network) -> Any:
    """Return transformers' GPT-2 with the same shape and weights, its attention in the plain written-out form."""
    from transformers import GPT2Config as HFConfig
    from transformers import GPT2LMHeadModel

    settings = {k: v for k, v in network.config.to_dict().items() if k not in ("architectures", "torch_dtype")}
    twin = GPT2LMHeadModel(HFConfig(**settings, attn_implementation="eager"))
    state = {n: t.clone() for n, t in network.state().items()}
    twin.load_state_dict({**state, "lm_head.weight": state["transformer.wte.weight"]}, strict=True)
    return twin.eval()


def fill_lora(network: Network, seed: int = 5, std: float = 0.1) -> None:
    """Give every adapter matrix random values, so that the adapter does something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in network.named_parameters():
            if ".adapter." in name:
                p.normal_(0.0, std, generator=generator)


def random_tokens(rows: int, length: int, vocab: int, seed: int = 1) -> Tensor:
    """Return random ids (rows, length)."""
    return torch.randint(0, vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def difference(a: Tensor, b: Tensor) -> float:
    """Return the largest absolute difference, the shapes being equal."""
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a.detach().double() - b.detach().double()).abs().max())


def normal(*shape: int, seed: int = 0) -> Tensor:
    """Numbers drawn from a normal distribution."""
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed))


def calm_network(*, lora: bool = False, **settings: Any) -> Network:
    """A network ready to learn whose logits are not all decided by one token, of sizes that 16-bit kernels take."""
    shape: dict[str, Any] = {"vocab_size": 400, "n_positions": 64, "n_embd": 64, "n_layer": 3, "n_head": 4}
    network = random_network(tiny_config(**shape, **settings))
    with torch.no_grad():
        for name, p in network.named_parameters():
            if "ln_" not in name:
                p.mul_(0.3)
    if lora:
        network.add_lora(rank=4, targets="all-linear")
        fill_lora(network, std=0.02)
        network.freeze_all_but_lora()
    return network.train()


def unequal_batch(packing: bool | None, *, share: bool = False) -> Batch:
    """Sequences of very unequal lengths for `calm_network`, half of each learned; four of them begin alike."""
    generator, made = torch.Generator().manual_seed(3), []
    for length in (40, 3, 17, 25, 9, 33):
        tokens, targets = torch.randint(0, 399, (2, length), generator=generator).int().numpy()
        if length > 10:
            tokens[:8] = range(8)
        targets[: length // 2 + 1] = -100
        made.append(Sequence(tokens, targets))
    return layout(made, packing, share=share)
