"""The user's texts as one stream of tokens, with the way back from a token to file, line and character.

It knows files and tokens and no network. Its one invariant: the tokens are those that training reads of the same
files, end-of-text between documents, and they lie on disk and not in memory where the files are plain text.
"""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetwo.core.config import RowsConfig, TrainConfig
from finetwo.core.errors import InputError
from finetwo.data.cache import Corpus, build_corpora
from finetwo.data.columns import detect_columns
from finetwo.data.documents import Part, Reader, is_document
from finetwo.data.examples import Example, load_splits
from finetwo.data.folders import find_files, held_out
from finetwo.data.sequences import Segment
from finetwo.data.source import place, read_rows
from finetwo.tasks.registry import find_task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.prepare import detect_task
from finetwo.train.templates import make_template

Say = Callable[[str], None]
Tokens = NDArray[np.generic]
Ints = NDArray[np.int64]
Share = Literal["all", "train", "held_out"]
"""Which share of files that hold several splits is read."""
LEAST_ANSWER = 8
"""Tokens of the shortest answer that is scored."""
_BLOCK = 1 << 14


@dataclass(frozen=True)
class Place:
    """Where a token stands: the document, and line and character (from 1) in its text."""

    document: str
    line: int
    character: int

    def __str__(self) -> str:
        return f"{self.document}, line {self.line:,}, character {self.character:,}"


@dataclass(frozen=True)
class Library:
    """Documents as tokens."""

    tokenizer: Tokenizer
    tokens: Tokens
    starts: Ints
    """Of each document's first token."""
    ends: Ints
    """Of the place behind each document's last token."""
    bodies: Ints
    """Of each document's first learned token: its start, or behind the prompt of a record."""
    places: list[tuple[str, int, int]]

    @property
    def records(self) -> bool:
        """Whether the documents are prompts with answers."""
        return bool((self.bodies > self.starts).any())

    def document_of(self, token: int) -> int:
        """The number of the document that a token is in."""
        return int(np.searchsorted(self.starts, token, "right")) - 1

    def name(self, document: int) -> str:
        """File, or file and record, of a document."""
        file, line, number = self.places[document]
        return file if (line, number) == (1, 1) else place(file, line, number)

    def where(self, token: int) -> Place:
        """Where a token stands."""
        document = self.document_of(token)
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        characters = lines = 0
        for i in range(int(self.starts[document]), token, _BLOCK):
            piece = self.tokens[i : min(i + _BLOCK, token)]
            text = decoder.decode(self.tokenizer.decode_bytes(int(t) for t in piece))
            characters, lines = characters + len(text), lines + text.count("\n")
        return Place(self.name(document), lines + 1, characters + 1)

    def text(self, begin: int, end: int) -> str:
        """The text of the tokens from `begin` up to `end`."""
        return self.tokenizer.decode(int(t) for t in self.tokens[begin:end])

    def pieces(self) -> Iterator[str]:
        """The text of all documents, in pieces that end between words, a blank line between documents."""
        decoder, rest = codecs.getincrementaldecoder("utf-8")("replace"), ""
        for i in range(0, len(self.tokens), _BLOCK):
            ids = np.asarray(self.tokens[i : i + _BLOCK])
            table = (b"\n\n" if t == self.tokenizer.eot else self.tokenizer.bytes_of(int(t)) for t in ids)
            rest += decoder.decode(b"".join(table))
            cut = rest.rfind(" ") + 1 or len(rest)  # a text without blanks must not pile up
            yield rest[:cut]
            rest = rest[cut:]
        yield rest

    def scored(self, length: int, count: int, least: int, window: int) -> list[tuple[int, int, int]]:
        """Return up to `count` passages (begin, first, end), evenly spread, to be scored from `first` on.

        Of plain text as `spread`. Of records an answer's first `length` tokens (`LEAST_ANSWER` at least) behind its
        prompt, of which so much is kept as `window` has room for.
        """
        if not self.records:
            return [(begin, begin + 1, end) for begin, end in self.spread(length, count, least)]
        fit = np.flatnonzero(self.ends - self.bodies >= LEAST_ANSWER)
        found = []
        for document in evenly(fit, count):
            start, body = int(self.starts[document]), int(self.bodies[document])
            end = min(body + length, int(self.ends[document]))
            begin = max(start, end - window)
            found.append((begin, max(body, begin + 1), end))
        return found

    def spread(self, length: int, count: int, least: int | None = None) -> list[tuple[int, int]]:
        """Return up to `count` passages (begin, end) of `length` tokens, evenly spread and none overlapping.

        They begin where a document's learned tokens do. With `least`, a document's rest of that many tokens counts too.
        """
        sizes = self.ends - self.bodies
        each = sizes // length
        if least is not None:
            each = each + (sizes % length >= least)
        until = np.cumsum(each)
        found = []
        for number in evenly(np.arange(int(until[-1]) if len(until) else 0), count):
            document = int(np.searchsorted(until, number, "right"))
            begin = int(self.bodies[document] + (number - (until[document] - each[document])) * length)
            found.append((begin, min(begin + length, int(self.ends[document]))))
        return found


def evenly(items: Ints, count: int) -> Ints:
    """Return up to `count` of the items, evenly spread, the first and the last among them."""
    return items[np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).astype(np.int64))]


@dataclass(frozen=True)
class Reading:
    """How texts are read."""

    tokenizer: Tokenizer
    template: Template | None
    rows: RowsConfig
    seed: int = 0
    """Of the training, where --rows.split shares records out by content."""


def read_whole(path: Path) -> str:
    """Return the text of a small file; errors as `read_rows`."""
    return str(next(iter(read_rows(path, RowsConfig(format="txt")))).fields["text"])


def open_library(names: Sequence[str], reading: Reading, folder: Path, share: Share = "all") -> Library:
    """Read the files, folders or patterns `names`; `folder` takes the tokens of plain text.

    Of a folder with splits, and of files that --rows.split or --rows.hold_out share out, only the asked share is read:
    what is trained on, or the rest.

    Raises:
        InputError: a file that cannot be read, or nothing in them.
    """
    paths = [path for name in names for path in _paths(name, reading.rows, share)]
    if not paths:
        raise InputError(", ".join(names), "has no part that is held out", None, "name the files themselves")
    if _is_text(paths[0], reading.rows):
        if reading.rows.split is not None:
            fix = "name the files, or a folder with --rows.hold_out"
            raise InputError("--rows.split", "is for records, this is plain text", str(paths[0]), fix)
        return _of_texts(paths, reading, folder)
    return _of_records(paths, reading, share)


def _paths(name: str, rows: RowsConfig, share: Share) -> list[Path]:
    found = find_files(Path(name))
    if share != "all" and rows.hold_out is not None and sum(map(len, found.values())) > 1:
        found = held_out(found, rows, name, lambda _: None)
    if share != "all" and len(found) > 1:
        found = {split: paths for split, paths in found.items() if (split == "train") == (share == "train")}
    return [path for paths in found.values() for path in paths]


def _is_text(path: Path, rows: RowsConfig) -> bool:
    """Whether a file holds plain text, and not records with prompts and answers."""
    if is_document(path, rows):
        return True
    row = next(iter(read_rows(path, replace(rows, limit=1))))
    try:
        detect_columns(list(row.fields), rows.columns, row.where, "text")
    except InputError:
        return False
    return True


def _of_texts(paths: list[Path], reading: Reading, folder: Path) -> Library:
    places: list[tuple[str, int, int]] = []

    def parts() -> Iterator[Part]:
        for document in Reader(reading.rows, 0, lambda _: None).read(paths):
            if not document.blank:
                places.append(document.place)
                yield Part("train", document.read(), document.where)

    build_corpora(folder, "", parts(), reading.tokenizer)
    corpus = Corpus.open(folder / "train")
    if corpus is None:
        raise InputError(str(paths[0]), "no text in it", None, "give a file that holds text")
    marks = np.concatenate(
        [
            i + np.flatnonzero(np.asarray(corpus.tokens[i : i + (1 << 20)]) == reading.tokenizer.eot)
            for i in range(0, len(corpus.tokens), 1 << 20)
        ]
    )
    starts, ends = marks[:-1] + 1, marks[1:]
    assert len(starts) == len(places)
    return Library(reading.tokenizer, corpus.tokens, starts, ends, starts, places)


def _of_records(paths: list[Path], reading: Reading, share: Share) -> Library:
    """Records as training writes them: the prompt in its template, then the answer."""
    flat: list[int] = [reading.tokenizer.eot]
    spans: list[tuple[int, int, int]] = []
    places: list[tuple[str, int, int]] = []
    for path in paths:
        for example, segments in _written(path, reading, share):
            start, body = len(flat), -1
            for segment in segments:
                if segment.learn and body < 0:
                    body = len(flat)
                flat += reading.tokenizer.encode(segment.text)
            spans.append((start, len(flat), start if body < 0 else body))
            places.append((example.file, example.line, example.number))
            flat.append(reading.tokenizer.eot)
    if not spans:
        raise InputError(str(paths[0]), "no record in it", None, "give a file that holds records")
    starts, ends, bodies = np.asarray(spans, dtype=np.int64).T
    return Library(reading.tokenizer, np.asarray(flat, dtype=np.uint32), starts, ends, bodies, places)


def _written(path: Path, reading: Reading, share: Share) -> Iterator[tuple[Example, list[Segment]]]:
    rows = replace(reading.rows, split=reading.rows.split or "train:1.0", hold_out=None)
    loaded = load_splits(path, rows, reading.seed, lambda _: None)
    task = detect_task(TrainConfig(data=str(path), rows=rows), str(path))
    if task.head == "classes":
        raise InputError(str(path), "holds classes", None, "give texts, or records with prompts and answers")
    examples = [
        example
        for split, part in loaded.splits.items()
        if share == "all" or reading.rows.split is None or (split == "train") == (share == "train")
        for example in part
    ]
    known = sorted({k for e in examples[:1] for k in e.fields if k != "completion"})
    template = make_template(task, None, reading.template, loaded.columns, known)
    write = find_task(task.name).write
    return ((example, list(write(example.fields, template))) for example in examples)
