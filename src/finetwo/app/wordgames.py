"""Eight word games as an instruction set: the rule is learnt on some words and asked about others.

It knows nothing of models or training, only words and sentences; the standard library is enough. Its one invariant
is that the training, validation and held-out sets share no content word, so that only the rule can carry over.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from finetwo.app.words import ADJECTIVES, NOUNS, VERBS

Record = dict[str, str]
"""One record with the Alpaca columns `instruction`, `input` (always empty) and `output`."""

SHARES: Final = {"train": 0.7, "validation": 0.1, "test": 0.2}
"""Share of each word list that a set may use."""

COUNTS: Final = {"train": 1200, "validation": 104, "test": 320}
"""Records of each set; a multiple of the number of games."""


@dataclass(frozen=True)
class WordGames:
    """The three sets of one seed; their content words are disjoint."""

    train: list[Record]
    validation: list[Record]
    test: list[Record]


@dataclass(frozen=True)
class _Pool:
    """The words one set may use."""

    nouns: list[str]
    verbs: list[str]
    adjectives: list[str]

    def any(self, rng: random.Random, low: int, high: int) -> list[str]:
        """Draw `low` to `high` different words of any kind."""
        return rng.sample([*self.nouns, *self.verbs, *self.adjectives], rng.randint(low, high))


def _repeat(rng: random.Random, pool: _Pool) -> tuple[str, str]:
    words = ", ".join(pool.any(rng, 2, 4))
    asked = ("Repeat these words: {}.", "Say these words again: {}.", "Copy this list of words: {}.")
    return rng.choice(asked).format(words), f"The words are {words}."


def _first(rng: random.Random, pool: _Pool) -> tuple[str, str]:
    words = pool.any(rng, 3, 4)
    asked = (
        "Say the first of these words: {}.",
        "Which word comes first: {}?",
        "Give the first word of this list: {}.",
    )
    return rng.choice(asked).format(", ".join(words)), f"The first word is {words[0]}."


def _last(rng: random.Random, pool: _Pool) -> tuple[str, str]:
    words = pool.any(rng, 3, 4)
    asked = ("Say the last of these words: {}.", "Which word comes last: {}?", "Give the last word of this list: {}.")
    return rng.choice(asked).format(", ".join(words)), f"The last word is {words[-1]}."


def _join(rng: random.Random, pool: _Pool) -> tuple[str, str]:
    left, right = pool.any(rng, 2, 2)
    asked = ("Join these two words with and: {}, {}.", "Put and between these two words: {}, {}.")
    return rng.choice(asked).format(left, right), f"Together they are {left} and {right}."


def _swap(rng: random.Random, pool: _Pool) -> tuple[str, str]:
    left, right = pool.any(rng, 2, 2)
    asked = ("Swap these two words: {}, {}.", "Turn these two words around: {}, {}.")
    return rng.choice(asked).format(left, right), f"The other way around they are {right}, {left}."


def _question(rng: random.Random, pool: _Pool) -> tuple[str, str]:
    noun, adjective = rng.choice(pool.nouns), rng.choice(pool.adjectives)
    asked = ("Make a question of this sentence: {}", "Turn this sentence into a question: {}")
    return rng.choice(asked).format(f"The {noun} is {adjective}."), f"Is the {noun} {adjective}?"


def _negate(rng: random.Random, pool: _Pool) -> tuple[str, str]:
    noun, adjective = rng.choice(pool.nouns), rng.choice(pool.adjectives)
    asked = ("Say the opposite with not: {}", "Put not into this sentence: {}")
    return rng.choice(asked).format(f"The {noun} is {adjective}."), f"The {noun} is not {adjective}."


def _noun_or_verb(rng: random.Random, pool: _Pool) -> tuple[str, str]:
    kind = rng.choice(("noun", "verb"))
    word = rng.choice(pool.nouns if kind == "noun" else pool.verbs)
    asked = ("Is the word {} a noun or a verb?", "Say whether the word {} is a noun or a verb.")
    return rng.choice(asked).format(word), f"The word {word} is a {kind}."


GAMES: Final[dict[str, Callable[[random.Random, _Pool], tuple[str, str]]]] = {
    "repeat": _repeat,
    "first": _first,
    "last": _last,
    "join": _join,
    "swap": _swap,
    "question": _question,
    "negate": _negate,
    "noun_or_verb": _noun_or_verb,
}
"""Each game draws one (instruction, answer) from a pool of words."""


def _deal(words: tuple[str, ...], rng: random.Random) -> dict[str, list[str]]:
    """Deal a word list out to the sets by `SHARES`, each word to exactly one."""
    shuffled = rng.sample(words, len(words))
    dealt: dict[str, list[str]] = {}
    start, share = 0, 0.0
    for name, part in SHARES.items():
        share += part
        end = round(share * len(words))
        dealt[name] = shuffled[start:end]
        start = end
    return dealt


def _play(rng: random.Random, pool: _Pool, count: int) -> list[Record]:
    """Play every game equally often, `count` rounds in all, no instruction twice, in shuffled order."""
    records: dict[str, Record] = {}
    for number, game in enumerate(GAMES.values(), start=1):
        while len(records) < count * number // len(GAMES):
            instruction, output = game(rng, pool)
            records[instruction] = {"instruction": instruction, "input": "", "output": output}
    return rng.sample(list(records.values()), count)


def make_games(seed: int = 0) -> WordGames:
    """Return the word games of `seed`: 1,200 training, 104 validation and 320 held-out records.

    The same seed gives the same records on every machine. Every answer is a full sentence, and every content word
    of an answer stands in its instruction.
    """
    rng = random.Random(seed)
    nouns, verbs, adjectives = (_deal(words, rng) for words in (NOUNS, VERBS, ADJECTIVES))
    sets = {
        name: _play(rng, _Pool(nouns[name], verbs[name], adjectives[name]), count) for name, count in COUNTS.items()
    }
    return WordGames(**sets)


def write_games(folder: Path, seed: int = 0) -> None:
    """Write train.jsonl, validation.jsonl and test.jsonl of `seed` into `folder`, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    games = make_games(seed)
    for name, records in (("train", games.train), ("validation", games.validation), ("test", games.test)):
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8", newline="\n")
