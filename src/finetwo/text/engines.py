"""The two engines that encode: the reference library, and tiktoken where it is proven to give the same.

It knows vocabularies and text, and must not know files or streams. Its one invariant: the fast engine is only ever
given out for a vocabulary on which it cannot differ from the reference.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Sequence

from finetwo.core.errors import InputError
from finetwo.text.vocabulary import Vocabulary, byte_symbols, symbol_bytes, tokenizer_json

# How GPT-2 cuts text before merging. What needs no look ahead stands in a group of its own, which the regex engine
# hands to its fast and linear part; written as one flat alternation it takes half as long again.
_GPT2_SPLIT = r"(?:'(?:[stmd]|re|ve|ll)| ?(?:\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+))|\s+(?!\S)|\s+"

GAP = 2**32 - 1
"""Stands behind each text in `Tokenizer.encode_flat`; no token has this id."""
# Its first and last characters stand nowhere else in it, so that with a text before or behind it is found once.
_GAP_MARK = "<|text-ends-here|>"


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


def in_merge_order(vocabulary: Vocabulary) -> bool:
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


class FastEncoder:
    """tiktoken's engine, with the reference at hand for what it gives up on."""

    def __init__(self, ranks: dict[bytes, int], fallback: Callable[[str], list[int]]) -> None:
        import tiktoken

        self._engine = tiktoken.Encoding(
            "finetwo", pat_str=_GPT2_SPLIT, mergeable_ranks=ranks, special_tokens={_GAP_MARK: GAP}
        )
        self._fallback = fallback

    def encode(self, text: str) -> list[int]:
        """Return the ids of one text."""
        try:
            ids: list[int] = self._engine._core_bpe.encode_ordinary(text)
            return ids
        except (UnicodeEncodeError, KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException:  # the regex engine gave up on a very long run; a Rust panic is no Exception
            return self._fallback(text)

    def encode_flat(self, texts: Sequence[str]) -> array[int] | None:
        """Encode all texts in one go; None where they must be encoded one by one."""
        joined = "".join([part for text in texts for part in (text, _GAP_MARK)])
        if joined.count(_GAP_MARK) != len(texts):
            return None
        flat = array("I")
        try:
            ids = self._engine.encode_to_numpy(joined, allowed_special={_GAP_MARK}, disallowed_special=())
        except (KeyboardInterrupt, SystemExit, MemoryError):
            raise
        except BaseException:  # as above, or half of a surrogate pair, which is named by the text that holds it
            return None
        flat.frombytes(ids.tobytes())
        return flat


def fast_encoder(vocabulary: Vocabulary, fallback: Callable[[str], list[int]]) -> FastEncoder | None:
    """An encoder through tiktoken, for a vocabulary that is proven to give the same there."""
    table = symbol_bytes()
    tokens = [*byte_symbols().values(), *(a + b for a, b in vocabulary.merges)]
    if not all(c in table for token in tokens for c in token):  # merges that no bytes can ask for
        return None
    return FastEncoder({bytes(table[c] for c in token): vocabulary.ids[token] for token in tokens}, fallback)
