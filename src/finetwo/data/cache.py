"""A corpus as one memory-mapped stream of tokens, made once and read by offset.

Documents are joined by the end-of-text id. It knows no network; its one invariant: a cache is used only when its
digest of data files, tokenizer and settings is the asked one.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetwo.core.errors import InputError
from finetwo.core.files import faults, read_json, replacing, write_json
from finetwo.data.sequences import Sequence
from finetwo.text.tokenizer import Tokenizer

_VERSION = 1
_BLOCK = 1 << 20


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


# Before a line break or blank that a letter or digit follows, GPT-2's cut before merging always cuts.
_CUT = re.compile(r"[\n ](?=[^\W_])")


def paragraphs(text: str, target: int = 1 << 16) -> Iterator[str]:
    """Cut a long text into pieces of `target` characters and a little more; joined they are the text again.

    GPT-2's tokens of the pieces are those of the whole, so a text without any place to cut stays whole.
    """
    start = 0
    while start < len(text):
        match = _CUT.search(text, start + target)
        end = match.start() if match else len(text)
        yield text[start:end]
        start = end


def _whole(text: str) -> Iterator[str]:
    yield text


def build_corpus(folder: Path, key: str, documents: Iterable[str], tokenizer: Tokenizer) -> CorpusInfo:
    """Write `tokens.bin` and `corpus.json` into `folder`: end-of-text before, between and after the documents."""
    with faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    cut = paragraphs if tokenizer.vocabulary.pre_tokenizer is None else _whole
    dtype = np.dtype("<u2" if tokenizer.vocab_size <= 1 << 16 else "<u4")
    digest = hashlib.sha256()
    count = total = text_bytes = 0
    with replacing(folder / "tokens.bin") as out:

        def put(ids: list[int]) -> int:
            raw = np.asarray(ids, dtype=dtype).tobytes()
            digest.update(raw)
            out.write(raw)
            return len(ids)

        total += put([tokenizer.eot])
        for text in documents:
            count += 1
            for piece in cut(text):
                total += put(tokenizer.encode(piece))
                text_bytes += len(piece.encode("utf-8"))
            total += put([tokenizer.eot])
    info = CorpusInfo(_VERSION, key, dtype.str, count, total, text_bytes, digest.hexdigest())
    write_json(folder / "corpus.json", asdict(info))
    return info


class Corpus:
    """A memory-mapped token stream read in chunks of a given length."""

    def __init__(self, folder: Path, info: CorpusInfo, tokens: NDArray[np.generic]) -> None:
        self.folder, self.info, self.tokens = folder, info, tokens

    @classmethod
    def open(cls, folder: Path, key: str | None = None) -> Corpus | None:
        """Open a cache; None when there is none or `key` differs; InputError when it is damaged."""
        path = folder / "corpus.json"
        if not path.is_file():
            return None
        content = read_json(path)
        try:
            info = CorpusInfo(**content)
            expected = int(info.tokens) * np.dtype(info.dtype).itemsize
        except (TypeError, ValueError):
            return None
        if info.version != _VERSION or (key is not None and info.key != key):
            return None
        binary = folder / "tokens.bin"
        if not binary.is_file() or binary.stat().st_size != expected:
            got = binary.stat().st_size if binary.is_file() else "no file"
            raise InputError(
                str(binary),
                f"the token cache must have {expected:,} bytes",
                got,
                f"delete the folder {folder} and run again",
            )
        return cls(folder, info, np.memmap(binary, dtype=np.dtype(info.dtype), mode="r"))

    def verify(self) -> None:
        """Raise InputError when the content no longer has the hash it was written with."""
        digest = hashlib.sha256()
        for i in range(0, len(self.tokens), _BLOCK):
            digest.update(np.ascontiguousarray(self.tokens[i : i + _BLOCK]).tobytes())
        if digest.hexdigest() != self.info.sha256:
            raise InputError(
                str(self.folder / "tokens.bin"),
                "the token cache is damaged (hash differs)",
                digest.hexdigest()[:12],
                f"delete the folder {self.folder} and run again",
            )


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
        usable = len(corpus.tokens) - 1
        if usable < 1:
            raise InputError(str(corpus.folder), "the corpus has no tokens to learn from", usable)
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


def corpus_key(files: Iterable[Path], tokenizer: Tokenizer, settings: object) -> str:
    """A digest of the files' names, sizes and times, the tokenizer and `settings`: what a cache depends on."""
    rows = [(p.name, p.stat().st_size, p.stat().st_mtime_ns) for p in files]
    content = json.dumps([rows, tokenizer.digest, settings], sort_keys=True)
    return hashlib.sha256(content.encode("utf-8")).hexdigest()
