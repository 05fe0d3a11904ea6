"""Cuts long texts where the tokenizer would cut them anyway, so that they can be encoded in pieces.

It knows GPT-2's rule for the cut before merging, and nothing of tokens or files. Its invariant: the pieces joined are
the text, and their tokens are those of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from finetwo.core.errors import InputError
from finetwo.data.decoding import MAX_RECORD
from finetwo.data.source import MAX_DOCUMENT

# Before a line break or blank that a letter or digit follows, GPT-2's cut before merging always cuts.
_CUT = re.compile(r"[\n ](?=[^\W_])")


def paragraphs(pieces: Iterable[str], where: str, target: int = 1 << 16, limit: int = MAX_RECORD) -> Iterator[str]:
    """Cut the text that `pieces` make, wherever these end, into pieces of `target` characters and a little more.

    GPT-2's tokens of the new pieces are those of the whole; a stretch without any place to cut stays whole.

    Raises:
        InputError: more than `limit` characters without a place to cut; `where` names the text.
    """
    text, start = "", 0
    for piece in pieces:
        rest = text[start:]
        text, start, at = rest + piece, 0, max(target, len(rest) - 1)  # what was searched has no place to cut
        while match := _CUT.search(text, start + at):
            yield text[start : match.start()]
            start, at = match.start(), target
        if len(text) - start > target + limit:
            what = f"more than {limit:,} characters without a line break or blank before a letter or digit"
            raise InputError(where, what, text[start : start + 40], "break the text into lines")
    if start < len(text):
        yield text[start:]


def whole(pieces: Iterable[str], where: str) -> Iterator[str]:
    """Yield the text in one piece, for a tokenizer that cuts otherwise."""
    parts: list[str] = []
    size = 0
    for piece in pieces:
        parts.append(piece)
        size += len(piece)
        if size > MAX_DOCUMENT:
            what = f"longer than {MAX_DOCUMENT:,} characters, with a tokenizer that does not cut text as GPT-2 does"
            raise InputError(where, what, fix="split it into a folder of .txt files")
    yield "".join(parts)
