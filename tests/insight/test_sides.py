"""Local models and endpoints, asked alike."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.standins.chat import chatting
from tests.standins.models import random_network, tiny_config

from finetwo.core.config import SamplingConfig
from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.generate.pipeline import Model
from finetwo.insight import endpoint
from finetwo.insight.sides import Side, ask, is_endpoint, open_endpoint, plain, prefixed
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

TURNS = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Who?"},
    {"role": "assistant", "content": "The keeper."},
    {"role": "user", "content": "Where?"},
]


@pytest.fixture(autouse=True)
def no_key_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)


@pytest.fixture
def model(tiny_tokenizer: Tokenizer) -> Model:
    network = random_network(tiny_config(vocab_size=400, n_positions=192))
    return Model(network, tiny_tokenizer, Template.named("chat"), "instruct", "m")


def test_what_is_an_endpoint() -> None:
    assert is_endpoint("http://h/v1#m")
    assert is_endpoint("https://h/v1#m")
    assert not is_endpoint("owner/name")
    assert not is_endpoint("httpdocs")
    with pytest.raises(InputError, match=r"does not say which model.*#MODEL"):
        open_endpoint("http://h/v1", 1.0)
    with pytest.raises(InputError, match="holds a name or a password"):
        open_endpoint("http://me:secret@h/v1#m", 1.0)
    assert open_endpoint("http://h/v1#owner/chat-7b", 1.0).model == "owner/chat-7b"


def test_the_prefix_stands_before_the_question() -> None:
    assert prefixed("Who?", "") == "Who?"
    assert prefixed("Who?", "Q: ") == "Q: Who?"
    assert prefixed({"instruction": "Who?", "context": "x"}, "Q: ") == {
        "instruction": "Who?",
        "context": "x",
        "prompt": "Q: Who?",
        "input": "x",
    }
    assert prefixed(TURNS, "Q: ") == [*TURNS[:-1], {"role": "user", "content": "Q: Where?"}]


def test_a_prompt_as_one_text() -> None:
    assert plain("Who?") == "Who?"
    assert plain({"prompt": "Who?", "input": " "}) == "Who?"
    assert plain({"instruction": "Who?", "context": "The door."}) == "Who?\n\nThe door."
    assert plain(TURNS).splitlines()[::2] == [
        "system: Be brief.",
        "user: Who?",
        "assistant: The keeper.",
        "user: Where?",
    ]


def test_an_endpoint_is_sent_what_local_models_are(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = SamplingConfig(max_new_tokens=9, temperature=0.7, top_p=0.9, top_k=5, stop=["\n"], seed=3)
    prompts = ["Who?", {"prompt": "Who?", "input": "The door."}, TURNS]
    with chatting(reply=lambda text: f"<{text}>") as chat:
        side = Side("chat", endpoint=open_endpoint(f"{chat.url}#llama", 5.0))
        ask(side, prompts, sampling)
    assert side.answers == ["<Who?>", "<Who?\n\nThe door.>", "<Where?>"]
    by_prompt = {body["messages"][-1]["content"]: body for body in chat.bodies}
    assert by_prompt["Who?"] == {
        "model": "llama",
        "messages": [{"role": "user", "content": "Who?"}],
        "temperature": 0.7,
        "max_tokens": 9,
        "top_p": 0.9,
        "seed": 3,
        "stop": ["\n"],
    }
    assert by_prompt["Where?"]["messages"] == TURNS


def test_greedy_asks_for_nothing_random() -> None:
    with chatting() as chat:
        ask(Side("chat", endpoint=open_endpoint(f"{chat.url}#m", 5.0)), ["a"], SamplingConfig(max_new_tokens=4))
    assert chat.bodies[0].keys() == {"model", "messages", "temperature", "max_tokens"}


def test_answers_keep_the_order_of_the_prompts() -> None:
    with chatting(None, 503, None, 429, reply=lambda text: text) as chat:
        side = Side("chat", endpoint=open_endpoint(f"{chat.url}#m", 5.0))
        ask(side, [str(i) for i in range(12)], SamplingConfig())
    assert side.answers == [str(i) for i in range(12)]
    assert chat.most <= 4


def test_one_failure_ends_it() -> None:
    with chatting(401) as chat, pytest.raises(InputError, match="HTTP 401"):
        ask(Side("chat", endpoint=open_endpoint(f"{chat.url}#m", 5.0)), ["a"], SamplingConfig())
    with chatting("hang") as chat, pytest.raises(EnvironmentFault, match=r"0\.2 seconds.*--timeout"):
        ask(Side("chat", endpoint=open_endpoint(f"{chat.url}#m", 0.2)), ["a"], SamplingConfig())


@pytest.mark.parametrize("raw", [False, True])
def test_a_local_model_answers_as_it_always_does(raw: bool, model: Model) -> None:
    sampling = SamplingConfig(max_new_tokens=6, temperature=0.9, seed=2)
    prompts: list[object] = ["Who is there?", {"prompt": "Who?"}] + ([] if raw else [TURNS])
    side = Side("m", model=model)
    ask(side, prompts, sampling, raw=raw)  # type: ignore[arg-type]
    wanted = model.answers(prompts, sampling, raw=raw)  # type: ignore[arg-type]
    assert side.answers == [answer.texts[0] for answer in wanted]
    for prompt, written in zip(prompts, side.written, strict=True):
        assert list(written.prompt) == model.prompt_ids(prompt, raw=raw)  # type: ignore[arg-type]
        assert 1 <= len(written.answer) <= 6


def test_what_was_written_is_what_the_network_read(model: Model) -> None:
    """Greedy: the answer's tokens are the argmax behind the prompt's."""
    side = Side("m", model=model)
    ask(side, ["Who is there?"], SamplingConfig(max_new_tokens=5))
    (written,) = side.written
    ids = list(written.prompt)
    for token in written.answer:
        with torch.no_grad():
            assert token == int(model.network(torch.tensor([ids]))[0, -1, :400].argmax())
        ids.append(token)


def test_a_long_prompt_loses_its_beginning_on_both_accounts(model: Model) -> None:
    side = Side("m", model=model)
    ask(side, ["the lamp " * 200], SamplingConfig(max_new_tokens=5), raw=True)
    assert len(side.written[0].prompt) == 192 - 5


def test_nothing_leaves_without_an_endpoint(model: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    ask(Side("m", model=model), ["Who?"], SamplingConfig(max_new_tokens=2))
