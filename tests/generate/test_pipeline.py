from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.generate.conftest import random_network, shape
from tests.standins.sequences import encoded

from finetwo.core.config import SamplingConfig
from finetwo.core.errors import InputError
from finetwo.data.sequences import Segment
from finetwo.generate.pipeline import Model
from finetwo.model.network import Network
from finetwo.store.models import open_model
from finetwo.text.template import Template, Turn
from finetwo.text.tokenizer import Tokenizer


@pytest.fixture
def model(network: Network, tokenizer: Tokenizer) -> Model:
    return Model(network, tokenizer, Template.named("dolly"))


def test_the_answer_has_the_shape_of_the_question(model: Model) -> None:
    one = model.generate("the cat", max_new_tokens=5)
    assert isinstance(one, str)
    three = model.generate("the cat", max_new_tokens=5, n=3, temperature=1.0)
    assert isinstance(three, list) and len(three) == 3
    assert model.generate(["the cat", {"instruction": "one"}], max_new_tokens=5) == [
        one,
        model.generate("one", max_new_tokens=5),
    ]
    assert model.generate(["the cat"], max_new_tokens=5, n=3, temperature=1) == [three]
    assert model.generate([], max_new_tokens=5) == []


def test_fields_fill_the_template(model: Model, tokenizer: Tokenizer) -> None:
    assert model.template is not None
    wanted = tokenizer.encode(model.template.prompt({"prompt": "sum", "input": "1 2"}))
    for names in (("prompt", "input"), ("instruction", "context"), ("instruction", "input"), ("question", "context")):
        assert model.prompt_ids(dict(zip(names, ("sum", "1 2"), strict=True))) == wanted
    assert model.prompt_ids("sum") == tokenizer.encode("### Instruction: sum\n\n### Response: ")
    assert model.prompt_ids("sum", raw=True) == tokenizer.encode("sum")
    assert Model(model.network, tokenizer).prompt_ids({"prompt": "sum"}) == tokenizer.encode("sum")


def test_end_of_text_in_a_prompt_is_text(model: Model, tokenizer: Tokenizer) -> None:
    assert tokenizer.eot not in model.prompt_ids("a<|endoftext|>b")


def test_bad_prompts_are_refused(model: Model, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="'prompt'"):
        model.generate({"input": "x"})
    with pytest.raises(InputError, match="must be text"):
        model.generate({"prompt": 3})  # type: ignore[dict-item]
    with pytest.raises(InputError, match="no place"):
        Model(model.network, tokenizer).generate({"prompt": "a", "input": "b"})
    with pytest.raises(InputError, match="n = 1"):
        model.stream("a", SamplingConfig(n=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 5}, r"max_length: no such sampling setting. Fix: the settings are max_new_tokens, temperature"),
        ({"temperature": "hot"}, "temperature: must be a number"),
        ({"top_k": 1.5}, "top_k: must be an integer"),
        ({"n": True}, "n: must be an integer"),
        ({"top_p": 0}, "^top_p: out of range"),
        ({"stop": [1]}, "stop: must be a string"),
        ({"stop": ""}, "stop: a stop string must not be empty"),
    ],
)
def test_bad_settings_are_refused(model: Model, settings: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.generate("a", **settings)


def test_the_stream_joined_is_the_answer(model: Model) -> None:
    sampling = SamplingConfig(max_new_tokens=15, temperature=1.0, stop=["th"])
    (answer,) = model.answers(["the cat"], sampling)
    assert "".join(model.stream("the cat", sampling)) == answer.texts[0]
    assert answer.prompt == "the cat" and len(answer.finish_reasons) == 1
    assert answer.prompt_tokens == len(model.prompt_ids("the cat")) and not answer.truncated
    assert model.generate("the cat", max_new_tokens=15, temperature=1, stop="th") == answer.texts[0]


def test_a_prompt_too_long_is_said(tokenizer: Tokenizer) -> None:
    model = Model(random_network(shape(n_positions=16)), tokenizer)
    (answer,) = model.answers(["zq" * 30])
    assert answer.truncated and answer.prompt_tokens == 8
    (short,) = model.answers(["zq" * 30], SamplingConfig(max_new_tokens=3))
    assert short.truncated and short.prompt_tokens == 13


def test_adapters_and_counts(tokenizer: Tokenizer) -> None:
    model = Model(random_network(shape()), tokenizer, name="small")
    before, text = model.n_parameters, model.generate("one")
    assert model.add_lora(rank=2) == 4
    model.freeze_all_but_lora()
    learned = sum(p.numel() for p in model.network.parameters() if p.requires_grad)
    assert model.n_parameters == before + learned and learned > 0
    assert model.generate("one") == text


def test_a_saved_model_answers_as_before(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = Model(random_network(shape()), tokenizer, Template.named("dolly"), "instruct", "small")
    said = model.generate("a cat", max_new_tokens=8)
    model.save(tmp_path / "whole")
    whole = open_model(str(tmp_path / "whole"))
    again = Model(whole.network, whole.tokenizer, whole.extras.template, whole.extras.task)
    assert again.generate("a cat", max_new_tokens=8) == said
    with pytest.raises(InputError, match="not an empty folder"):
        model.save(tmp_path / "whole")
    model.base = str(tmp_path / "whole")
    model.add_lora(rank=2, targets=["c_attn", "mlp.c_fc"])
    for name, p in model.network.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, generator=torch.Generator().manual_seed(1))
    tuned = model.generate("a cat", max_new_tokens=8)
    model.save(tmp_path / "adapter")
    opened = open_model(str(tmp_path / "adapter"))
    assert opened.is_adapter
    assert Model(opened.network, tokenizer, opened.extras.template).generate("a cat", max_new_tokens=8) == tuned


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"r": 8}, "use rank"),
        ({"rank": "8"}, "wrong type"),
        ({"rank": 8.5}, "wrong type"),
        ({"rank": True}, "wrong type"),
        ({"rank": 0}, "1 to 1024"),
        ({"targets": ["c_atn"]}, "no layer has this name"),
    ],
)
def test_adapter_settings_are_checked(tokenizer: Tokenizer, settings: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        Model(random_network(shape()), tokenizer).add_lora(**settings)  # type: ignore[arg-type]


# --- conversations ----------------------------------------------------------------------------------------------

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "the cat sat"},
    {"role": "user", "content": "two"},
]


@pytest.mark.parametrize("name", ["alpaca", "dolly", "plain", "chat"])
def test_the_prompt_of_a_conversation_is_what_training_read(network: Network, tokenizer: Tokenizer, name: str) -> None:
    """Serving prompt = training prompt, token for token, the end-of-text after each answer included."""
    template = Template.named(name)
    model = Model(network, tokenizer, template)
    turns = [Turn(t["role"], t["content"]) for t in TALK]  # type: ignore[arg-type]
    pieces = template.conversation([*turns, Turn("assistant", "the dog")])
    segments = [Segment(text, learn=answer, end=answer) for text, answer in pieces]
    whole, fate = encoded(tokenizer, segments, 10_000)
    assert whole is not None and fate == "kept"
    answer = len(tokenizer.encode("the dog"))
    ids = model.prompt_ids(TALK)
    assert ids == whole.tokens[: len(whole) - answer].tolist()
    assert model.prompt_ids(turns) == ids
    assert ids.count(tokenizer.eot) == 1
    assert whole.learned == answer + 1 + len(tokenizer.encode("the cat sat")) + 1


def test_a_conversation_of_one_question_is_the_ordinary_prompt(model: Model) -> None:
    assert model.prompt_ids([{"from": "human", "value": "sum"}]) == model.prompt_ids("sum")
    asked = [{"role": "user", "content": "sum"}]
    assert model.generate(asked, max_new_tokens=5) == model.generate("sum", max_new_tokens=5)
    assert "".join(model.stream(asked, SamplingConfig(max_new_tokens=5))) == model.generate("sum", max_new_tokens=5)


def test_lists_of_turns_and_lists_of_prompts_are_told_apart(model: Model) -> None:
    one = model.generate(TALK, max_new_tokens=4)
    assert isinstance(one, str)
    assert model.generate([TALK, "sum"], max_new_tokens=4) == [one, model.generate("sum", max_new_tokens=4)]
    several = model.generate(TALK, max_new_tokens=4, n=2, temperature=1)
    assert isinstance(several, list) and len(several) == 2


def test_bad_conversations_are_refused(model: Model, tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="the last turn must be the user's"):
        model.generate(TALK[:3])
    with pytest.raises(InputError, match="prompt: turn 2: a turn needs role and content"):
        model.generate([TALK[1], {"role": "assistant"}, TALK[3]])
    with pytest.raises(InputError, match="the last turn must be the user's"):
        model.answers([[]])
    bare = Model(model.network, tokenizer, name="novels")
    for ask in (bare.generate, bare.prompt_ids):
        with pytest.raises(InputError, match="a conversation needs a template, and novels has none") as caught:
            ask(TALK)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="with raw"):
        model.prompt_ids(TALK, raw=True)


def long_talk(count: int) -> list[dict[str, str]]:
    turns = [{"role": "system", "content": "be"}]
    for i in range(count):
        turns += [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}]
    return [*turns, {"role": "user", "content": "last"}]


def test_a_long_conversation_loses_its_oldest_turns_whole(tokenizer: Tokenizer) -> None:
    """The system's turn and the last question stay, and the caller is told how many turns went."""
    model = Model(random_network(shape(n_positions=64)), tokenizer, Template.named("plain"))
    talk = long_talk(12)
    kept, dropped = model.fit_turns(talk, max_new_tokens=8)
    assert 0 < dropped < 24 and dropped % 2 == 0
    assert [t.content for t in kept] == ["be", *(t["content"] for t in talk[1 + dropped :])]
    assert len(model.prompt_ids(kept)) <= 64 - 8 < len(model.prompt_ids([talk[0], *talk[dropped - 1 :]]))
    (answer,) = model.answers([talk], SamplingConfig(max_new_tokens=8))
    assert answer.dropped_turns == dropped and answer.truncated and answer.prompt is talk
    assert answer.prompt_tokens == len(model.prompt_ids(kept))
    assert answer.texts == model.answers([kept], SamplingConfig(max_new_tokens=8))[0].texts
    assert "".join(model.stream(talk, SamplingConfig(max_new_tokens=8))) == answer.texts[0]
    assert model.fit_turns(long_talk(1), max_new_tokens=8) == (model.fit_turns(long_talk(1), 1)[0], 0)
    assert model.answers([long_talk(1)], SamplingConfig(max_new_tokens=8))[0].dropped_turns == 0


def test_a_last_question_too_long_loses_its_beginning(tokenizer: Tokenizer) -> None:
    model = Model(random_network(shape(n_positions=32)), tokenizer, Template.named("plain"))
    talk = [*long_talk(1)[:-1], {"role": "user", "content": "zq" * 40}]
    kept, dropped = model.fit_turns(talk, 4)
    assert dropped == 2 and [t.role for t in kept] == ["system", "user"]
    (answer,) = model.answers([talk], SamplingConfig(max_new_tokens=4))
    assert answer.truncated and answer.dropped_turns == 2 and answer.prompt_tokens == 28
