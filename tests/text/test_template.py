"""Prompts to the letter."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetwo.core.errors import InputError
from finetwo.text.template import Template, placeholders

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
    with pytest.raises(InputError, match=r"unknown template \(got alpca\). Fix: use alpaca, dolly, plain"):
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
    names = ("alpaca", "dolly", "plain")
    digests = {Template.named(n).digest for n in names} | {Template.parse("{prompt}").digest}
    assert len(digests) == 4 and all(len(d) == 64 for d in digests)


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
