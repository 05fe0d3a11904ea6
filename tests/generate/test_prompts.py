"""Files of prompts: told apart by their endings, cut at line feeds only."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest

from finetwo.core.errors import InputError
from finetwo.generate.prompts import read_prompts

LINES = '{"instruction": "one"}\n{"prompt": "two", "input": "x"}\n'
RECORDS = [{"instruction": "one", "prompt": "one"}, {"prompt": "two", "input": "x"}]


@pytest.mark.parametrize(
    "name", ["p.jsonl", "p.ndjson", "P.JSONL", "p.json", "p.jsonl.gz", "p.ndjson.xz", "P.JSONL.GZ"]
)
def test_records_by_any_ending(tmp_path: Path, name: str) -> None:
    pack: Callable[[bytes], bytes] = {"gz": gzip.compress, "xz": lzma.compress}.get(name[-2:].lower(), bytes)
    (tmp_path / name).write_bytes(pack(LINES.encode()))
    assert read_prompts(tmp_path / name) == RECORDS


@pytest.mark.parametrize(("name", "mark"), [("p.csv", ","), ("p.tsv", "\t"), ("p.tab", "\t"), ("P.CSV", ",")])
def test_tables(tmp_path: Path, name: str, mark: str) -> None:
    (tmp_path / name).write_text(f"prompt{mark}input\none{mark}x\n", encoding="utf-8")
    assert read_prompts(tmp_path / name) == [{"prompt": "one", "input": "x"}]


def test_a_text_column_is_the_prompt(tmp_path: Path) -> None:
    for name, text in (
        ("p.csv", "text\none\n"),
        ("p.jsonl", '{"text": "one"}\n'),
        ("q.jsonl", '{"text": "one", "n": 1}'),
    ):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_prompts(tmp_path / name) == [{"prompt": "one"}]


@pytest.mark.parametrize("name", ["p.txt", "prompts", "p.prompts", "p.md", "p.txt.gz"])
def test_texts_are_cut_at_line_feeds_only(tmp_path: Path, name: str) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if name.endswith("gz") else bytes
    (tmp_path / name).write_bytes(pack("[INST] a\u2028b\r\n\n  \nc\x0cd\x85e\n{f}".encode()))
    assert read_prompts(tmp_path / name) == ["[INST] a\u2028b", "c\x0cd\x85e", "{f}"]


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.json.gz"])
def test_an_array_of_texts(tmp_path: Path, name: str) -> None:
    pack: Callable[[bytes], bytes] = gzip.compress if name.endswith("gz") else bytes
    (tmp_path / name).write_bytes(pack(json.dumps(["one", "two\nlines"], indent=1).encode()))
    assert read_prompts(tmp_path / name) == ["one", "two\nlines"]


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("p.txt", "", "the file is empty"),
        ("p.txt", " \n\n", "only blank lines"),
        ("prompts", "", "the file is empty"),
        ("p.jsonl", "", "the file is empty"),
        ("p.json", "[]", "the array is empty"),
        ("p.csv", "prompt\n", "only a header line"),
        ("p.json", '["one", 2]', "item 2: not a text"),
        ("p.json", '["one"', "p.json"),
        ("p.jsonl", '{"n": 1}\n', "the record has no text"),
        ("p.parquet", "PAR1", "Parquet"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str, told: str) -> None:
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_prompts(tmp_path / name)
    assert told in caught.value.line()
    assert name in caught.value.line()


QUESTION = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "1"},
    {"role": "user", "content": "two"},
]


def test_conversations_end_with_their_last_question(tmp_path: Path) -> None:
    rows = [
        {"messages": QUESTION},
        {"id": "x", "messages": [*QUESTION, {"role": "assistant", "content": "2"}]},
        {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": "1"}]},
    ]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    assert read_prompts(tmp_path / "p.jsonl") == [QUESTION, QUESTION, QUESTION[:1]]


@pytest.mark.parametrize(
    ("turns", "told"),
    [
        ([], "the last turn must be the user's"),
        ([{"role": "assistant", "content": "1"}], "the last turn must be the user's"),
        ([*QUESTION, {"role": "tool", "content": "2"}], "turn 4: tools have no place"),
    ],
)
def test_a_bad_conversation_is_named(tmp_path: Path, turns: list[object], told: str) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps({"messages": turns}) + "\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_prompts(tmp_path / "p.jsonl")
    assert caught.value.line().startswith(f"{tmp_path}/p.jsonl:1: ")
    assert "the field 'messages': " in caught.value.line()
    assert told in caught.value.line()
