"""A byte-level BPE vocabulary as files hold it: tokens, merges, added tokens, and how text is cut before merging.

It reads and writes `vocab.json` + `merges.txt` and `tokenizer.json` and knows nothing of encoding. Its one
invariant: after `read_vocabulary` every id from 0 to the last has a token, and every byte and merge result an id.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finetwo.core.errors import InputError

END_OF_TEXT = "<|endoftext|>"
_MAX_VOCAB = 1_000_000
_MAX_BYTES = 256 * 1024 * 1024


@cache
def byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for each byte: printable Latin-1 stays, the other 68 map to U+0100 onwards."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in set(printable)]
    symbols = {b: chr(b) for b in printable}
    symbols.update({b: chr(256 + i) for i, b in enumerate(rest)})
    return symbols


@cache
def symbol_bytes() -> dict[str, int]:
    """The inverse of `byte_symbols`."""
    return {s: b for b, s in byte_symbols().items()}


def byte_order() -> list[int]:
    """The order in which GPT-2's vocabulary lists the 256 bytes."""
    return list(byte_symbols())


@dataclass
class Vocabulary:
    """Tokens by id in byte-symbol spelling, merges in order of priority, and the tokens that stand outside BPE."""

    ids: dict[str, int]
    merges: list[tuple[str, str]]
    added: dict[str, int]
    eot: int
    pre_tokenizer: dict[str, Any] | None = None
    """The `pre_tokenizer` entry of a tokenizer.json that is not plain GPT-2; None for GPT-2's."""

    @property
    def size(self) -> int:
        """Number of ids, added tokens included."""
        return max(max(self.ids.values(), default=-1), max(self.added.values(), default=-1)) + 1


def _fail(
    path: Path, what: str, got: object = None, fix: str = "take the file from the model's own repository"
) -> InputError:
    return InputError(str(path), what, got, fix)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {key!r} stands twice")
        found[key] = value
    return found


def _json(path: Path) -> Any:
    """Read one JSON file strictly, or raise InputError that names it."""
    if path.stat().st_size > _MAX_BYTES:
        raise _fail(path, "larger than any GPT-2 tokenizer", path.stat().st_size)
    try:
        return json.loads(path.read_bytes().decode("utf-8"), object_pairs_hook=_unique)
    except UnicodeDecodeError as e:
        raise _fail(path, f"not UTF-8 at byte {e.start}") from None
    except json.JSONDecodeError as e:
        raise _fail(path, f"not valid JSON at line {e.lineno} column {e.colno}: {e.msg}") from None
    except (ValueError, RecursionError) as e:
        raise _fail(path, f"not a strict JSON object: {e}") from None


def _merges_txt(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
    except UnicodeDecodeError as e:
        raise _fail(path, f"not UTF-8 at byte {e.start}") from None
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines, 1):
        line = line.removesuffix("\r")
        if not line or (number == 1 and line.startswith("#version")):
            continue
        left, blank, right = line.partition(" ")
        if not blank or not left or not right or " " in right:
            raise _fail(path, f"line {number} is not two symbols with one blank between", line)
        merges.append((left, right))
    return merges


def _merge_pair(path: Path, number: int, merge: Any) -> tuple[str, str]:
    parts = merge.split(" ") if isinstance(merge, str) else merge
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
        raise _fail(path, f"model.merges[{number}] is not a pair of symbols", merge)
    return parts[0], parts[1]


def _check(path: Path, vocabulary: Vocabulary) -> None:
    """Raise InputError unless ids are whole, unique and dense, and every byte and merge is spelled."""
    ids: dict[str, Any] = {**vocabulary.ids, **vocabulary.added}
    seen: dict[int, str] = {}
    for token, i in ids.items():
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < _MAX_VOCAB:
            raise _fail(path, f"the id of token {token!r} must be an integer from 0 to {_MAX_VOCAB - 1}", i)
        if seen.setdefault(i, token) != token:
            raise _fail(path, f"id {i} belongs to two tokens, {seen[i]!r} and {token!r}")
    for i in range(len(seen)):
        if i not in seen:
            raise _fail(path, f"no token has id {i}, but {max(seen)} is in use")
    for byte, symbol in byte_symbols().items():
        if symbol not in vocabulary.ids:
            raise _fail(path, f"the symbol of byte {byte} is missing: not a byte-level vocabulary", symbol)
    for number, (left, right) in enumerate(vocabulary.merges, 1):
        if left not in vocabulary.ids or right not in vocabulary.ids or left + right not in vocabulary.ids:
            raise _fail(path, f"merge {number} uses or makes a token that the vocabulary lacks", f"{left} {right}")


def _plain_gpt2(pre: Any) -> bool:
    return (
        isinstance(pre, dict)
        and pre.get("type") == "ByteLevel"
        and not pre.get("add_prefix_space", True)
        and bool(pre.get("use_regex", True))
    )


def _from_tokenizer_json(path: Path) -> Vocabulary:
    spec = _json(path)
    model = spec.get("model") if isinstance(spec, dict) else None
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise _fail(
            path,
            "model.type must be BPE",
            model.get("type") if isinstance(model, dict) else None,
            "FineTwo reads byte-level BPE tokenizers",
        )
    if spec.get("normalizer") is not None:
        raise _fail(
            path,
            "a normalizer changes the text and is not supported",
            _kind(spec["normalizer"]),
            "use a byte-level BPE tokenizer without one",
        )
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout", "ignore_merges"):
        if model.get(name):
            raise _fail(path, f"model.{name} is not supported", model[name], "use a byte-level BPE tokenizer")
    pre = spec.get("pre_tokenizer")
    if "ByteLevel" not in json.dumps(pre):
        raise _fail(
            path,
            "pre_tokenizer must be byte-level",
            _kind(pre),
            "use a byte-level BPE tokenizer",
        )
    if not isinstance(model.get("vocab"), dict) or not isinstance(model.get("merges"), list):
        raise _fail(path, "model.vocab must be an object and model.merges a list")
    ids: dict[str, int] = dict(model["vocab"])
    merges = [_merge_pair(path, i, m) for i, m in enumerate(model["merges"])]
    added = _added_tokens(path, spec.get("added_tokens") or [])
    for token in added:
        if ids.get(token, added[token]) != added[token]:
            raise _fail(path, f"token {token!r} has id {ids[token]} in model.vocab and {added[token]} in added_tokens")
        ids.pop(token, None)
    return Vocabulary(ids, merges, added, -1, None if _plain_gpt2(pre) else pre)


def _added_tokens(path: Path, entries: Any) -> dict[str, int]:
    added: dict[str, int] = {}
    for entry in entries if isinstance(entries, list) else [entries]:
        if not isinstance(entry, dict) or not isinstance(entry.get("content"), str) or "id" not in entry:
            raise _fail(path, "added_tokens must list objects with content and id", entry)
        if added.setdefault(entry["content"], entry["id"]) != entry["id"]:
            raise _fail(path, f"added token {entry['content']!r} has two ids", entry["id"])
    return added


def _kind(part: Any) -> Any:
    """The type that a part of a tokenizer.json names, else the part itself: for error messages."""
    return part.get("type") if isinstance(part, dict) else part


def _settings(path: Path) -> dict[str, Any]:
    """The object in the JSON file `path`; empty where there is no such file."""
    if not path.is_file():
        return {}
    content = _json(path)
    if not isinstance(content, dict):
        raise _fail(path, "must hold an object", type(content).__name__)
    return content


def _find_eot(folder: Path, vocabulary: Vocabulary) -> int:
    """The end-of-text id: GPT-2's name for it, else the eos token that the folder's configuration names."""
    tokens = vocabulary.ids | vocabulary.added
    if END_OF_TEXT in tokens:
        return tokens[END_OF_TEXT]
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        eos = _settings(folder / name).get("eos_token")
        eos = eos.get("content") if isinstance(eos, dict) else eos
        if isinstance(eos, str) and eos in tokens:
            return tokens[eos]
    eos_id = _settings(folder / "config.json").get("eos_token_id")
    if isinstance(eos_id, int) and 0 <= eos_id < vocabulary.size:
        return eos_id
    raise InputError(
        str(folder),
        f"the tokenizer has no end-of-text token ({END_OF_TEXT})",
        None,
        "name it as eos_token in tokenizer_config.json",
    )


def read_vocabulary(folder: Path) -> Vocabulary:
    """Read the tokenizer files of `folder`; InputError names the file and what is wrong with it."""
    json_path, vocab_path, merges_path = folder / "tokenizer.json", folder / "vocab.json", folder / "merges.txt"
    if not vocab_path.is_file() and (folder / "encoder.json").is_file():  # the names OpenAI published them under
        vocab_path, merges_path = folder / "encoder.json", folder / "vocab.bpe"
    if json_path.is_file():
        vocabulary, path = _from_tokenizer_json(json_path), json_path
    elif vocab_path.is_file() and merges_path.is_file():
        ids = _json(vocab_path)
        if not isinstance(ids, dict):
            raise _fail(vocab_path, "must be an object of token: id", type(ids).__name__)
        merges = _merges_txt(merges_path)
        made = {left + right for left, right in merges} | set(byte_symbols().values())
        added = {t: ids.pop(t) for t in [t for t in ids if t not in made and (t == END_OF_TEXT or t.startswith("<|"))]}
        vocabulary, path = Vocabulary(ids, merges, added, -1), vocab_path
    else:
        raise InputError(
            str(folder), "no tokenizer found", None, "needed: tokenizer.json, or vocab.json and merges.txt"
        )
    _check(path, vocabulary)
    vocabulary.eot = _find_eot(folder, vocabulary)
    return vocabulary


def tokenizer_json(vocabulary: Vocabulary) -> dict[str, Any]:
    """The content of a Hugging Face `tokenizer.json` for `vocabulary`."""
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = sorted(vocabulary.added.items(), key=lambda item: item[1])
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": t, **flags} for t, i in added],
        "normalizer": None,
        "pre_tokenizer": vocabulary.pre_tokenizer or level,
        "post_processor": {**level, "trim_offsets": False},
        "decoder": level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": dict(sorted((vocabulary.ids | vocabulary.added).items(), key=lambda item: item[1])),
            "merges": [list(m) for m in vocabulary.merges],
        },
    }


def vocabulary_files(vocabulary: Vocabulary) -> dict[str, bytes]:
    """The tokenizer files of a Hugging Face GPT-2 folder, by name."""
    eot = next(t for t, i in (vocabulary.ids | vocabulary.added).items() if i == vocabulary.eot)
    ids = dict(sorted((vocabulary.ids | vocabulary.added).items(), key=lambda item: item[1]))
    # transformers' GPT2Tokenizer puts GPT-2's own cut in the place of the file's.
    own = vocabulary.pre_tokenizer is None
    config = {
        "tokenizer_class": "GPT2Tokenizer" if own else "PreTrainedTokenizerFast",
        "add_prefix_space": False,
        "bos_token": eot,
        "eos_token": eot,
        "unk_token": eot,
    }

    def dump(value: Any) -> bytes:
        return (json.dumps(value, ensure_ascii=False, indent=1) + "\n").encode("utf-8")

    return {
        "vocab.json": json.dumps(ids, ensure_ascii=False, separators=(",", ":")).encode("utf-8"),
        "merges.txt": ("#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in vocabulary.merges)).encode("utf-8"),
        "tokenizer.json": dump(tokenizer_json(vocabulary)),
        "tokenizer_config.json": dump(config),
    }
