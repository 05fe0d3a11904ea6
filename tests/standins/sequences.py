"""One record encoded by itself."""

from __future__ import annotations

from finetwo.data.encoding import encode_records
from finetwo.data.sequences import Fate, Segment, Sequence
from finetwo.text.tokenizer import Tokenizer


def encoded(tokenizer: Tokenizer, segments: list[Segment], max_length: int) -> tuple[Sequence | None, Fate]:
    """What `encode_records` yields for the one record."""
    (found,) = encode_records(tokenizer, [segments], max_length)
    return found
