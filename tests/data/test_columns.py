"""Which column plays which part, and that only text is ever taken for text."""

from __future__ import annotations

import pytest

from finetwo.core.config import ColumnsConfig
from finetwo.core.errors import InputError
from finetwo.data.columns import Columns, adopt_input, detect_columns, select
from finetwo.data.source import Row

ALPACA = Columns("instruction", "input", "output", layout="Alpaca")


def detect(*names: str, **wanted: str) -> Columns:
    return detect_columns(names, ColumnsConfig(**wanted), "a.json:1: record 1")


@pytest.mark.parametrize(
    ("names", "roles", "layout"),
    [
        ("instruction input output", "instruction input output", "Alpaca"),
        ("output instruction text id", "instruction - output", "Alpaca"),
        ("instruction context response category", "instruction context response", "Dolly"),
        ("Instruction Response", "Instruction - Response", "Dolly"),
        ("prompt completion", "prompt - completion", "prompt/completion"),
        ("prompt response", "prompt - response", "prompt/response"),
        ("id question answer", "question - answer", "question/answer"),
    ],
)
def test_known_layouts(names: str, roles: str, layout: str) -> None:
    prompt, further, completion = (None if r == "-" else r for r in roles.split())
    got = detect(*names.split())
    assert got == Columns(prompt, further, completion, layout=layout)
    assert got.kind == "instruct"
    assert got.describe().startswith(f"columns: prompt = '{prompt}'")


def test_text_and_mapping() -> None:
    assert detect("title", "text") == Columns(text="text", layout="text")
    assert detect("title", "text").kind == "text"
    assert detect("body", text="body") == Columns(text="body")
    assert detect("q", "a", prompt="q", completion="a") == Columns("q", None, "a")
    assert detect("q", "a", "c", prompt="q", completion="a", input="c").input == "c"
    assert detect("instruction", "input", "output", "x", completion="x") == Columns("instruction", None, "x")
    assert detect("q", "answer", prompt="q").completion == "answer"
    assert "as given" in detect("body", text="body").describe()


def test_what_cannot_be_told() -> None:
    with pytest.raises(InputError, match=r"fields found: 'frage', 'antwort'.*--rows.columns.prompt NAME --rows.col"):
        detect("frage", "antwort")
    with pytest.raises(InputError, match=r"--rows.columns.prompt names a field .*got frag.*'frage', 'antwort'"):
        detect("frage", "antwort", prompt="frag")
    with pytest.raises(InputError, match=r"--rows.columns.completion is missing"):
        detect("frage", "antwort", prompt="frage")
    with pytest.raises(InputError, match="several columns could be"):
        detect("instruction", "output", "response")
    with pytest.raises(InputError, match="excludes"):
        detect("a", "b", text="a", prompt="b")


def test_select_takes_roles_and_further_text() -> None:
    row = Row({"instruction": "i", "input": None, "output": "o", "category": "c", "n": 3, "prompt": "x"}, "f", 1, 1)
    assert select(row, ALPACA) == {"prompt": "i", "input": "", "completion": "o", "category": "c"}
    assert select(Row({"instruction": "i", "output": "o"}, "f", 1, 1), ALPACA)["input"] == ""
    assert select(Row({"text": "t", "title": "x"}, "f", 1, 1), Columns(text="text")) == {"text": "t", "title": "x"}


def test_row_36_a_missing_field() -> None:
    with pytest.raises(InputError) as caught:
        select(Row({"instruction": "i", "answer": "o"}, "f.jsonl", 17, 17), ALPACA)
    line = str(caught.value)
    assert line.startswith("f.jsonl:17: record 17: the field 'output' (completion) is missing; fields found: 'instruc")
    assert "--rows.columns.completion NAME" in line


@pytest.mark.parametrize(
    ("value", "got"),
    [(None, "null"), (3, "a number: 3"), (True, "true or"), (["x"], "a list: ['x']"), ({"a": "b"}, "a nested object")],
)
def test_row_37_only_text_is_text(value: object, got: str) -> None:
    with pytest.raises(InputError) as caught:
        select(Row({"instruction": "i", "output": value}, "f", 2, 2), ALPACA)
    assert "f:2: record 2: the field 'output' (completion) must be text" in str(caught.value)
    assert f"got {got}" in str(caught.value)
    if value is not None:
        with pytest.raises(InputError, match=r"\(input\) must be text"):
            select(Row({"instruction": "i", "output": "o", "input": value}, "f", 2, 2), ALPACA)


def test_an_input_that_the_first_record_lacks_is_found() -> None:
    rows = [Row({"instruction": "i", "output": "o"}, "f", 1, 1), Row({"instruction": "i", "input": "x"}, "f", 2, 2)]
    assert adopt_input(detect("instruction", "output"), rows).input == "input"
    assert adopt_input(detect("instruction", "output"), rows[:1]).input is None
