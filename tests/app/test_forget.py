"""`finetwo forget` as a person meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.standins.models import TEXT, fill_lora, random_network, tiny_config
from tests.standins.verbs import ask

from finetwo.app.api import load
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, an adapter on it, a whole model, and texts."""
    monkeypatch.chdir(tmp_path)
    shape = tiny_config(vocab_size=400, n_positions=64)
    for seed, name in enumerate(("base", "whole")):
        save_model(tmp_path / name, random_network(shape, seed), tiny_tokenizer, Extras())
    model = load("base")
    model.add_lora(rank=2)
    fill_lora(model.network)
    model.save("adapter")
    (tmp_path / "text.txt").write_text(TEXT, encoding="utf-8")
    return tmp_path


def test_the_curve_of_an_adapter(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["adapter", "--text", "text.txt", "--own", "text.txt", "--window", "32"]
    code, out, error = ask(capsys, "forget", *words, "--json")
    assert code == 0, error
    found = json.loads(out)
    points = found["neutral"]["points"]
    assert [p["strength"] for p in points] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5]
    assert points[0]["ratio"] == 1.0
    assert points[6]["loss"] != points[4]["loss"] != points[0]["loss"]
    assert found["own"]["points"] == points
    code, out, _ = ask(capsys, "forget", *words, "--report", "page.html")
    page = (here / "page.html").read_text(encoding="utf-8")
    for point in points:
        assert f"{point['perplexity']:,.3f}" in out
        assert f"<td>{point['perplexity']:,.3f}</td>" in page
    assert "0, the base" in out
    assert "1, the model" in out


def test_strengths_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = ask(capsys, "forget", "adapter", "--text", "text.txt", "--strengths", "0.5,-1", "--json")
    assert [p["strength"] for p in json.loads(out)["neutral"]["points"]] == [0.5, -1.0]


def test_a_whole_model_before_and_after(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = ask(capsys, "forget", "whole", "--base", "base", "--text", "text.txt")
    assert code == 0, error
    assert "no adapter" in out
    assert [w[0] for w in (line.split() for line in out.splitlines()) if w[:1] in (["before"], ["after"])] == [
        "before",
        "after",
    ]


def test_the_neutral_text_is_there_without_asking(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, error = ask(capsys, "forget", "adapter", "--strengths", "1")
    assert code == 0, error
    assert "Neutral text: the neutral text of FineTwo" in out


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["one model is needed"]),
        (["whole"], ["whole", "does not say what it was tuned from", "--base"]),
        (["adapter", "--text", "none.txt"], ["none.txt"]),
        (["adapter", "--strengths", "11"], ["--strengths", "-10 to 10", "got 11"]),
        (["adapter", "--strengths", "nan"], ["--strengths"]),
        (["adapter", "--strengths", "much"], ["--strengths", "much"]),
        (["adapter", "--window", "1"], ["--window", ">= 2"]),
        (["adapter", "--report", "page.doc"], ["--report", ".html"]),
        (["adapter", "--strength", "1"], ["did you mean"]),
    ],
)
def test_what_is_wrong_is_one_line(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, line = ask(capsys, "forget", *words)
    assert (code, out) == (2, "")
    for part in parts:
        assert part in line
