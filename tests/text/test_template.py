"""Prompts to the letter."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetwo.core.errors import InputError
from finetwo.text.template import (
    Template,
    Turn,
    blank_part,
    parse_turns,
    placeholders,
    turns_from_json,
    turns_json,
)

ALPACA = """Below is an instruction that describes a task. Write a response that appropriately completes the request.

### Instruction:
Name a colour.

### Response:
"""
ALPACA_INPUT = """Below is an instruction that describes a task, paired with an input that provides further context. \
Write a response that appropriately completes the request.

### Instruction:
Name a colour.

### Input:
warm

### Response:
"""
DOLLY = "### Instruction: Name a colour.\n\n### Response: "
DOLLY_INPUT = "### Instruction: Name a colour.\n\n### Context: warm\n\n### Response: "


@pytest.mark.parametrize(
    ("name", "plain", "with_input"),
    [
        ("alpaca", ALPACA, ALPACA_INPUT),
        ("dolly", DOLLY, DOLLY_INPUT),
        ("plain", "Name a colour.\n", "Name a colour.\nwarm\n"),
        (
            "chat",
            "### User:\nName a colour.\n\n### Assistant:\n",
            "### User:\nName a colour.\n\nwarm\n\n### Assistant:\n",
        ),
    ],
)
def test_golden_prompts(name: str, plain: str, with_input: str) -> None:
    template = Template.named(name)
    assert template.name == name
    assert template.prompt({"prompt": "Name a colour."}) == plain
    assert template.prompt({"prompt": "Name a colour.", "input": "warm"}) == with_input
    for empty in ("", " ", "\n\t"):
        assert template.prompt({"prompt": "Name a colour.", "input": empty}) == plain


def test_unknown_name_lists_the_known() -> None:
    with pytest.raises(
        InputError, match=r"unknown template \(got alpca\). Fix: use alpaca, dolly, plain, chat, a text"
    ):
        Template.named("alpca")


def test_a_users_own_template() -> None:
    template = Template.parse("{topic}: {prompt} [{ input }] {{braces}}\nA: ")
    assert template.fields() == ["topic", "prompt", "input"]
    fields = {"topic": "T", "prompt": "P", "unused": "x"}
    assert template.prompt(fields) == "T: P [] {braces}\nA: "
    assert template.prompt({**fields, "input": "I"}) == "T: P [I] {braces}\nA: "


def test_what_a_field_holds_is_never_read_as_a_template() -> None:
    assert Template.parse("{prompt}|{input}").prompt({"prompt": "{input}{{}}{x", "input": "{prompt}"}) == (
        "{input}{{}}{x|{prompt}"
    )


def test_a_missing_field_is_named() -> None:
    with pytest.raises(InputError, match=r"row 3: the template needs the field 'topic' \(got \['prompt'\]\)"):
        Template.parse("{topic} {prompt}").prompt({"prompt": "x"}, "row 3")


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("{prompt", "1:1"),
        ("a\nbc {prompt} }", "2:13"),
        ("{prompt}\n{}", "2:1"),
        ("{prompt}\n\n {  }", "3:2"),
        ("{a{prompt}", "1:1"),
        ("}{prompt}", "1:1"),
        ("{prompt}}", "1:9"),
    ],
)
def test_unbalanced_braces_have_a_place(text: str, place: str) -> None:
    with pytest.raises(InputError, match=f"^my.txt:{place}: unbalanced or empty brace.*Fix: write {{field}}"):
        Template.parse(text, "my.txt")


@pytest.mark.parametrize("text", ["", "no field", "{{prompt}}"])
def test_a_template_without_a_field(text: str) -> None:
    with pytest.raises(InputError, match=r"the template has no \{field\} placeholder"):
        Template.parse(text)


def test_an_unknown_field_has_a_place_and_the_known_ones() -> None:
    template = Template.parse("Q: {prompt}\nI: {instrution}\n", "t")
    template.check_fields(["prompt", "instrution"])
    with pytest.raises(InputError) as e:
        template.check_fields(["instruction", "prompt"], "t")
    assert str(e.value) == "t:2:4: no such field (got {instrution}). Fix: the fields are instruction, prompt"


def test_renaming_keeps_everything_else() -> None:
    renamed = Template.parse("{question} {{question}} { other }").rename({"question": "prompt"})
    assert renamed.text == "{prompt} {{question}} {other}" == renamed.with_input
    assert renamed.prompt({"prompt": "P", "other": "O"}) == "P {question} O"


@given(st.lists(st.sampled_from(["{prompt}", "{input}", "{x}", "{{", "}}", "a", "\n", "é"]), min_size=1).map("".join))
def test_round_trip(text: str) -> None:
    if not placeholders(text, "t"):
        return
    template = Template.parse(text)
    again = Template.from_dict(json.loads(json.dumps(template.to_dict())))
    assert again == template and again.digest == template.digest
    for fields in ({"prompt": "P", "x": "X"}, {"prompt": "P", "x": "X", "input": "I"}):
        assert again.prompt(fields) == template.prompt(fields)


def test_digests_tell_templates_apart() -> None:
    names = ("alpaca", "dolly", "plain", "chat")
    digests = {Template.named(n).digest for n in names} | {Template.parse("{prompt}").digest}
    assert len(digests) == 5 and all(len(d) == 64 for d in digests)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "alpaca",
        {},
        {"name": "x", "text": "{prompt}"},
        {"name": "x", "text": "{prompt}", "with_input": 5},
        {"name": "x", "text": "{prompt}", "with_input": "{prompt}", "more": ""},
    ],
)
def test_a_damaged_dictionary_is_refused(content: object) -> None:
    with pytest.raises(InputError, match=r"^f\.json: a template must be an object of the strings"):
        Template.from_dict(content, "f.json")


def test_a_dictionary_with_a_bad_template_is_refused() -> None:
    with pytest.raises(InputError, match=r"^f\.json:1:1: unbalanced"):
        Template.from_dict({"name": "x", "text": "{prompt}", "with_input": "{prompt"}, "f.json")


# --- conversations ----------------------------------------------------------------------------------------------

TALK = [
    Turn("system", "Be {brief}."),
    Turn("user", "Name a colour."),
    Turn("assistant", "Red."),
    Turn("user", "And another?"),
    Turn("assistant", "Blue."),
]


WORDS = ("system", "human", "gpt", "user", "assistant")


def test_a_conversation_to_the_letter() -> None:
    assert Template.named("chat").conversation(TALK) == [
        ("### System:\nBe {brief}.\n\n", False),
        ("### User:\nName a colour.\n\n### Assistant:\n", False),
        ("Red.", True),
        ("### User:\nAnd another?\n\n### Assistant:\n", False),
        ("Blue.", True),
    ]


@pytest.mark.parametrize("name", ["alpaca", "dolly", "plain", "chat"])
def test_a_conversation_of_one_question_is_the_ordinary_prompt(name: str) -> None:
    template = Template.named(name)
    for question in ("Name a colour.", "{x} }{", "", " \n"):
        assert template.conversation([Turn("user", question), Turn("assistant", "Red.")]) == [
            (template.prompt({"prompt": question, "input": ""}), False),
            ("Red.", True),
        ]


def test_a_conversation_needs_a_template_of_prompts() -> None:
    with pytest.raises(InputError, match=r"^conversation: the template needs the field 'topic'"):
        Template.parse("{topic}: {prompt}").conversation(TALK)


@pytest.mark.parametrize(
    "value",
    [
        [{"role": t.role, "content": t.content} for t in TALK],
        [{"from": who, "value": t.content} for who, t in zip(WORDS, TALK, strict=True)],
        tuple(TALK),
        turns_json(TALK),
        [*TALK, {"role": "user", "content": "Never answered"}],
        [{"role": "system", "content": "Be {brief}.", "name": "x", "weight": 1, "tool_calls": None}, *TALK[1:]],
        [TALK[0], {"from": "gpt", "value": "Welcome!"}, {"from": "gpt", "value": "Ask me."}, *TALK[1:]],
        [{"from": "system", "value": " "}, {"from": "gpt", "value": "Welcome!"}, *TALK],
    ],
    ids=["messages", "ShareGPT", "turns", "json", "open end", "further keys", "opened by answers", "blank system"],
)  # fmt: skip
def test_spellings_of_a_conversation(value: object) -> None:
    assert parse_turns(value, "x") == TALK


def test_a_conversation_to_be_answered_ends_with_a_question() -> None:
    assert parse_turns(TALK[:4], "x", answered=False) == TALK[:4]
    with pytest.raises(InputError, match=r"^x: the last turn must be the user's \(got 5 turns\)"):
        parse_turns(TALK, "x", answered=False)
    with pytest.raises(InputError, match=r"^x: the last turn must be the user's \(got 1 turns\)"):
        parse_turns([{"role": "assistant", "content": "Welcome!"}], "x", answered=False)


USER, GPT = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (None, "x: a conversation must be a list of turns (got NoneType). Fix: write [{"),
        ({"role": "user", "content": "a"}, "must be a list of turns (got dict)"),
        (3, "must be a list of turns (got int)"),
        ("hello", "x:1:1: not valid JSON"),
        ('"hello"', "must be a list of turns (got str)"),
        ([], "no question is answered in this conversation (got 0 turns)"),
        ([USER], "no question is answered in this conversation (got 1 turns)"),
        ([GPT], "no question is answered"),
        ([{"role": "system", "content": "s"}, GPT], "no question is answered"),
        (["hello"], "x: turn 1: a turn must be an object (got str)"),
        ([USER, {"role": "assistant"}], "x: turn 2: a turn needs role and content (got the keys role)"),
        ([{"speaker": "a", "text": "b"}], "a turn needs role and content (got the keys speaker, text)"),
        ([{"role": "critic", "content": "a"}], "unknown role (got critic). Fix: use system, user, assistant, human"),
        ([{"from": "bing", "value": "a"}], "unknown from (got bing)"),
        ([{"role": 3, "content": "a"}], "unknown role (got 3)"),
        ([{"role": ["user"], "content": "a"}], "unknown role"),
        ([USER, {"role": "tool", "content": "a"}], "turn 2: tools have no place"),
        ([USER, {"role": "function", "content": "a"}], "turn 2: tools have no place"),
        ([USER, {**GPT, "tool_calls": [{}]}], "turn 2: tools have no place"),
        ([USER, {"role": "assistant", "content": None}], "turn 2: content must be text (got null)"),
        ([{"from": "human", "value": 5}], "turn 1: value must be text (got 5)"),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "content must be text (got list)"),
        ([USER, {**GPT, "weight": 0}], "turn 2: every answer is learned; a weight is not supported (got 0)"),
        ([USER, USER, GPT], "turn 2: two turns of the user in a row (got a). Fix: join them"),
        ([USER, GPT, GPT], "turn 3: two turns of the assistant in a row"),
        ([USER, GPT, {"role": "system", "content": "s"}], "turn 3: a system turn must come first (got s)"),
        ([{"role": "system", "content": "s"}] * 2, "turn 2: a system turn must come first"),
    ],
)  # fmt: skip
def test_what_is_no_conversation_is_refused_in_one_line(value: object, told: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_turns(value, "x")
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)


turns = st.builds(Turn, st.sampled_from(["system", "user", "assistant"]), st.text())


@given(st.lists(turns))
def test_canonical_json_round_trip(conversation: list[Turn]) -> None:
    text = turns_json(conversation)
    assert turns_from_json(text) == conversation
    assert turns_json(turns_from_json(text)) == text
    assert "\n" not in text


def test_canonical_json_is_the_layout_of_messages() -> None:
    assert json.loads(turns_json(TALK[1:3])) == [
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Red."},
    ]
    with pytest.raises(InputError, match="must be a list of turns"):
        turns_from_json("{}")
    with pytest.raises(InputError, match="turn 1: unknown role"):
        turns_from_json('[{"role": "x", "content": ""}]')


def test_blank_turns_are_told_by_their_part() -> None:
    assert blank_part(TALK) is None
    assert blank_part([*TALK[:3], Turn("user", " \n"), Turn("assistant", "")]) == "prompt"
    assert blank_part([TALK[1], Turn("assistant", " ")]) == "completion"
