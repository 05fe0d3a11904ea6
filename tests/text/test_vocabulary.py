"""Tokenizer files: read strictly, written canonically."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from finetwo.core.errors import InputError
from finetwo.text.tokenizer import Tokenizer
from finetwo.text.vocabulary import END_OF_TEXT, byte_symbols, read_vocabulary, symbol_bytes

FILES = ("vocab.json", "merges.txt", "tokenizer.json", "tokenizer_config.json")


@pytest.fixture
def folder(tiny_tokenizer: Tokenizer, tmp_path: Path) -> Path:
    tiny_tokenizer.save(tmp_path / "t")
    return tmp_path / "t"


@pytest.fixture
def pair(folder: Path) -> Path:
    """Only vocab.json and merges.txt."""
    (folder / "tokenizer.json").unlink()
    return folder


def change(path: Path, edit: Callable[[Any], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    with pytest.raises(InputError) as e:
        read_vocabulary(folder)
    assert "\n" not in str(e.value) and "Fix: " in str(e.value)
    return str(e.value)


def test_byte_symbols_are_those_of_gpt2() -> None:
    symbols = byte_symbols()
    assert len(set(symbols.values())) == 256 and symbol_bytes() == {s: b for b, s in symbols.items()}
    assert symbols[ord(" ")] == "Ġ" and symbols[ord("\n")] == "Ċ" and symbols[ord("A")] == "A" and symbols[0] == "Ā"


def test_save_load_save_gives_the_same_bytes(folder: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    again = Tokenizer.load(folder)
    again.save(tmp_path / "again")
    assert sorted(p.name for p in folder.iterdir()) == sorted(FILES)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes(), name
    assert again.digest == tiny_tokenizer.digest and again.eot == tiny_tokenizer.eot


def test_both_forms_are_one_tokenizer(folder: Path) -> None:
    whole = Tokenizer.load(folder)
    (folder / "tokenizer.json").unlink()
    halves = Tokenizer.load(folder)
    assert halves.digest == whole.digest and halves.vocabulary == whole.vocabulary


def test_windows_line_ends_in_merges(pair: Path, tiny_tokenizer: Tokenizer) -> None:
    path = pair / "merges.txt"
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Tokenizer.load(pair).digest == tiny_tokenizer.digest


def test_merges_without_a_version_line(pair: Path, tiny_tokenizer: Tokenizer) -> None:
    path = pair / "merges.txt"
    path.write_text(path.read_text().split("\n", 1)[1])
    assert Tokenizer.load(pair).digest == tiny_tokenizer.digest


def test_a_merge_that_begins_with_the_version_sign(pair: Path) -> None:
    # "#version" is a comment on the first line only: "# v" is a merge like any other.
    path = pair / "merges.txt"
    path.write_text(path.read_text() + "# v\n")
    assert "uses or makes a token that the vocabulary lacks (got # v)" in refusal(pair)


def test_merges_in_the_old_spelling(folder: Path, tiny_tokenizer: Tokenizer) -> None:
    def old(spec: Any) -> None:
        spec["model"]["merges"] = [" ".join(m) for m in spec["model"]["merges"]]

    change(folder / "tokenizer.json", old)
    assert Tokenizer.load(folder).digest == tiny_tokenizer.digest


def test_openai_names(pair: Path, tiny_tokenizer: Tokenizer) -> None:
    (pair / "vocab.json").rename(pair / "encoder.json")
    (pair / "merges.txt").rename(pair / "vocab.bpe")
    assert Tokenizer.load(pair).digest == tiny_tokenizer.digest


# --- row 73 -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", ["onlyone", "a b c", " b", "a ", "a\tb"])
def test_bad_line_12_of_merges(pair: Path, line: str) -> None:
    path = pair / "merges.txt"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:11], line, *lines[12:]]))
    assert "merges.txt: line 12 is not two symbols" in refusal(pair)


def test_merge_of_unknown_tokens(pair: Path) -> None:
    path = pair / "merges.txt"
    path.write_text(path.read_text() + "qq zz\n")
    assert "uses or makes a token that the vocabulary lacks (got qq zz)" in refusal(pair)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_duplicate_id(folder: Path, name: str) -> None:
    if name == "vocab.json":
        (folder / "tokenizer.json").unlink()
    change(folder / name, lambda c: c.get("model", {}).get("vocab", c).update({"z": 65}))
    said = refusal(folder)
    assert f"{name}: id 65 belongs to two tokens" in said and "'z'" in said


def test_gap_in_ids(pair: Path) -> None:
    change(pair / "vocab.json", lambda ids: ids.update({END_OF_TEXT: 405}))
    assert "no token has id 399, but 405 is in use" in refusal(pair)


@pytest.mark.parametrize("value", [-1, 1.5, "7", True, None, [1], 10**9])
def test_impossible_id(pair: Path, value: object) -> None:
    change(pair / "vocab.json", lambda ids: ids.update({"z": value}))
    assert "vocab.json: the id of token 'z' must be an integer" in refusal(pair)


def test_missing_byte_symbol(pair: Path) -> None:
    def lose(ids: dict[str, int]) -> None:
        ids["nobyte"] = ids.pop("Ġ")

    change(pair / "vocab.json", lose)
    assert "the symbol of byte 32 is missing" in refusal(pair)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_truncated_json(folder: Path, name: str) -> None:
    if name == "vocab.json":
        (folder / "tokenizer.json").unlink()
    text = (folder / name).read_bytes()
    (folder / name).write_bytes(text[: len(text) // 2].decode("utf-8", "ignore").encode())
    assert f"{name}: not valid JSON at line" in refusal(folder)


@pytest.mark.parametrize("name", ["vocab.json", "merges.txt", "tokenizer.json"])
def test_not_utf8(folder: Path, name: str) -> None:
    if name != "tokenizer.json":
        (folder / "tokenizer.json").unlink()
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:30] + b"\xff" + data[30:])
    assert f"{name}: not UTF-8 at byte 30" in refusal(folder)


@pytest.mark.parametrize("text", ["[]", "7", '"x"', "null"])
@pytest.mark.parametrize("name", ["vocab.json", "tokenizer.json"])
def test_another_kind_of_json(folder: Path, name: str, text: str) -> None:
    if name == "vocab.json":
        (folder / "tokenizer.json").unlink()
    (folder / name).write_text(text)
    assert name in refusal(folder)


def test_duplicate_key(pair: Path) -> None:
    path = pair / "vocab.json"
    path.write_text('{"A": 5, ' + path.read_text()[1:])
    assert "the key 'A' stands twice" in refusal(pair)


def test_deep_nesting(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("[" * 200_000)
    assert "tokenizer.json" in refusal(folder)


@pytest.mark.parametrize("missing", [("tokenizer.json", "vocab.json"), ("tokenizer.json", "merges.txt")])
def test_missing_files_are_named(folder: Path, missing: tuple[str, ...]) -> None:
    for name in missing:
        (folder / name).unlink()
    assert "no tokenizer found. Fix: needed: tokenizer.json, or vocab.json and merges.txt" in refusal(folder)


# --- what is not byte-level BPE -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("part", "value", "said"),
    [
        ("normalizer", {"type": "NFC"}, "a normalizer changes the text and is not supported (got NFC)"),
        ("normalizer", "NFC", "a normalizer changes the text and is not supported (got NFC)"),
        ("pre_tokenizer", {"type": "Whitespace"}, "pre_tokenizer must be byte-level (got Whitespace)"),
        ("pre_tokenizer", None, "pre_tokenizer must be byte-level"),
        ("pre_tokenizer", ["Whitespace"], "pre_tokenizer must be byte-level"),
        ("model", {"type": "WordPiece"}, "model.type must be BPE (got WordPiece)"),
        ("model", {"type": "BPE", "vocab": [], "merges": []}, "model.vocab must be an object"),
        ("model", {"type": "BPE", "vocab": {}, "merges": {}}, "model.merges a list"),
        ("model", {"type": "BPE", "vocab": {}, "merges": [["a"]]}, "model.merges[0] is not a pair"),
        ("model", None, "model.type must be BPE"),
        ("added_tokens", [{"content": "<x>"}], "added_tokens must list objects with content and id"),
        ("added_tokens", ["<x>"], "added_tokens must list objects with content and id"),
        ("added_tokens", 7, "added_tokens must list objects with content and id"),
        ("added_tokens", [{"content": "<x>", "id": "400"}], "the id of token '<x>' must be an integer"),
        ("added_tokens", [{"content": "<x>", "id": 400}, {"content": "<x>", "id": 401}], "'<x>' has two ids"),
        ("added_tokens", [{"content": "Ġ", "id": 400}], "token 'Ġ' has id 220 in model.vocab and 400"),
    ],
)
def test_unsupported_tokenizer_json(folder: Path, part: str, value: object, said: str) -> None:
    change(folder / "tokenizer.json", lambda spec: spec.update({part: value}))
    assert said in refusal(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [("continuing_subword_prefix", "##"), ("end_of_word_suffix", "</w>"), ("dropout", 0.1), ("ignore_merges", True)],
)
def test_unsupported_bpe_settings(folder: Path, name: str, value: object) -> None:
    change(folder / "tokenizer.json", lambda spec: spec["model"].update({name: value}))
    assert f"model.{name} is not supported" in refusal(folder)


# --- end of text --------------------------------------------------------------------------------------------------


def rename_eot(folder: Path) -> None:
    def edit(spec: Any) -> None:
        spec["added_tokens"] = [{"id": 399, "content": "</s>"}]
        spec["model"]["vocab"]["</s>"] = spec["model"]["vocab"].pop(END_OF_TEXT)

    change(folder / "tokenizer.json", edit)
    (folder / "tokenizer_config.json").unlink()


@pytest.mark.parametrize("eos", ["</s>", {"content": "</s>", "lstrip": False}])
@pytest.mark.parametrize("name", ["tokenizer_config.json", "special_tokens_map.json"])
def test_another_end_of_text_by_its_name(folder: Path, name: str, eos: object) -> None:
    rename_eot(folder)
    (folder / name).write_text(json.dumps({"eos_token": eos}))
    assert read_vocabulary(folder).eot == 399


def test_another_end_of_text_by_its_id(folder: Path) -> None:
    rename_eot(folder)
    (folder / "config.json").write_text('{"eos_token_id": 399}')
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.eot == 399 and tokenizer.bytes_of(399) == b"</s>"
    assert 399 not in tokenizer.encode("a </s>")


@pytest.mark.parametrize("content", ["{}", '{"eos_token": "<none>"}', '{"eos_token": 5}'])
def test_no_end_of_text(folder: Path, content: str) -> None:
    rename_eot(folder)
    (folder / "tokenizer_config.json").write_text(content)
    assert "the tokenizer has no end-of-text token (<|endoftext|>). Fix: name it as eos_token" in refusal(folder)


def test_a_configuration_that_is_no_object(folder: Path) -> None:
    rename_eot(folder)
    (folder / "tokenizer_config.json").write_text("[]")
    assert "tokenizer_config.json: must hold an object (got list)" in refusal(folder)


def test_more_added_tokens_stay_tokens(folder: Path, tmp_path: Path) -> None:
    def add(spec: Any) -> None:
        spec["added_tokens"].append({"id": 400, "content": "<pad>", "special": True})

    change(folder / "tokenizer.json", add)
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.vocab_size == 401 and tokenizer.bytes_of(400) == b"<pad>"
    assert 400 not in tokenizer.encode("<pad>") and tokenizer.decode(tokenizer.encode("<pad>")) == "<pad>"
    tokenizer.save(tmp_path / "again")
    assert Tokenizer.load(tmp_path / "again").digest == tokenizer.digest
