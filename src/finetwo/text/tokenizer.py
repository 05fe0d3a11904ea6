"""Text to token ids and back, exact to the byte.

Encoding goes through tiktoken where its answer is proven equal to the reference (`tokenizers`), else through the
reference; it must not know models or templates. Invariants: `decode(encode(text)) == text`, and text that
happens to spell a control token is encoded as text.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from finetwo.core.errors import InputError
from finetwo.core.files import replace_file
from finetwo.core.turns import in_turn, usable_cores
from finetwo.text.engines import (
    GAP,
    FastEncoder,
    fast_encoder,
    in_merge_order,
    merges_reach_every_token,
    reference_encoder,
)
from finetwo.text.vocabulary import (
    END_OF_TEXT,
    Vocabulary,
    byte_order,
    byte_symbols,
    read_vocabulary,
    symbol_bytes,
    vocabulary_files,
)

# The published GPT-2 vocabulary, and the embedded base's: their proof (`merges_reach_every_token`) is a test and need
# not be made at each start.
_PUBLISHED = "7c1c41fda261ac8aeb6291394ffb2078fc9433fc313bcd0ae37bbdad72cebc4e"
_EMBEDDED = "4fc5a1bd14dcea5a1f8e7352b8ecac5fe4e32e41f134f30715ab15784ef36b27"

GROUP = 1 << 19
"""Characters that are worth a thread's turn: encoding them takes far longer than handing them over."""
_From = TypeVar("_From")
_To = TypeVar("_To")


def in_threads(work: Callable[[_From], _To], items: Iterable[_From]) -> Iterator[_To]:
    """Yield `work(item)` for each item in order, on all cores."""
    return in_turn(work, items, usable_cores(), "finetwo-tokens")


class Tokenizer:
    """A byte-level BPE tokenizer in the GPT-2 layout."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        self.eot = vocabulary.eot
        self.vocab_size = vocabulary.size

    @classmethod
    def load(cls, folder: Path | str) -> Tokenizer:
        """Read the tokenizer files of a model folder; raise InputError when they are missing or damaged."""
        return cls(read_vocabulary(Path(folder)))

    @cached_property
    def _bytes(self) -> list[bytes]:
        table: list[bytes] = [b""] * self.vocab_size
        for token, i in self.vocabulary.ids.items():
            try:
                table[i] = bytes(symbol_bytes()[c] for c in token)
            except KeyError:
                table[i] = token.encode("utf-8")
        for token, i in self.vocabulary.added.items():
            table[i] = token.encode("utf-8")
        return table

    @cached_property
    def digest(self) -> str:
        """SHA-256 over vocabulary, merges and control tokens, as hex."""
        v = self.vocabulary
        content = json.dumps([sorted(v.ids.items()), v.merges, sorted(v.added.items()), v.eot, v.pre_tokenizer])
        return hashlib.sha256(content.encode("utf-8")).hexdigest()

    @cached_property
    def _encode_reference(self) -> Callable[[str], list[int]]:
        return reference_encoder(self.vocabulary)

    @cached_property
    def _fast(self) -> FastEncoder | None:
        v = self.vocabulary
        usual = v.pre_tokenizer is None and in_merge_order(v)
        if not usual or not (self.digest in (_PUBLISHED, _EMBEDDED) or merges_reach_every_token(v)):
            return None
        return fast_encoder(v, lambda text: self._encode_reference(text))

    @cached_property
    def _encode_text(self) -> Callable[[str], list[int]]:
        return self._encode_reference if self._fast is None else self._fast.encode

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; control tokens spelled in it are plain text. InputError on lone surrogates."""
        try:
            return self._encode_text(text)
        except UnicodeEncodeError as e:
            raise InputError(
                "text",
                f"half of a surrogate pair at character {e.start}",
                text[e.start : e.start + 1],
                "repair the text's encoding",
            ) from None

    def encode_flat(self, texts: Sequence[str]) -> array[int]:
        """Return the ids of all texts in turn, unsigned 32-bit, with `GAP` behind each; errors as `encode`.

        With the fast engine other threads go on meanwhile, so several calls fill several cores.
        """
        flat = None if self._fast is None else self._fast.encode_flat(texts)
        if flat is None:
            flat = array("I")
            for text in texts:
                flat.extend(self.encode(text))
                flat.append(GAP)
        return flat

    def ahead(self, texts: Iterable[str]) -> Tokenizer:
        """Return this tokenizer with `texts` encoded already, on all cores; to be asked for them one by one."""
        return _Ahead(self, texts)

    def _spans(self, texts: Iterable[str]) -> Iterator[tuple[str, list[int], int, int]]:
        """Encode on all cores; yield each text, a list that holds its ids, and where they begin and end in it."""
        _ = self._encode_text  # made once, not by every thread
        groups = list(_groups(texts))
        with ThreadPoolExecutor(usable_cores(), thread_name_prefix="finetwo-tokens") as pool:
            flats = pool.map(self.encode_flat, groups) if len(groups) > 1 else map(self.encode_flat, groups)
            for group, flat in zip(groups, flats, strict=True):
                ids, start = flat.tolist(), 0
                for text in group:
                    end = ids.index(GAP, start)
                    yield text, ids, start, end
                    start = end + 1

    def bytes_of(self, token: int) -> bytes:
        """Return the bytes that `token` stands for."""
        return self._bytes[token]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """Return the joined bytes of `ids`."""
        table = self._bytes
        return b"".join([table[i] for i in ids])

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are no UTF-8 become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", "replace")

    def save(self, folder: Path | str) -> None:
        """Write vocab.json, merges.txt, tokenizer.json and tokenizer_config.json into `folder`."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in vocabulary_files(self.vocabulary).items():
            replace_file(folder / name, content)


class _Ahead(Tokenizer):
    """A tokenizer that remembers the ids of some texts."""

    def __init__(self, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
        super().__init__(tokenizer.vocabulary)
        self._tokenizer = tokenizer
        self._known = {text: (ids, start, end) for text, ids, start, end in tokenizer._spans(texts)}

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, in a list of the caller's own."""
        known = self._known.get(text)
        if known is None:
            return self._tokenizer.encode(text)
        ids, start, end = known
        return ids[start:end]

    def encode_flat(self, texts: Sequence[str]) -> array[int]:
        """Return the ids of all texts as the tokenizer itself does."""
        return self._tokenizer.encode_flat(texts)


def _groups(texts: Iterable[str]) -> Iterator[list[str]]:
    """Gather texts into groups of about `GROUP` characters."""
    group: list[str] = []
    size = 0
    for text in texts:
        group.append(text)
        size += len(text)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


class StreamDecoder:
    """Turns ids into text as they come and never splits a character: at most three bytes wait."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, token: int) -> str:
        """Return the text that `token` completes (possibly none)."""
        return self._decoder.decode(self._tokenizer.bytes_of(token))

    def flush(self) -> str:
        """Return what still waits; unfinished bytes become U+FFFD."""
        return self._decoder.decode(b"", final=True)


def train_vocabulary(texts: Iterator[str], size: int) -> Vocabulary:
    """Train a byte-level BPE vocabulary of `size` ids (256 bytes, merges, end-of-text) on `texts`.

    Ids follow GPT-2's layout: bytes, merges by priority, end-of-text last. InputError when `size` cannot be reached.
    """
    from tokenizers import Tokenizer as Reference
    from tokenizers import models, pre_tokenizers, trainers

    if not 257 <= size <= 1_000_000:
        raise InputError("--vocab", "must be from 257 to 1,000,000", size)
    reference = Reference(models.BPE())
    reference.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = list(byte_symbols().values())
    trainer = trainers.BpeTrainer(
        vocab_size=size - 1, initial_alphabet=alphabet, show_progress=False, special_tokens=[]
    )
    reference.train_from_iterator(texts, trainer)
    raw = json.loads(reference.to_str())["model"]["merges"]
    merges = [(m[0], m[1]) for m in raw]
    ids = {byte_symbols()[b]: i for i, b in enumerate(byte_order())}
    for a, b in merges:
        ids.setdefault(a + b, len(ids))
    eot = len(ids)
    if eot + 1 < size:
        raise InputError(
            "--vocab",
            f"the text is too small for {size} ids: it gave {eot + 1}",
            None,
            f"use --vocab {eot + 1} or more text",
        )
    return Vocabulary(ids, merges, {END_OF_TEXT: eot}, eot)
