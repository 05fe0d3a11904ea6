"""Texts without a fault, and texts with planted ones, for the tests of the data doctor."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path

SYLLABLES = "ba be bi bo bu da de di do du ka ke ki ko ku la le li lo lu ma me mi mo mu na ne ni no nu".split()


class Words:
    """Sentences of made-up words: no two share three words in a row, so nothing repeats but what is planted."""

    def __init__(self, seed: int = 0) -> None:
        self._rng = random.Random(seed)

    def some(self, count: int) -> list[str]:
        """`count` words."""
        return ["".join(self._rng.choices(SYLLABLES, k=4)) for _ in range(count)]

    def text(self, count: int) -> str:
        """A sentence of `count` words."""
        return " ".join(self.some(count))

    def record(self, prompt: int = 8, answer: int = 8) -> dict[str, str]:
        """A clean record."""
        return {"prompt": f"{self.text(prompt)}?", "completion": f"{self.text(answer)}."}


def grams(text: str) -> set[tuple[str, ...]]:
    """Word 3-grams as the definition has them, of a text that is not blank."""
    words = text.lower().split()
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} if len(words) > 2 else {tuple(words)}


def jaccard(a: str, b: str) -> float:
    """The similarity of two texts, by the definition."""
    one, two = grams(a), grams(b)
    return len(one & two) / len(one | two)


def write(path: Path, rows: Iterable[dict[str, str]] | Sequence[str]) -> Path:
    """Rows as JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def instructions(folder: Path) -> dict[str, int]:
    """Write train, validation and test with planted faults into `folder`; return how many there are of each kind.

    A record of n words with another last word shares n - 3 of n - 1 3-grams: 0.8 of them at n = 11, less below.
    """
    words = Words()
    train = [words.record() for _ in range(30)]
    validation = [words.record() for _ in range(10)]
    test = [words.record() for _ in range(10)]
    eleven, ten, long = words.some(11), words.some(10), words.some(40)

    def of(some: Sequence[str]) -> dict[str, str]:
        return {"prompt": " ".join(some[:5]), "completion": " ".join(some[5:])}

    train += [of(eleven), of(ten), of(long)]
    train += [of([*eleven[:-1], "other"]), of([*long[:-1], "other"])]  # near duplicates: 0.8 exactly, and 0.95
    train += [of([*ten[:-1], "other"])]  # 7 of 9: none
    validation += [of([*long[:-2], "another", "end"])]  # near overlap
    test += [of([*ten[:-1], "third"])]  # none
    train += [dict(train[0]), dict(train[0]), dict(train[1])]  # duplicates
    validation += [dict(train[2]), dict(train[3]), {**train[4], "completion": "Another " + train[4]["completion"]}]
    test += [dict(train[5]), dict(validation[0])]
    train += [{**words.record(), "completion": blank} for blank in ("", "  \n")]
    train += [{**words.record(), "prompt": " "}]
    train += [{**words.record(), "completion": one} for one in ("Yes.", "  42 \n", "naïve")]
    same = words.text(9)
    train += [{"prompt": same, "completion": f" {same}\n"}]
    train += [with_mark(words, mark) for mark in ("### Response:", "<|endoftext|>", "[/INST]")]
    test += [with_mark(words, "\ufffd")]
    train += [with_mark(words, mark) for mark in ("cafÃ©", "itâ€™s")]
    train += [with_mark(words, mark) for mark in ("\x07", "\x9d")]
    train += [with_mark(words, mark) for mark in ("<br/>", "&nbsp;", '<a href="x">')]
    clean = [
        "É Ü ñ ç – “so” … 漢字 🙂 ÃO SÃO",
        "a < b && c > d",
        "x &y; <3 <not a tag>",
        "Tab\tand line\r\nend\x0c",
        "# Input",
    ]
    train += [with_mark(words, mark) for mark in clean]  # nothing of these is a fault
    for name, rows in (("train", train), ("validation", validation), ("test", test)):
        write(folder / f"{name}.jsonl", rows)
    return {
        "empty answer": 2,
        "empty prompt": 1,
        "duplicate": 3,
        "near duplicate": 2,
        "overlap": 4,
        "near overlap": 1,
        "one-word answer": 3,
        "answer equals prompt": 1,
        "template words": 3,
        "replacement character": 1,
        "mojibake": 2,
        "control characters": 2,
        "html": 3,
    }


def with_mark(words: Words, mark: str) -> dict[str, str]:
    """A record with `mark` in the middle of its answer."""
    return {**words.record(), "completion": f"{words.text(6)} {mark} {words.text(6)}."}


def classes(folder: Path) -> dict[str, int]:
    """Write a classifier's data with planted faults; return how many there are of each kind."""
    words = Words(1)
    rows = [{"text": words.text(9), "label": label} for label in ["joy"] * 40 + ["fear"] * 25 + ["awe"] * 3]
    held = [{"text": words.text(9), "label": label} for label in ("joy", "fear", "awe")]
    rows += [dict(rows[0])]  # a duplicate
    rows += [{**rows[1], "label": "fear"}, {**rows[2], "label": "fear"}, {**rows[2], "label": "awe"}]  # two conflicts
    held += [{**rows[3], "label": "fear"}]  # a third conflict, and overlap
    held += [dict(rows[4])]
    rows += [{"text": words.text(9), "label": ""}, {"text": " ", "label": "joy"}]
    write(folder / "train.jsonl", rows)
    write(folder / "validation.jsonl", held)
    return {"no class": 1, "empty text": 1, "duplicate": 1, "overlap": 2, "label conflict": 3, "class imbalance": 1}
