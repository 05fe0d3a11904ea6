"""Text to token ids and back, exact to the byte.

Encoding goes through tiktoken where its answer is proven equal to the reference (`tokenizers`), else through the
reference; it must not know models or templates. Invariants: `decode(encode(text)) == text`, and text that
happens to spell a control token is encoded as text.
"""

from __future__ import annotations

import codecs
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from pathlib import Path

from finetwo.core.errors import InputError
from finetwo.core.files import replace_file
from finetwo.text.vocabulary import (
    END_OF_TEXT,
    Vocabulary,
    byte_order,
    byte_symbols,
    read_vocabulary,
    symbol_bytes,
    tokenizer_json,
    vocabulary_files,
)

# How GPT-2 cuts text before merging; possessive quantifiers keep long runs linear.
_GPT2_SPLIT = r"'(?:[stmd]|re|ve|ll)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s+(?!\S)|\s+"
# The published GPT-2 vocabulary, whose proof (`merges_reach_every_token`) is a test and need not be made at each start.
_PUBLISHED = "7c1c41fda261ac8aeb6291394ffb2078fc9433fc313bcd0ae37bbdad72cebc4e"


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
    def _encode_text(self) -> Callable[[str], list[int]]:
        v = self.vocabulary
        usual = v.pre_tokenizer is None and _in_merge_order(v)
        if not usual or not (self.digest == _PUBLISHED or merges_reach_every_token(v)):
            return self._encode_reference
        return _fast_encoder(v, lambda text: self._encode_reference(text)) or self._encode_reference

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

    def encode_batch(self, texts: Iterable[str]) -> list[list[int]]:
        """Return the ids of each text."""
        encode = self.encode
        return [encode(t) for t in texts]

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


def reference_encoder(vocabulary: Vocabulary) -> Callable[[str], list[int]]:
    """Return an encoder through the `tokenizers` library, control tokens treated as text."""
    from tokenizers import Tokenizer as Reference

    spec = tokenizer_json(vocabulary) | {"added_tokens": [], "post_processor": None}
    try:
        reference = Reference.from_str(json.dumps(spec))
    except Exception as e:
        fix = "take the file from the model's own repository"
        raise InputError("tokenizer.json", f"the tokenizers library refuses it: {e}", None, fix) from None

    def encode(text: str) -> list[int]:
        text.encode("utf-8")  # the library would panic on a lone surrogate
        return list(reference.encode(text, add_special_tokens=False).ids)

    return encode


def _in_merge_order(vocabulary: Vocabulary) -> bool:
    """Whether ids grow with merge priority: tiktoken takes the id for the priority."""
    made = [vocabulary.ids[a + b] for a, b in vocabulary.merges]
    return len(set(made)) == len(made) and made == sorted(made)


def merges_reach_every_token(vocabulary: Vocabulary) -> bool:
    """Whether each merge result, taken alone, is merged back into itself by the reference.

    tiktoken joins any neighbours whose bytes are a token; BPE only listed pairs. The two agree if every token is
    reachable: inside its span merges run as they would alone, so the last pair is then always the listed one.
    """
    from tokenizers import Tokenizer as Reference

    model = Reference.from_str(json.dumps(tokenizer_json(vocabulary))).model
    return all(len(model.tokenize(a + b)) == 1 for a, b in vocabulary.merges)


def _fast_encoder(vocabulary: Vocabulary, fallback: Callable[[str], list[int]]) -> Callable[[str], list[int]] | None:
    """An encoder through tiktoken, for a vocabulary that is proven to give the same there."""
    import tiktoken

    table = symbol_bytes()
    tokens = [*byte_symbols().values(), *(a + b for a, b in vocabulary.merges)]
    if not all(c in table for token in tokens for c in token):  # merges that no bytes can ask for
        return None
    ranks = {bytes(table[c] for c in token): vocabulary.ids[token] for token in tokens}
    fast = tiktoken.Encoding("finetwo", pat_str=_GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={})
    core = fast._core_bpe

    def encode(text: str) -> list[int]:
        try:
            ids: list[int] = core.encode_ordinary(text)
            return ids
        except (UnicodeEncodeError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException:  # the regex engine gave up on a very long run; a Rust panic is no Exception
            return fallback(text)

    return encode


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
