"""Files of prompts: a text file holds one a line, a JSON, JSONL or CSV file one record or conversation each.

It knows files and fields and no network. Its one invariant: every non-blank line or record gives one prompt, in order.
"""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.core.strict_json import parse_json
from finetwo.data.opening import PACKED
from finetwo.data.source import Row, read_rows
from finetwo.generate.pipeline import Prompt, prompt_fields
from finetwo.text.template import parse_turns

_RECORDS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".tab")
"""Endings of files of records; every other name is that of a text."""


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file (also .gz, .xz): lines of text, records, or a JSON array of texts.

    Raises:
        InputError: the file cannot be read, is empty, or a record has no text in it.
        EnvironmentFault: no permission, or the device fails.
    """
    name = Path(path.stem if path.suffix.lower() in PACKED else path.name)
    whole = str(next(read_rows(path, RowsConfig(format="txt"))).fields["text"])
    if name.suffix.lower() not in _RECORDS:
        return prompt_lines(whole)
    if re.match(r'\s*\[\s*"', whole) and "json" in name.suffix.lower():
        return _texts(whole, path)
    return [_prompt(row) for row in read_rows(path, RowsConfig())]


def prompt_lines(text: str) -> list[Prompt]:
    """Return the lines of a text that are not blank; only a line feed, or carriage return and line feed, ends one."""
    return [line.removesuffix("\r") for line in text.split("\n") if line.strip()]


def _texts(whole: str, path: Path) -> list[Prompt]:
    """The prompts of a JSON array that begins with a text; all of it must be texts."""
    found = parse_json(whole, str(path))
    prompts: list[Prompt] = []
    for number, text in enumerate(found, 1):
        if not isinstance(text, str):
            raise InputError(
                f"{path}: item {number}", "not a text like the first", text, "write only texts, or records"
            )
        prompts.append(text)
    return prompts


def _prompt(row: Row) -> Prompt:
    for name in ("messages", "conversations"):
        turns = row.fields.get(name)
        if isinstance(turns, list):
            return _question(turns, f"{row.where}: the field '{name}'")
    texts = {k: v for k, v in row.fields.items() if isinstance(v, str)}
    if not texts:
        raise InputError(
            row.where, "the record has no text", sorted(row.fields), "give prompt, or instruction and input"
        )
    return prompt_fields({"prompt": texts["text"]} if list(texts) == ["text"] else texts)


def _question(turns: list[object], where: str) -> Prompt:
    """A conversation up to its last question; the answer that a record to be learned has after it is left out."""
    last = turns[-1] if turns else None
    answered = isinstance(last, dict) and last.get("role", last.get("from")) in ("assistant", "gpt")
    found = parse_turns(turns[:-1] if answered else turns, where, answered=False)
    return [asdict(turn) for turn in found]
