"""The word games: enough of them, disjoint words, the same on every machine, and every answer right by its rule."""

from __future__ import annotations

import hashlib
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from finetwo.app.wordgames import Record, WordGames, make_games, write_games
from finetwo.app.words import ADJECTIVES, NOUNS, VERBS

CONTENT = {*NOUNS, *VERBS, *ADJECTIVES}
GAMES = make_games()
EVERY = [*GAMES.train, *GAMES.validation, *GAMES.test]


def words_of(text: str) -> set[str]:
    return set(re.findall(r"[a-z]+", text.lower()))


def content_words(records: list[Record]) -> set[str]:
    return {word for record in records for word in words_of(record["instruction"] + record["output"]) & CONTENT}


def solve(instruction: str) -> str:
    """Answer an instruction from its text alone, by a rule written apart from the generator."""
    if match := re.search(r"The (\w+) is (\w+)\.$", instruction):
        noun, adjective = match.groups()
        if "question" in instruction:
            return f"Is the {noun} {adjective}?"
        assert "not" in instruction.partition(":")[0].split()
        return f"The {noun} is not {adjective}."
    if match := re.search(r"the word (\w+)(?: is)? a noun or a verb", instruction):
        assert (match[1] in NOUNS) != (match[1] in VERBS)
        return f"The word {match[1]} is a {'noun' if match[1] in NOUNS else 'verb'}."
    task, _, tail = instruction.rstrip(".?").partition(": ")
    words = tail.split(", ")
    if "first" in task or "last" in task:
        which, index = ("first", 0) if "first" in task else ("last", -1)
        return f"The {which} word is {words[index]}."
    if task.startswith(("Swap", "Turn")):
        return f"The other way around they are {', '.join(reversed(words))}."
    if " and" in task:
        return f"Together they are {' and '.join(words)}."
    assert task.split()[0] in {"Repeat", "Say", "Copy"}
    return f"The words are {', '.join(words)}."


def test_counts_and_shape() -> None:
    assert (len(GAMES.train), len(GAMES.validation), len(GAMES.test)) == (1200, 104, 320)
    for record in EVERY:
        assert list(record) == ["instruction", "input", "output"]
        assert record["input"] == ""
        assert record["output"][-1] in ".?"


def test_no_instruction_stands_twice() -> None:
    assert len({record["instruction"] for record in EVERY}) == len(EVERY)


@pytest.mark.parametrize("seed", range(5))
def test_the_sets_share_no_content_word(seed: int) -> None:
    games = make_games(seed)
    train, validation, test = (content_words(part) for part in (games.train, games.validation, games.test))
    assert not train & test
    assert not train & validation
    assert not validation & test
    assert min(len(train), len(test)) > 100, "the sets should be rich in words"


@pytest.mark.parametrize("seed", range(5))
def test_every_answer_follows_from_its_instruction(seed: int) -> None:
    games = make_games(seed)
    for record in [*games.train, *games.validation, *games.test]:
        assert record["output"] == solve(record["instruction"])


def test_the_solver_tells_a_wrong_answer() -> None:
    """The answer of the neighbouring record is always refused, so the test above can fail."""
    for record, neighbour in pairwise(EVERY):
        assert neighbour["output"] != solve(record["instruction"])


def test_word_lists_are_clean() -> None:
    everything = [*NOUNS, *VERBS, *ADJECTIVES]
    assert len(everything) == len(set(everything)) >= 600
    assert all(re.fullmatch(r"[a-z]{2,10}", word) for word in everything)
    for words in (NOUNS, VERBS, ADJECTIVES):
        assert list(words) == sorted(words)


def test_the_phrasings_use_no_content_word() -> None:
    """Otherwise the train and held-out sets would share it."""
    for record in EVERY:
        frame = record["instruction"].split(": ")[0] if ": " in record["instruction"] else "Is a noun or a verb"
        assert not words_of(frame) & CONTENT, frame


def test_every_content_word_of_an_answer_stands_in_its_instruction() -> None:
    for record in EVERY:
        assert words_of(record["output"]) & CONTENT <= words_of(record["instruction"])


def digest(games: WordGames) -> str:
    text = json.dumps([games.train, games.validation, games.test], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def test_the_same_seed_gives_the_same_games() -> None:
    assert digest(make_games()) == digest(GAMES) == "f3c4d270c3179fc6"
    assert digest(make_games(1)) != digest(GAMES)


def test_written_files_hold_the_records(tmp_path: Path) -> None:
    write_games(tmp_path / "games", seed=3)
    games = make_games(3)
    for name, records in (("train", games.train), ("validation", games.validation), ("test", games.test)):
        lines = (tmp_path / "games" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == records
