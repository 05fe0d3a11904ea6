"""Answers: those of the model, generated in groups, scored as they come, written whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from tests.standins.chat import chatting
from tests.standins.models import random_network, tiny_config

from finetwo.core.config import SamplingConfig
from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.data.examples import Example
from finetwo.generate.engine import Completion, Engine, Request
from finetwo.generate.pipeline import Model
from finetwo.insight import answers, endpoint
from finetwo.insight.answers import Answering, AnswerOptions
from finetwo.insight.judge import JudgeOptions
from finetwo.insight.predictions import check_new, read_predictions
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

TOKENS = 6


@pytest.fixture(scope="module")
def model(tiny_tokenizer: Tokenizer) -> Model:
    network = random_network(tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64))
    return Model(network, tiny_tokenizer, Template.named("plain"))


@pytest.fixture(autouse=True)
def no_key_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)


def examples(count: int, **more: str) -> list[Example]:
    return [
        Example({"prompt": f"Say {i}.", "input": "loud" if i % 2 else "", "completion": f"I {i}.", **more}, "f", i, i)
        for i in range(count)
    ]


def asked(model: Model, data: list[Example], options: AnswerOptions, **sampling: Any) -> dict[str, Any]:
    config = SamplingConfig(TOKENS, **sampling)
    return Answering(options, config, 8, lambda _: None).measure(model, data).to_dict("")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_are_the_models_and_figures_are_theirs(model: Model, tmp_path: Path) -> None:
    data = examples(20)
    own = [a.texts[0] for a in model.answers([e.fields for e in data], SamplingConfig(TOKENS))]
    for i in range(0, 20, 4):
        data[i].fields["completion"] = f"  {own[i]}\n"
    path = tmp_path / "p.jsonl"
    found = asked(model, data, AnswerOptions(("exact_match", "stop_rate", "distinct"), predictions=path))
    rows = lines(path)
    assert [r["answer"] for r in rows] == own
    assert [r["prompt"] for r in rows] == [e.fields["prompt"] for e in data]
    assert [r["reference"] for r in rows] == [e.fields["completion"] for e in data]
    assert [r.get("input") for r in rows] == [e.fields["input"] or None for e in data]
    assert found["exact_match"] == sum(r["answer"].strip() == r["reference"].strip() for r in rows) / 20 >= 5 / 20
    assert found["stop_rate"] == sum(r["finish_reason"] == "stop" for r in rows) / 20
    assert found["protocols"].keys() == {"exact_match", "stop_rate", "distinct_1", "distinct_2", "distinct_3"}
    assert all("greedy, at most 6 new tokens, template plain" in text for text in found["protocols"].values())
    assert found["intervals"].keys() == {"exact_match", "stop_rate"}
    assert [a.answer for a in read_predictions(path)] == own


def test_sampled_answers_say_so(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    options = AnswerOptions(("stop_rate",), predictions=path)
    found = asked(model, examples(5), options, temperature=0.9, top_p=0.8, top_k=7, seed=3)
    wanted = SamplingConfig(TOKENS, temperature=0.9, top_p=0.8, top_k=7, seed=3)
    own = [a.texts[0] for a in model.answers([e.fields for e in examples(5)], wanted)]
    assert [r["answer"] for r in lines(path)] == own
    assert "sampled (temperature 0.9, top_p 0.8, top_k 7, seed 3)" in found["protocols"]["stop_rate"]


def test_a_conversation_is_asked_for_its_last_answer(model: Model, tmp_path: Path) -> None:
    turns = [("user", "Hello."), ("assistant", "Hi."), ("user", "Who?"), ("assistant", "Me."), ("user", "Bye.")]
    talk = [{"role": role, "content": content} for role, content in turns]
    path = tmp_path / "p.jsonl"
    asked(model, [Example({"messages": json.dumps(talk)}, "f", 1, 1)], AnswerOptions(predictions=path))
    (row,) = lines(path)
    assert row["reference"] == "Me."
    assert row["prompt"] == "user: Hello.\n\nassistant: Hi.\n\nuser: Who?"
    assert row["answer"] == model.answers([talk[:3]], SamplingConfig(TOKENS))[0].texts[0]


def test_memory_does_not_grow_with_the_records(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more prompts at a time than a group, no more of them computed than asked, and each on disk before the next."""
    sizes: list[int] = []
    slots: set[int] = set()
    written: list[int] = []

    class Watched(Engine):
        def __init__(self, *given: Any, **more: Any) -> None:
            super().__init__(*given, **more)
            slots.add(self.max_slots)

        def complete(self, requests: Sequence[Request]) -> list[list[Completion]]:
            sizes.append(len(requests))
            written.append(sum(p.stat().st_size for p in tmp_path.iterdir()))
            return [[Completion("x" * 200, [1], "stop")] for _ in requests]

    monkeypatch.setattr(answers, "Engine", Watched)
    asked(model, examples(300), AnswerOptions(predictions=tmp_path / "p.jsonl"))
    assert sizes == [64, 64, 64, 64, 44]
    assert slots == {8}
    assert written[0] == 0
    assert all(later > before + 40 * 200 for before, later in pairwise(written[1:]))


def test_a_prompt_that_lost_its_beginning_is_said(model: Model) -> None:
    said: list[str] = []
    data = examples(3)
    data[1].fields["prompt"] = "steps and steps " * 60
    Answering(AnswerOptions(), SamplingConfig(TOKENS), 8, said.append).measure(model, data)
    assert said == ["warning: 1 prompts were longer than the context and lost their beginning"]


def test_predictions_are_whole_or_not_there(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Engine, requests: Sequence[Request]) -> list[list[Completion]]:
        raise KeyboardInterrupt

    monkeypatch.setattr(Engine, "complete", broken)
    with pytest.raises(KeyboardInterrupt):
        asked(model, examples(3), AnswerOptions(predictions=tmp_path / "p.jsonl"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_there_stays(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text("mine")
    with pytest.raises(InputError, match="--predictions: exists already"):
        asked(model, examples(1), AnswerOptions(predictions=path))
    assert path.read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name, what in (("link", "exists already"), ("no/p.jsonl", "its folder is not there"), (".", "exists already")):
        with pytest.raises(InputError, match=what):
            check_new(tmp_path / name)


def test_judged_answers_bear_their_score(model: Model, tmp_path: Path) -> None:
    path, said = tmp_path / "p.jsonl", list[str]()
    with chatting(None, reply=lambda text: "none" if "Say 2." in text else "40") as chat:
        options = AnswerOptions((), predictions=path, judge=JudgeOptions(chat.url, "grader"))
        found = Answering(options, SamplingConfig(TOKENS), 8, said.append).measure(model, examples(6)).to_dict("")
    assert [r["judge"] for r in lines(path)] == [40, 40, None, 40, 40, 40]
    assert (found["judge"], found["judge_scored"], found["judge_unparsed"]) == (40.0, 5, 1)
    assert found["intervals"]["judge"] == [40.0, 40.0]
    assert "greedy" in found["protocols"]["judge"]
    assert len(chat.prompts) == 7  # one to try the judge out
    assert said == [f"judge: 6 prompts, references and answers go to {chat.url}/chat/completions"]


def test_without_a_file_answers_are_judged_and_nothing_is_left(model: Model, tmp_path: Path) -> None:
    with chatting() as chat:
        found = asked(model, examples(3), AnswerOptions((), judge=JudgeOptions(chat.url, "grader")))
    assert found["judge"] == 50.0
    assert list(tmp_path.iterdir()) == []


def test_a_judge_that_fails_leaves_the_predictions(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    with chatting(None, *[500] * 99) as chat, pytest.raises(EnvironmentFault, match="HTTP 500"):
        asked(model, examples(3), AnswerOptions((), predictions=path, judge=JudgeOptions(chat.url, "grader")))
    assert [set(r) >= {"answer"} and "judge" not in r for r in lines(path)] == [True] * 3
    assert [p.name for p in tmp_path.iterdir()] == ["p.jsonl"]


def test_a_judge_is_tried_before_anything_is_generated(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    with chatting(401) as chat, pytest.raises(InputError, match="HTTP 401"):
        Answering(AnswerOptions(judge=JudgeOptions(chat.url, "grader")), SamplingConfig(TOKENS), 8, said.append)
    with chatting(reply=lambda _: "hm") as chat:
        Answering(AnswerOptions(judge=JudgeOptions(chat.url, "grader")), SamplingConfig(TOKENS), 8, said.append)
    assert said == ["warning: grader did not reply with a score when tried out; such replies are counted, not guessed"]
    said.clear()
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    monkeypatch.setattr(endpoint, "_is_local", lambda host: False)
    with chatting() as chat:
        Answering(AnswerOptions(judge=JudgeOptions(chat.url, "grader")), SamplingConfig(TOKENS), 8, said.append)
    assert len(said) == 1
    assert "OPENAI_API_KEY is not sent" in said[0]
