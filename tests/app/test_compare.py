"""`finetwo compare` as a person meets it: models, runs, adapters and endpoints side by side."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.standins.chat import chatting
from tests.standins.models import fill_lora, random_network, tiny_config
from tests.standins.verbs import ask, figures

from finetwo.app.api import load, train
from finetwo.insight import endpoint
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

PROMPTS = ["The lamp", "Who's there?", "nine"]
ASK = ["--prompts", "prompts.txt", "--max_new_tokens", "5"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, another model, a fresh and a filled adapter, classifiers, prompts and a prefix."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    shape = tiny_config(vocab_size=400, n_positions=64)
    for seed, name in enumerate(("base", "other")):
        save_model(tmp_path / name, random_network(shape, seed), tiny_tokenizer, Extras())
    for name, fill in (("fresh", False), ("filled", True)):
        model = load("base")
        model.add_lora(rank=2)
        if fill:
            fill_lora(model.network)
        model.save(name)
    for seed, name in enumerate(("one", "two")):
        network = Network.fresh(shape, seed)
        network.add_classes(("no", "yes"), "last", seed)
        save_model(tmp_path / name, network, tiny_tokenizer, Extras(task="classify"))
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS) + "\n", encoding="utf-8")
    (tmp_path / "shots.txt").write_text("Q: a\nA: b\n\nQ: ", encoding="utf-8")
    return tmp_path


def kl(found: dict[str, Any]) -> dict[tuple[str, str], float]:
    return {(one["first"], one["second"]): one["kl"] for one in found["kl"]}


def test_an_untrained_adapter_has_no_divergence(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "compare", "base", "fresh", "filled", *ASK, "--temperature", "0.9", "--seed", "3")
    far = kl(found)
    assert far["base", "fresh"] == far["fresh", "base"] == 0.0
    assert far["base", "filled"] > 0
    answers = [one["answers"] for one in found["answers"]]
    assert all(a["base"] == a["fresh"] for a in answers)
    assert any(a["base"] != a["filled"] for a in answers)
    wanted = load("base").generate(PROMPTS, max_new_tokens=5, temperature=0.9, seed=3)
    assert [a["base"] for a in answers] == wanted
    assert [one["prompt"] for one in found["answers"]] == PROMPTS


def test_a_run_beside_its_base_and_an_endpoint(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"prompt": f"Say {i}.", "completion": f"I say {i}."} for i in range(8)]
    train(rows, model="base", out="run", max_steps=2, batch_size=2, template="plain", sample_every="0")
    with chatting(reply=lambda text: f"heard {len(text)}") as chat:
        words = ["run", "base", f"{chat.url}#llama-7b", *ASK, "--prefix", "shots.txt", "--prefix_for", "endpoints"]
        found = figures(capsys, "compare", *words)
        for ending in ("html", "md", "txt"):
            code, _, error = ask(capsys, "compare", *words, "--report", f"page.{ending}")
            assert code == 0, error
            page = (here / f"page.{ending}").read_text(encoding="utf-8")
            for part in ("llama-7b", "heard 22", "Who's there?".replace("'", "&#x27;" if ending == "html" else "'")):
                assert part in page, (ending, part)
    sent = [body["messages"][-1]["content"] for body in chat.bodies[:3]]
    assert sorted(sent) == sorted("Q: a\nA: b\n\nQ: " + p for p in PROMPTS)
    assert all(body["model"] == "llama-7b" and body["max_tokens"] == 5 for body in chat.bodies)
    assert found["models"] == ["run", "base", f"{chat.url}#llama-7b"]
    assert set(kl(found)) == {("run", "base"), ("base", "run")}
    template = Template.named("plain")
    wanted = load("base").generate(PROMPTS, max_new_tokens=5)
    assert [one["answers"]["base"] for one in found["answers"]] == wanted
    assert load("run").template == template  # and the run is asked by it
    assert [one["answers"]["run"] for one in found["answers"]] == load("run").generate(PROMPTS, max_new_tokens=5)


def test_the_prefix_is_for_all_unless_said(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "compare", "base", "other", *ASK, "--prefix", "shots.txt")
    wanted = load("base").generate(["Q: a\nA: b\n\nQ: " + p for p in PROMPTS], max_new_tokens=5)
    assert [one["answers"]["base"] for one in found["answers"]] == wanted


def test_the_same_name_twice_is_numbered(capsys: pytest.CaptureFixture[str]) -> None:
    found = figures(capsys, "compare", "base", "base", *ASK)
    assert found["models"] == ["base (1)", "base (2)"]
    assert kl(found)["base (1)", "base (2)"] == 0.0


def test_hostile_prompts_and_answers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hostile = "\x1b]0;owned\x07<img src=x onerror=alert(1)>\x1b[2J"
    (here / "prompts.json").write_text(json.dumps([hostile]), encoding="utf-8")
    with chatting(reply=lambda _: hostile + "\ud800") as chat:
        words = [f"{chat.url}#a", f"{chat.url}#b", "--prompts", "prompts.json"]
        found = figures(capsys, "compare", *words)
        assert found["answers"][0]["prompt"] == hostile
        for ending in ("html", "md", "txt"):
            code, out, error = ask(capsys, "compare", *words, "--report", f"page.{ending}")
            assert code == 0, error
            page = (here / f"page.{ending}").read_text(encoding="utf-8")
            assert "\x1b" not in out + page
            assert r"\x1b]0;owned" in out
            if ending != "txt":
                assert "<img" not in page


def test_prompts_of_every_form(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "prompts.jsonl").write_text('{"instruction": "Who?", "input": "The door."}\n{"prompt": "nine"}\n')
    with chatting(reply=lambda text: text) as chat:
        found = figures(capsys, "compare", f"{chat.url}#a", f"{chat.url}#b", "--prompts", "prompts.jsonl")
    assert [one["prompt"] for one in found["answers"]] == ["Who?\n\nThe door.", "nine"]


def test_classifiers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = [f"the lamp {i} {'wall' * (i % 3)},{'yes' if i % 2 else 'no'}\n" for i in range(30)]
    (here / "data.csv").write_text("text,label\n" + "".join(lines) + '"<b>\x1b[1m bold",yes\n', encoding="utf-8")
    found = figures(capsys, "compare", "one", "two", "--data", "data.csv")
    assert found["records"] == 31
    (test,) = found["mcnemar"]
    apart = test["only_first_right"] + test["only_second_right"]
    assert apart == len(found["disagreements"]) > 0  # two classes: who differs, one of them is right
    code, out, error = ask(capsys, "compare", "one", "two", "--data", "data.csv", "--report", "page.html")
    assert code == 0, error
    assert f"{found['accuracy']['one']['rate']:.2%}" in out
    assert f"{test['p_value']:.4g}" in out
    page = (here / "page.html").read_text(encoding="utf-8")
    assert "\x1b" not in out + page
    assert "<b>" not in page


def test_nothing_leaves_the_machine_unasked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setenv("OPENAI_API_KEY", "sk-never")
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    figures(capsys, "compare", "base", "other", *ASK)


def test_an_endpoint_in_trouble_is_one_line(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    before = sorted(p.name for p in here.iterdir())
    for fault, code, part in ((401, 2, "HTTP 401"), ("html", 2, "no chat completion"), ("hang", 3, "--timeout")):
        with chatting(*[fault] * 3) as chat:
            words = ["base", f"{chat.url}#m", *ASK, "--timeout", "0.3", "--report", "page.md"]
            got, out, line = ask(capsys, "compare", *words)
        assert (got, out) == (code, ""), line
        assert part in line
        assert "Fix: " in line
    assert sorted(p.name for p in here.iterdir()) == before


BAD: list[tuple[list[str], list[str]]] = [
    (["base", *ASK], ["two models or more"]),
    (["base", "other"], ["give prompts, or labelled data"]),
    (["base", "other", *ASK, "--data", "data.csv"], ["not both"]),
    (["base", "one", *ASK], ["one", "is a classifier", "--data"]),
    (["base", "other", "--data", "prompts.txt"], ["is a language model", "--prompts"]),
    (["base", "other", "--prompts", "none.txt"], ["none.txt"]),
    (["base", "other", *ASK, "--prefix", "none.txt"], ["none.txt"]),
    (["base", "other", *ASK, "--prefix_for", "models"], ["--prefix_for", "all or endpoints"]),
    (["base", "http://localhost:9/v1", *ASK], ["does not say which model", "#MODEL"]),
    (["base", "other", *ASK, "--timeout", "0"], ["--timeout"]),
    (["base", "other", *ASK, "--report", "x"], ["--report"]),
    (["base", "other", *ASK, "--top_p", "2"], ["top_p"]),
]


@pytest.mark.parametrize(("words", "parts"), BAD, ids=[" ".join(w[-2:]) for w, _ in BAD])
def test_what_is_wrong_is_one_line(words: list[str], parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, out, line = ask(capsys, "compare", *words)
    assert (code, out) == (2, "")
    for part in parts:
        assert part in line
