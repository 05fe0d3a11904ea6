"""Files of prompts: a text file holds one a line, a JSON, JSONL or CSV file one record each.

It knows files and fields and no network. Its one invariant: every non-blank line or record gives one prompt, in order.
"""

from __future__ import annotations

from pathlib import Path

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.source import read_rows
from finetwo.generate.pipeline import Prompt, prompt_fields


def read_prompts(path: Path) -> list[Prompt]:
    """Return the prompts of a file; InputError when it cannot be read, or a record has no text in it."""
    rows = list(read_rows(path, RowsConfig()))
    if list(rows[0].fields) == ["text"] and path.suffix not in (".jsonl", ".json", ".csv", ".tsv"):
        lines: list[Prompt] = [line for line in str(rows[0].fields["text"]).splitlines() if line.strip()]
        return lines
    prompts: list[Prompt] = []
    for row in rows:
        texts = {k: v for k, v in row.fields.items() if isinstance(v, str)}
        if list(texts) == ["text"]:
            texts = {"prompt": texts["text"]}
        fields = prompt_fields(texts)
        if not texts:
            raise InputError(
                row.where, "the record has no text", sorted(row.fields), "give prompt, or instruction and input"
            )
        prompts.append(fields)
    return prompts
