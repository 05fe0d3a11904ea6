"""Corpora as memory-mapped streams of tokens, made in one pass over the documents and read by offset.

Documents are joined by the end-of-text id. It knows no network; its one invariant: a cache is used only when its
digest of data files, tokenizer and settings is the asked one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from array import array
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetwo.core.errors import InputError
from finetwo.core.files import faults, read_json, replacing, write_json
from finetwo.core.version import __version__
from finetwo.data.documents import Part
from finetwo.data.paragraphs import paragraphs, whole
from finetwo.data.sealed import filling
from finetwo.data.sequences import Sequence
from finetwo.text.engines import GAP
from finetwo.text.tokenizer import GROUP, Tokenizer, in_threads

_VERSION = 3
_BLOCK = 1 << 22
_EVERY = 32
"""Chunks read between two returns of pages: for each of them the system may map up to 2 MiB of the file."""
_FILE, _INFO = "tokens.bin", "corpus.json"
_DTYPES = ("<u2", "<u4")


@dataclass(frozen=True)
class CorpusInfo:
    """What a cache holds: counts, the size of the text in UTF-8 bytes, and hashes."""

    version: int
    key: str
    dtype: str
    documents: int
    tokens: int
    text_bytes: int
    sha256: str
    splits: list[str]
    """Every split that was made along with it."""


# --- building -----------------------------------------------------------------------------------------------------


@dataclass
class _Group:
    """Pieces of one corpus's text that are encoded together, and whether a document ends behind each."""

    name: str
    texts: list[str] = field(default_factory=list)
    ends: list[bool] = field(default_factory=list)
    size: int = 0

    def add(self, text: str) -> None:
        self.texts.append(text)
        self.ends.append(False)
        self.size += len(text)


@dataclass(frozen=True)
class _Encoded:
    """A group as ids, with a gap behind each piece."""

    name: str
    flat: array[int]
    ends: list[bool]
    text_bytes: int


def _grouped(parts: Iterable[Part], *, cuttable: bool) -> Iterator[_Group]:
    """Gather the pieces of each corpus, in order, into groups of about `GROUP` characters."""
    waiting: dict[str, _Group] = {}
    for part in parts:
        group = waiting.setdefault(part.split, _Group(part.split))
        begun = False
        for text in paragraphs(part.pieces, part.where) if cuttable else whole(part.pieces, part.where):
            if group.size >= GROUP:
                yield group
                group = waiting[part.split] = _Group(part.split)
            group.add(text)
            begun = True
        if not begun:
            group.add("")
        group.ends[-1] = True
    yield from waiting.values()


def _encoded(groups: Iterable[_Group], tokenizer: Tokenizer) -> Iterator[_Encoded]:
    """Encode groups on all cores, in order, some of them ahead of their turn."""

    def encode(group: _Group) -> _Encoded:
        size = sum(len(t) if t.isascii() else len(t.encode("utf-8", "replace")) for t in group.texts)
        return _Encoded(group.name, tokenizer.encode_flat(group.texts), group.ends, size)

    tokenizer.encode("")  # its engine is made once, not by every thread
    return in_threads(encode, groups)


class _Writer:
    """One corpus in the making: `tokens.bin` takes its name when the stack is left without an error."""

    def __init__(self, folder: Path, tokenizer: Tokenizer, stack: ExitStack) -> None:
        stack.enter_context(filling(folder))
        self.folder, self._eot = folder, tokenizer.eot
        self._dtype = np.dtype(_DTYPES[tokenizer.vocab_size > 1 << 16])
        self._out = stack.enter_context(replacing(folder / _FILE))
        self._digest = hashlib.sha256()
        self._documents = self._tokens = self._text_bytes = 0
        self._put(np.array([self._eot]))

    def _put(self, ids: NDArray[np.generic]) -> None:
        raw = ids.astype(self._dtype).tobytes()
        self._digest.update(raw)
        self._out.write(raw)
        self._tokens += len(ids)

    def add(self, part: _Encoded) -> None:
        """Append a group: a gap that ends a document becomes the end-of-text id, any other vanishes."""
        ids = np.frombuffer(part.flat, dtype=np.uint32).copy()
        gaps, ends = np.flatnonzero(ids == GAP), np.asarray(part.ends)
        ids[gaps[ends]] = self._eot
        self._put(np.delete(ids, gaps[~ends]))
        self._documents += int(ends.sum())
        self._text_bytes += part.text_bytes

    def info(self, key: str, splits: list[str]) -> CorpusInfo:
        """What has been written."""
        counts = (self._documents, self._tokens, self._text_bytes)
        return CorpusInfo(_VERSION, key, self._dtype.str, *counts, self._digest.hexdigest(), splits)


def build_corpora(folder: Path, key: str, parts: Iterable[Part], tokenizer: Tokenizer) -> dict[str, CorpusInfo]:
    """Write `folder`/SPLIT/tokens.bin and corpus.json for each split that has a document, in one pass.

    End-of-text stands before, between and after the documents. Train's corpus.json is written last: its being there
    says that all are whole. An error of `parts`, also after the last one, leaves every old corpus as it was.
    """
    writers: dict[str, _Writer] = {}
    cuttable = tokenizer.vocabulary.pre_tokenizer is None
    with ExitStack() as stack:
        for part in _encoded(_grouped(parts, cuttable=cuttable), tokenizer):
            if part.name not in writers:
                writers[part.name] = _Writer(folder / part.name, tokenizer, stack)
            writers[part.name].add(part)
    splits = sorted(writers)
    infos = {name: writers[name].info(key, splits) for name in sorted(writers, key="train".__eq__)}
    for name, info in infos.items():
        write_json(folder / name / _INFO, asdict(info))
    return infos


# --- reading ------------------------------------------------------------------------------------------------------


def release_pages(array: NDArray[np.generic]) -> None:
    """Give the pages of a memory-mapped array back to the system; they are read again when they are asked for."""
    found: object = array
    while isinstance(found, np.ndarray):
        found = found.base
    if isinstance(found, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        found.madvise(mmap.MADV_DONTNEED)


class Corpus:
    """A memory-mapped token stream read in chunks of a given length."""

    def __init__(self, folder: Path, info: CorpusInfo, tokens: NDArray[np.generic]) -> None:
        self.folder, self.info, self.tokens = folder, info, tokens

    @classmethod
    def open(cls, folder: Path, key: str | None = None) -> Corpus | None:
        """Open a cache; None when there is none or `key` differs; InputError when it is damaged."""
        path = folder / _INFO
        if not path.is_file():
            return None
        content = read_json(path)
        try:
            info = CorpusInfo(**content)
            expected = int(info.tokens) * np.dtype(info.dtype).itemsize
        except (TypeError, ValueError):
            return None
        if info.version != _VERSION or info.dtype not in _DTYPES or (key is not None and info.key != key):
            return None
        binary = folder / _FILE
        if not binary.is_file() or binary.stat().st_size != expected:
            got = binary.stat().st_size if binary.is_file() else "no file"
            fix = f"delete the folder {folder} and run again"
            raise InputError(str(binary), f"the token cache must have {expected:,} bytes", got, fix)
        return cls(folder, info, np.memmap(binary, dtype=np.dtype(info.dtype), mode="r"))

    def verify(self, vocab_size: int) -> None:
        """Raise InputError when the content no longer has its hash, or holds an id that is no token.

        The file is read, not mapped, so that the memory of a check stays flat.
        """
        path, digest, at, outside = self.folder / _FILE, hashlib.sha256(), 0, ""
        with faults(path), path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
                ids = np.frombuffer(block, dtype=self.tokens.dtype)
                if not outside and int(ids.max()) >= vocab_size:
                    outside = f"{at + int(np.argmax(ids >= vocab_size)):,}"
                at += len(ids)
        if digest.hexdigest() != self.info.sha256:
            raise self._fault("the token cache is damaged (hash differs)", digest.hexdigest()[:12])
        if outside:
            raise self._fault(f"token {outside} of the cache is outside the vocabulary of {vocab_size:,}", None)

    def summary(self) -> dict[str, object]:
        """Counts and the hash of the tokens, as metadata.json holds them."""
        i = self.info
        counts = {"documents": i.documents, "tokens": i.tokens, "text_bytes": i.text_bytes}
        return {**counts, "files": {_FILE: i.sha256}}

    def _fault(self, what: str, got: object) -> InputError:
        return InputError(str(self.folder / _FILE), what, got, f"delete the folder {self.folder} and run again")


class Chunks:
    """Chunks of `length` tokens that cover the stream; each epoch begins at another offset when `shift` is on.

    With `copy_share`, that share of the chunks has earlier spans written again further on, which teaches a model to
    copy from its context (the spans' text is then no longer the corpus's).
    """

    def __init__(
        self, corpus: Corpus, length: int, seed: int = 0, *, shift: bool = False, copy_share: float = 0.0
    ) -> None:
        self.corpus, self.length, self.seed = corpus, length, seed
        self.shift, self.copy_share = shift, copy_share
        self._read = 0
        usable = len(corpus.tokens) - 1
        if usable < 1:
            raise InputError(str(corpus.folder), "the corpus has no tokens to learn from", usable, "give more text")
        self._count = max(1, usable // length if shift else -(-usable // length))

    def __len__(self) -> int:
        return self._count

    def get(self, index: int, epoch: int) -> Sequence:
        """Return chunk `index` of `epoch`."""
        usable = len(self.corpus.tokens) - 1
        offset = 0
        if self.shift and usable > self._count * self.length:
            spare = min(self.length, usable - self._count * self.length + 1)
            offset = int(np.random.default_rng([self.seed, 7, epoch]).integers(spare))
        start = offset + index * self.length
        row = np.asarray(self.corpus.tokens[start : start + self.length + 1], dtype=np.int32)
        self._read += 1
        if self._read % _EVERY == 0:  # in an order that is drawn, every page of the file would be held before long
            release_pages(self.corpus.tokens)
        if self.copy_share:
            rng = np.random.default_rng([self.seed, 11, epoch, index])
            if rng.random() < self.copy_share:
                row = with_copies(row, rng)
        return Sequence(row[:-1], row[1:].copy())


def with_copies(row: NDArray[np.int32], rng: np.random.Generator) -> NDArray[np.int32]:
    """Return `row` with spans of 4 to 39 tokens written again one to three times, up to 23 tokens later each."""
    row = row.copy()
    at = int(rng.integers(0, 16))
    while True:
        size, gap = int(rng.integers(4, 40)), int(rng.integers(0, 24))
        span = row[at : at + size].copy()
        for _ in range(int(rng.integers(1, 4))):
            at += size + gap
            if at + size > len(row):
                return row
            row[at : at + size] = span
        at += size + int(rng.integers(0, 8))


def corpus_key(files: Mapping[str, Iterable[Path]], tokenizer: Tokenizer, settings: object) -> str:
    """A digest of the files' splits, names, sizes and times, the tokenizer and `settings`: what a cache depends on."""
    rows = [(split, p.name, p.stat().st_size, p.stat().st_mtime_ns) for split, paths in files.items() for p in paths]
    content = json.dumps([rows, tokenizer.digest, settings, __version__], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()
