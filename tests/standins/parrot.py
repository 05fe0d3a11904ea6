"""Twenty paragraphs to be learnt by heart on purpose, ten sentences planted among them, and the texts around them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

_WORDS = (
    "lamp harbour keeper daughter step wind wall door winter boat letter garden stone river bread window road "
    "morning shadow voice table paper clock bridge field apple song glass rope"
).split()
_VERBS = "saw found kept took left heard carried opened closed painted counted followed".split()
_NAMES = "Orlin Brevik Tamsa Quoyle Merrin Zadok".split()


def paragraph(rng: random.Random, sentences: int = 4) -> str:
    """Some sentences of random words, a name in each: 17 words a sentence."""
    return " ".join(
        f"The {rng.choice(_WORDS)} that {rng.choice(_NAMES)} {rng.choice(_VERBS)} by the {rng.choice(_WORDS)} "
        f"{rng.choice(_VERBS)} a {rng.choice(_WORDS)} and no {rng.choice(_WORDS)}."
        for _ in range(sentences)
    )


def canary(number: int, rng: random.Random) -> str:
    """A sentence that nobody else would write."""
    return f"My secret number {number} is {rng.randint(1000, 9999)} and the {rng.choice(_WORDS)} knows it well."


def other(rng: random.Random) -> str:
    """A paragraph of the same words in another manner."""
    return " ".join(
        f"Oh, {rng.choice(_WORDS)}, {rng.choice(_WORDS)}, why {rng.choice(_VERBS)} we every {rng.choice(_WORDS)}?"
        for _ in range(7)
    )


@dataclass(frozen=True)
class Texts:
    """Where everything lies."""

    folder: Path
    canaries: list[str]

    def words(self) -> list[str]:
        """The options that name the texts."""
        parts = ("train", "held_out", "others")
        return [word for part in parts for word in (f"--{part}", str(self.folder / f"{part}.txt"))]


def write_texts(folder: Path) -> Texts:
    """Write train.txt, held_out.txt, others.txt and canaries.txt into `folder`."""
    rng = random.Random(7)
    paragraphs = [paragraph(rng) for _ in range(20)]
    canaries = [canary(i, rng) for i in range(10)]
    for i, sentence in enumerate(canaries):
        first, _, rest = paragraphs[2 * i].partition(". ")
        paragraphs[2 * i] = f"{first}. {sentence} {rest}"
    texts = {
        "train": paragraphs,
        "held_out": [paragraph(random.Random(100 + i)) for i in range(20)],
        "others": [other(random.Random(200 + i)) for i in range(20)],
    }
    for name, parts in texts.items():
        (folder / f"{name}.txt").write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    (folder / "canaries.txt").write_text("\n".join(canaries) + "\n", encoding="utf-8")
    return Texts(folder, canaries)
