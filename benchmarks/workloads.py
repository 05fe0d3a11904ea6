"""Data and models for measuring, made from a seed: records of instructions, and the published shapes.

It must not know who is measured. Its one invariant: the same arguments give the same data on every machine.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHAPES: dict[str, dict[str, int]] = {
    "gpt2": {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 50257},
    "gpt2-medium": {"n_layer": 24, "n_embd": 1024, "n_head": 16, "n_positions": 1024, "vocab_size": 50257},
    "2 x 128": {"n_layer": 2, "n_embd": 128, "n_head": 2, "n_positions": 1024, "vocab_size": 8192},
    "4 x 256": {"n_layer": 4, "n_embd": 256, "n_head": 4, "n_positions": 1024, "vocab_size": 8192},
    "8 x 512": {"n_layer": 8, "n_embd": 512, "n_head": 8, "n_positions": 1024, "vocab_size": 8192},
    "12 x 768": {"n_layer": 12, "n_embd": 768, "n_head": 12, "n_positions": 1024, "vocab_size": 8192},
    "small": {"n_layer": 2, "n_embd": 64, "n_head": 2, "n_positions": 128, "vocab_size": 8192},
    "smaller": {"n_layer": 1, "n_embd": 32, "n_head": 2, "n_positions": 128, "vocab_size": 8192},
}
"""The shapes that are measured, some by layers and width; the last two are for smoke runs."""
COMMON = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its about "
    "than into them can only other time new some could these two may first then do any like my now over such our man "
    "me even most made after also did many off before must well back through years much where your way down should "
    "because long each just state those people how too little good world very make year still see own work men day get "
    "here old life both between being under three never know same last another while us might great go come since "
    "against right came take used himself few house use place during high without again home around small however "
    "found thought went say part once general high upon school every don't does got united left number course war "
    "until always away something fact water though less public put think almost hand enough far took head yet "
    "government system better set told nothing night end why called didn't eyes find going look asked later knew "
    "point next city business group give toward young days let room within children side social given order often "
    "thing looked large sentence word describe explain list write example name convert following convert verb phrase "
    "summary difference"
).split()
_ASKED = ("Describe {}.", "Explain how {}.", "Rewrite the following sentence: {}.", "What is {}?", "Name {}.")
_SYLLABLES = "ba con der el fi gra hol im ja kel lu mor nex os pra qui rus sten tor ul ver win xan yel zom".split()


class _Writer:
    """Writes words as often as English has them: mostly short and common ones, now and then a name or a number."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        rare = ["".join(self.random.choices(_SYLLABLES, k=self.random.randint(2, 4))) for _ in range(20_000)]
        self.words = COMMON + rare
        self.weights = [(rank + 3) ** -1.6 for rank in range(len(self.words))]
        self.totals: list[float] = []
        total = 0.0
        for weight in self.weights:
            total += weight
            self.totals.append(total)

    def text(self, mean: float) -> str:
        """About `mean` words, with commas, capitals and figures between them."""
        r = self.random
        count = max(1, int(r.lognormvariate(0, 0.5) * mean))
        words = r.choices(self.words, cum_weights=self.totals, k=count)
        for i in range(count):
            chance = r.random()
            if chance < 0.04:
                words[i] = words[i].capitalize()
            elif chance < 0.06:
                words[i] = str(r.randint(0, 2030))
            elif chance < 0.12:
                words[i] += ","
        return " ".join(words)


def records(seed: int = 0, answer: float = 9.0) -> Iterator[dict[str, str]]:
    """Yield records of instructions without end; about `answer` words answer each.

    With 9 words and the Alpaca template a record has some 60 GPT-2 tokens, a quarter of them in the answer.
    """
    writer = _Writer(seed)
    while True:
        asked = writer.random.choice(_ASKED).format(writer.text(4))
        more = writer.text(6) if writer.random.random() < 0.4 else ""
        yield {"instruction": asked, "input": more, "output": writer.text(answer).capitalize() + "."}


CLASSES = ("a", "b", "c", "d", "e", "f")


def labelled(count: int, seed: int = 0) -> list[dict[str, str]]:
    """`count` short texts of some 18 tokens, each with one of six classes, every class among the first six."""
    writer = _Writer(seed)
    return [{"text": writer.text(12), "label": CLASSES[i % len(CLASSES)]} for i in range(count)]


def parameters(shape: str) -> int:
    """The weights of a shape, the head's being those of the embedding."""
    s = SHAPES[shape]
    width = s["n_embd"]
    return s["n_layer"] * (12 * width * width + 13 * width) + (s["vocab_size"] + s["n_positions"] + 2) * width


def size_of(record: dict[str, str]) -> int:
    """The bytes that a record's texts have."""
    return sum(len(text.encode("utf-8")) for text in record.values())


def some(count: int, seed: int = 0, answer: float = 9.0) -> list[dict[str, str]]:
    """The first `count` records."""
    stream = records(seed, answer)
    return [next(stream) for _ in range(count)]


def write_records(path: Path, found: list[dict[str, str]]) -> Path:
    """Write records as a JSON array."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    return path


def hub_config(shape: str, **more: Any) -> dict[str, Any]:
    """The config.json of a GPT-2 of this shape, without dropout."""
    off = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    end = SHAPES[shape]["vocab_size"] - 1
    return {"model_type": "gpt2", "bos_token_id": end, "eos_token_id": end, **off, **SHAPES[shape], **more}
