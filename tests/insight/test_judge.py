"""Scores by a judge: the prompt, the strict reading of its reply, order, company and failures."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest
from tests.standins.chat import chatting

from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.insight import endpoint
from finetwo.insight.judge import PROMPT, Judge, JudgeOptions, judge_prompt, parse_score
from finetwo.insight.metric import Answered

DOCS = Path(__file__).parents[2] / "docs" / "evaluation.md"


@pytest.fixture(autouse=True)
def no_key_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)


def answers(count: int) -> list[Answered]:
    return [Answered(f"Say {i}.", "", f"I say {i}.", f"{i}", "stop") for i in range(count)]


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("85", 85),
        (" 0\n", 0),
        ("100", 100),
        ("Score: 85", 85),
        ("**85**", 85),
        ("85/100", 85),
        ("85 / 100", 85),
        ("85 out of 100", 85),
        ("85%", 85),
        ("I would give it 70. It misses 2 facts.", 70),
        ("GPT-4 would say 90", 90),
        ("<think>The answer misses 2 facts.</think>\n\n40", 40),
        ('{"score": 55}', 55),
        ("", None),
        ("good", None),
        ("8/10", None),
        ("8 out of 10", None),
        ("-5", None),
        ("+5", None),
        ("101", None),
        ("1000", None),
        ("85.5", None),
        ("8,5", None),
        ("0-100: 85", None),
        ("70–80", None),
        ("85th percentile", None),
        ("<think>about 50", None),
        ("٨٥", None),
    ],
)
def test_a_score_is_read_and_never_guessed(reply: str, score: int | None) -> None:
    assert parse_score(reply) == score


def test_the_prompt_holds_all_three_and_braces_stay() -> None:
    text = judge_prompt(Answered("Add {x}.", "1 {2}", "three", "{answer}", "stop"))
    assert "<instruction>\nAdd {x}.\n\n1 {2}\n</instruction>" in text
    assert "<reference>\nthree\n</reference>" in text
    assert "<answer>\n{answer}\n</answer>" in text
    assert "<instruction>\nAdd.\n</instruction>" in judge_prompt(Answered("Add.", "  ", "", "", "stop"))


def test_the_documented_prompt_is_the_one_used() -> None:
    (block,) = re.findall(r"```text\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert block.split() == PROMPT.split()


def test_scores_come_in_order_with_their_mean() -> None:
    def reply(prompt: str) -> str:
        number = int(re.search(r"<answer>\n(\d+)", prompt)[1])  # type: ignore[index]
        time.sleep(0.01 * (number % 3))
        return "no idea" if number % 10 == 9 else str(number % 100)

    with chatting(reply=reply) as chat:
        judge = Judge(JudgeOptions(chat.url, "grader", 5.0, 4), seed=0)
        found = list(judge.scores(answers(130)))
    assert [score for _, score in found] == [None if i % 10 == 9 else i % 100 for i in range(130)]
    assert [a for a, _ in found] == answers(130)
    kept = [i % 100 for i in range(130) if i % 10 != 9]
    assert judge.result() == {"judge": sum(kept) / len(kept), "judge_scored": 117, "judge_unparsed": 13}
    low, high = judge.intervals()["judge"]
    assert low < sum(kept) / len(kept) < high
    assert "by grader at http://127.0.0.1" in judge.protocol
    assert "13 replies without a score left out" in judge.protocol


@pytest.mark.parametrize("parallel", [1, 3])
def test_no_more_at_a_time_than_allowed(parallel: int) -> None:
    with chatting() as chat:
        chat.pause = 0.1
        judge = Judge(JudgeOptions(chat.url, "grader", 5.0, parallel), seed=0)
        list(judge.scores(answers(12)))
    assert chat.most == parallel


def test_answers_are_fetched_group_by_group() -> None:
    taken: list[int] = []

    def source() -> object:
        for i, answered in enumerate(answers(200)):
            taken.append(i)
            yield answered

    with chatting() as chat:
        judge = Judge(JudgeOptions(chat.url, "grader", 5.0, 4), seed=0)
        next(iter(judge.scores(source())))  # type: ignore[arg-type]
    assert len(taken) == 64


def test_a_failure_ends_it_at_once() -> None:
    """The other requests under way are not waited for."""
    with chatting(*[None] * 5, 401, *["hang"] * 60) as chat:
        judge = Judge(JudgeOptions(chat.url, "grader", 20.0, 4), seed=0)
        start = time.monotonic()
        with pytest.raises(InputError, match="HTTP 401"):
            list(judge.scores(answers(60)))
        assert time.monotonic() - start < 5


def test_it_is_tried_out_on_nothing_of_the_users() -> None:
    with chatting(reply=lambda _: "100") as chat:
        assert Judge(JudgeOptions(chat.url, "grader"), 0).try_out()
    assert len(chat.prompts) == 1
    assert json.dumps(chat.bodies).count("Write the word yes.") == 1
    with chatting(reply=lambda _: "lovely") as chat:
        assert not Judge(JudgeOptions(chat.url, "grader"), 0).try_out()
    with chatting("hang") as chat, pytest.raises(EnvironmentFault, match="no answer within"):
        Judge(JudgeOptions(chat.url, "grader", timeout=0.2), 0).try_out()


def test_no_score_at_all_is_no_mean() -> None:
    with chatting(reply=lambda _: "fine") as chat:
        judge = Judge(JudgeOptions(chat.url, "grader"), 0)
        list(judge.scores(answers(3)))
    assert judge.result() == {"judge": None, "judge_scored": 0, "judge_unparsed": 3}
    assert judge.intervals() == {}
