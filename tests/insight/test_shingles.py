"""Near duplicates: hashes against word 3-grams as tuples, and what is found against every pair compared."""

from __future__ import annotations

import random
import sys
from itertools import pairwise

import numpy as np
import pytest
from tests.insight.planted import Words, grams, jaccard

from finetwo.core.errors import EnvironmentFault
from finetwo.insight.shingles import NEAR, Near, Shingler, resolve
from finetwo.insight.shingles import jaccard as of_hashes


def found(texts: list[str], sides: list[int]) -> tuple[dict[int, int], dict[int, int]]:
    """What the index finds among texts."""
    index = Near()
    for i, text in enumerate(texts):
        index.add(i, [text])
    hashes = [index.shingler.whole([text]) for text in texts]
    keys = [hash(text) for text in texts]
    assert not index.capped
    return resolve(index.pairs(), sides.__getitem__, hashes.__getitem__, keys.__getitem__)


def by_force(texts: list[str], sides: list[int]) -> tuple[set[int], set[int]]:
    """The texts that nearly repeat an earlier one of their side, and one of an earlier side."""
    within, across = set(), set()
    for i, text in enumerate(texts):
        for j, other in enumerate(texts):
            if text != other and jaccard(text, other) >= NEAR:
                if sides[j] == sides[i] and j < i:
                    within.add(i)
                if sides[j] < sides[i]:
                    across.add(i)
    return within, across


def mixed(count: int, seed: int) -> tuple[list[str], list[int]]:
    """Texts of which many are others with some words changed, of all lengths and likenesses."""
    rng, words = random.Random(seed), Words(seed)
    texts: list[str] = []
    for _ in range(count):
        if texts and rng.random() < 0.7:
            some = rng.choice(texts).split()
            for _ in range(rng.randint(0, 4)):
                some[rng.randrange(len(some))] = words.some(1)[0]
            texts.append(" ".join(some) if rng.random() < 0.9 else " ".join(some).upper() + "  ")
        else:
            texts.append(words.text(rng.choice([1, 2, 3, 5, 12, 30, 60])))
    return texts, [rng.randrange(3) for _ in range(count)]


@pytest.mark.parametrize("seed", range(4))
def test_all_pairs_are_found_and_none_invented(seed: int) -> None:
    texts, sides = mixed(150, seed)
    within, across = found(texts, sides)
    want_within, want_across = by_force(texts, sides)
    assert (set(within), set(across)) == (want_within, want_across)
    assert len(within) >= 3 and len(across) >= 3
    for i, j in [*within.items(), *across.items()]:
        assert jaccard(texts[i], texts[j]) >= NEAR and texts[i] != texts[j]


def test_the_bound_is_met_on_both_sides() -> None:
    words = Words(9)
    for length, near in ((9, False), (10, False), (11, True), (12, True)):
        some = words.some(length)
        pair = [" ".join(some), " ".join([*some[:-1], "other"])]
        assert (jaccard(*pair) >= NEAR) is near
        assert bool(found(pair, [0, 0])[0]) is near, length


def test_similarity_is_that_of_the_sets() -> None:
    texts, _ = mixed(40, 11)
    shingler = Shingler()
    for a, b in pairwise(texts):
        one, two = shingler.whole([a]), shingler.whole([b])
        assert len(one) == len(grams(a))
        assert of_hashes(one, two) == pytest.approx(jaccard(a, b))
    assert of_hashes(shingler.whole([]), shingler.whole(["a b c"])) == 0.0


def test_a_text_in_pieces_is_the_text() -> None:
    rng = random.Random(3)
    text = " \n".join([Words(3).text(40), "Ünï cödé 漢 字", Words(4).text(9000)])
    whole = Shingler().whole([text])
    assert len(whole) == len(grams(text))
    for _ in range(3):
        cuts = sorted(rng.sample(range(len(text)), 60))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        assert np.array_equal(Shingler().whole(pieces), whole)
    assert len(Shingler().whole(["", " \n "])) == 0


def test_many_that_resemble_each_other_are_said_not_to_be_all_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("finetwo.insight.shingles._RUN", 5)
    index = Near()
    for i in range(8):
        index.add(i, ["one text that is there many times"])
    assert len(index.pairs()) == 7 + 6 + 5 + 4 + 3 and index.capped


def test_without_the_package_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasketch", None)
    with pytest.raises(EnvironmentFault, match=r"datasketch.*finetwo\[plan\]"):
        Near()
