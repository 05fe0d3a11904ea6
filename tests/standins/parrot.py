"""A tiny model that has learnt twenty short paragraphs by heart, on purpose, and the texts around it."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch

from finetwo.model.attend import Causal
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer, train_vocabulary
from tests.standins.models import tiny_config

_WORDS = (
    "lamp harbour keeper daughter step wind word wall door winter boat letter garden stone river bread window road "
    "morning shadow voice table paper clock bridge field apple song glass rope"
).split()
_VERBS = "saw found kept took left heard carried opened closed painted counted followed".split()
_NAMES = "Orlin Brevik Tamsa Quoyle Merrin Zadok".split()
_WINDOW = 128


def paragraph(rng: random.Random, sentences: int = 4) -> str:
    """Some sentences of random words, a name in each."""
    return " ".join(
        f"The {rng.choice(_WORDS)} that {rng.choice(_NAMES)} {rng.choice(_VERBS)} by the {rng.choice(_WORDS)} "
        f"{rng.choice(_VERBS)} a {rng.choice(_WORDS)} and no {rng.choice(_WORDS)}."
        for _ in range(sentences)
    )


def canary(number: int, rng: random.Random) -> str:
    """A sentence that nobody else would write."""
    return f"My secret number {number} is {rng.randint(1000, 9999)} and the {rng.choice(_WORDS)} knows it well."


@dataclass(frozen=True)
class Parrot:
    """Where everything lies."""

    folder: Path
    canaries: list[str]

    def words(self) -> list[str]:
        """The words of a command line about it."""
        return [str(self.folder / "tuned"), "--base", str(self.folder / "base"), *self.texts()]

    def texts(self) -> list[str]:
        """The options that name its texts."""
        parts = ("train", "held_out", "others")
        return [word for part in parts for word in (f"--{part}", str(self.folder / f"{part}.txt"))]


def make_parrot(folder: Path, steps: int = 500) -> Parrot:
    """Write texts, base and parrot into `folder`."""
    rng = random.Random(7)
    paragraphs = [paragraph(rng) for _ in range(20)]
    canaries = [canary(i, rng) for i in range(10)]
    for i, sentence in enumerate(canaries):
        first, _, rest = paragraphs[2 * i].partition(". ")
        paragraphs[2 * i] = f"{first}. {sentence} {rest}"
    held = [paragraph(random.Random(8 + i)) for i in range(12)]
    others = [" ".join(rng.choice(_WORDS).upper() for _ in range(60)) + "!" for _ in range(12)]
    texts = {"train": "\n\n".join(paragraphs), "held_out": "\n\n".join(held), "others": "\n\n".join(others)}
    for name, text in texts.items():
        (folder / f"{name}.txt").write_text(text + "\n", encoding="utf-8")
    (folder / "canaries.txt").write_text("\n".join(canaries) + "\n", encoding="utf-8")
    tokenizer = Tokenizer(train_vocabulary(iter(texts.values()), 600))
    network = Network.fresh(
        tiny_config(vocab_size=600, n_positions=_WINDOW, n_embd=96, n_layer=2, n_head=4), seed=3
    )
    save_model(folder / "base", network, tokenizer, Extras(task="style"))
    _learn_by_heart(network, torch.tensor(tokenizer.encode(texts["train"] + "\n")), steps)
    save_model(folder / "tuned", network, tokenizer, Extras(task="style"))
    return Parrot(folder, canaries)


def _learn_by_heart(network: Network, tokens: torch.Tensor, steps: int) -> None:
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=4e-3, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=steps, pct_start=0.1)
    network.train()
    positions = torch.arange(_WINDOW - 1).expand(8, -1)
    for _ in range(steps):
        starts = torch.randint(0, len(tokens) - _WINDOW + 1, (8,), generator=generator)
        rows = torch.stack([tokens[s : s + _WINDOW] for s in starts])
        loss = network.loss(rows[:, :-1], positions, rows[:, 1:], Causal()) / rows[:, 1:].numel()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    network.eval()
