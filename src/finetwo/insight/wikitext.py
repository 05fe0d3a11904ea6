"""WikiText files in the form that published perplexities were taken on.

It knows text and no tokens. Its one invariant: the text is the one that Hugging Face's recipe makes of the same file
(of the raw test file of WikiText-2, 287,644 tokens of GPT-2).
"""

from __future__ import annotations

import re
from pathlib import Path

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.source import Note, find_files, read_rows


def join_rows(text: str) -> str:
    r"""Return the lines joined by "\n\n" as that recipe joins the rows of its data set.

    A row is a line with its line feed, or nothing for a blank line.
    """
    rows = re.findall(r"[^\n]*\n|[^\n]+", text)
    return "\n\n".join(row if row.strip() else "" for row in rows)


def read_joined(path: Path, rows: RowsConfig, on_note: Note) -> list[dict[str, str]]:
    """Return the one text file at `path` as a joined record; InputError for anything else."""
    files = [file for group in find_files(path).values() for file in group]
    records = [row.fields for row in read_rows(files[0], rows, on_note)] if len(files) == 1 else []
    if len(records) != 1 or not isinstance(records[0].get("text"), str):
        fix = "give wiki.test.raw with --rows.format txt, or leave --wikitext out"
        raise InputError("--wikitext", "needs one text file of WikiText", str(path), fix)
    return [{"text": join_rows(str(records[0]["text"]))}]
