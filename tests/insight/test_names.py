"""Which words are names of a text, and which of them turn up elsewhere."""

from __future__ import annotations

from collections import Counter

from finetwo.insight.names import carried, training_names

TEXT = (
    "The harbour saw Orlin. He met Mr. Brevik, and Orlin laughed. Again the Lamp burned, and the lamp, the lamp went "
    "out. Nobody knew Tamsa, not even Mrs Brevik; they asked Tamsa twice. Will you come, said Will, "
    "as he will, will he "
)


def test_names_stand_inside_sentences_and_are_no_common_words() -> None:
    found = training_names([TEXT])
    assert found == Counter({"Orlin": 2, "Brevik": 2, "Tamsa": 2})  # neither Lamp nor Will, The nor Nobody


def test_a_name_is_counted_over_pieces_and_lines() -> None:
    assert training_names(["they saw Orlin and\n", "then met\nOrlin again"])["Orlin"] == 2
    assert training_names(["they saw Orlin once"]) == Counter()


def test_what_is_carried_over() -> None:
    names = Counter({"Orlin": 9, "Brevik": 4, "Tamsa": 2, "Quoyle": 5})
    generated = ["Then Orlin, and Orlin’s boat.", "Brevik! Quoyle?", "no one (Brevik) knew"]
    found, touched = carried(names, generated, base=["a Quoyle"], openings=["so Tamsa"], held_out=["met Brevik"])
    assert [(f.name, f.texts, f.in_training, f.in_held_out) for f in found] == [
        ("Brevik", 2, 4, True),
        ("Orlin", 1, 9, False),
    ]
    assert touched == 3


def test_punctuation_does_not_hide_a_name() -> None:
    names = Counter({"Orlin": 3})
    for text in ("Orlin.", "“Orlin!”", "Orlin's", "(Orlin)", "Orlin—he", "to Orlin\nthen"):
        assert carried(names, [text], [], [], [])[1] == 1, text
    for text in ("Orlinson", "MacOrlin", "ORLIN", "orlin"):
        assert carried(names, [text], [], [], []) == ([], 0), text


def test_names_with_accents() -> None:
    assert training_names(["they met Zoë and saw Zoë again"]) == Counter({"Zoë": 2})
