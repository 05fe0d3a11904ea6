"""`finetwo tokenizer train`: a byte-level BPE vocabulary from the user's own text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError

_USAGE = "finetwo tokenizer train FILES... --vocab 8192 --out DIR"
_ABOUT = """Train a byte-level BPE vocabulary in GPT-2's layout (256 bytes, merges, end-of-text) on text files or
text columns.

example:
  finetwo tokenizer train novels.jsonl.xz --vocab 8192 --out my-vocabulary
"""


@dataclass
class TokenizerArguments:
    """Options of `finetwo tokenizer train`."""

    vocab: int = 8192
    """Number of ids, end-of-text included."""
    out: str | None = None
    """Folder for vocab.json, merges.txt and tokenizer.json."""
    limit_bytes: int = 64_000_000
    """Use about this many characters of text; more seldom changes the vocabulary."""
    rows: RowsConfig = field(default_factory=RowsConfig)


def _settle(arguments: TokenizerArguments, words: Words) -> TokenizerArguments:
    needed = "needs the word train and files of text"
    words.expect("tokenizer", 2, math.inf, needed, _USAGE)
    if words.positional[:1] not in ([], ["train"]):
        raise InputError("tokenizer", needed, " ".join(words.positional), _USAGE)
    arguments.rows.check()
    return arguments


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(TokenizerArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (_, *names) = asked
    if arguments.out is None:
        raise InputError("--out", "no folder given", None, _USAGE)
    out = Path(arguments.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("--out", "exists and is not an empty folder", arguments.out, "give a new folder")
    from finetwo.app.console import say
    from finetwo.text.tokenizer import Tokenizer, train_vocabulary

    files = [Path(name) for name in names]
    tokenizer = Tokenizer(train_vocabulary(_texts(files, arguments), arguments.vocab))
    tokenizer.save(out)
    say(f"vocabulary of {tokenizer.vocab_size:,} ids written to {out}; end-of-text is {tokenizer.eot}")
    return 0


def _texts(files: list[Path], arguments: TokenizerArguments) -> Iterator[str]:
    """Pieces of the files' texts, spread evenly over the documents, up to the limit."""
    from finetwo.data.columns import detect_columns
    from finetwo.data.documents import is_document, read_text
    from finetwo.data.paragraphs import paragraphs
    from finetwo.data.selecting import select
    from finetwo.data.source import find_files, read_rows

    def whole(path: Path) -> Iterator[Iterable[str]]:
        if is_document(path, arguments.rows):
            yield read_text(path, arguments.rows)
            return
        for row in read_rows(path, arguments.rows):
            columns = detect_columns(list(row.fields), arguments.rows.columns, row.where)
            fields = select(row, columns)
            yield from ([fields[role]] for role in columns.roles if role in fields and role != "label")

    left = arguments.limit_bytes
    for path in [p for f in files for group in find_files(f).values() for p in group]:
        for text in whole(path):
            for piece in paragraphs(text, str(path), 1 << 14):
                if left <= 0:
                    return
                left -= len(piece)
                yield piece
