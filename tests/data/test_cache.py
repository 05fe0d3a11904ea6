"""The token cache: whole, checked, rebuilt when anything it depends on changes (rows 56 and 57)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.standins.models import TEXT

from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.data.cache import Chunks, Corpus, build_corpus, corpus_key, paragraphs, with_copies
from finetwo.text.tokenizer import Tokenizer, train_vocabulary
from finetwo.text.vocabulary import tokenizer_json

DOCUMENTS = [TEXT, "", "short", TEXT[:99] + "<|endoftext|>"]


@pytest.fixture
def corpus(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Corpus:
    build_corpus(tmp_path / "c", "key", iter(DOCUMENTS), tiny_tokenizer)
    opened = Corpus.open(tmp_path / "c", "key")
    assert opened is not None
    return opened


# --- cutting long texts -------------------------------------------------------------------------------------------

PIECES = st.lists(
    st.sampled_from(["a", "B ", " ", "  ", "\n", "\n\n", "\t", "1", ".", "'s", "é", "猫", "\u00a0", "_", "x\ny", " 7"]),
    max_size=60,
).map("".join)


@given(text=st.one_of(PIECES, st.text(max_size=60)), target=st.integers(1, 12))
@settings(max_examples=400, deadline=None)
def test_pieces_are_the_text_and_its_tokens(tiny_tokenizer: Tokenizer, text: str, target: int) -> None:
    pieces = list(paragraphs(text, target))
    assert "".join(pieces) == text and all(pieces)
    assert [i for p in pieces for i in tiny_tokenizer.encode(p)] == tiny_tokenizer.encode(text)
    assert all(len(p) >= target for p in pieces[:-1])


def test_pieces_are_near_their_size() -> None:
    text = TEXT * 50
    pieces = list(paragraphs(text, 300))
    assert len(pieces) > len(text) / 400 and max(map(len, pieces)) < 400
    line = TEXT.replace("\n", " ") * 50  # no line break at all
    assert max(map(len, paragraphs(line, 300))) < 400


def test_a_text_without_a_place_to_cut_stays_whole(tiny_tokenizer: Tokenizer) -> None:
    text = "ab" * 500
    assert list(paragraphs(text, 10)) == [text] and list(paragraphs("", 10)) == []


# --- building and opening -----------------------------------------------------------------------------------------


def test_documents_stand_between_ends(corpus: Corpus, tiny_tokenizer: Tokenizer) -> None:
    eot = tiny_tokenizer.eot
    wanted = [eot]
    for text in DOCUMENTS:
        wanted += [*tiny_tokenizer.encode(text), eot]
    assert corpus.tokens.tolist() == wanted
    info = corpus.info
    assert (info.documents, info.tokens, info.dtype) == (4, len(wanted), "<u2")
    assert info.text_bytes == sum(len(t.encode()) for t in DOCUMENTS)
    assert sorted(p.name for p in corpus.folder.iterdir()) == ["corpus.json", "tokens.bin"]
    corpus.verify()


def test_long_documents_are_encoded_as_a_whole(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    text = TEXT * 300
    assert len(text) > 1 << 16
    build_corpus(tmp_path, "k", iter([text]), tiny_tokenizer)
    opened = Corpus.open(tmp_path)
    assert opened is not None and opened.tokens.tolist()[1:-1] == tiny_tokenizer.encode(text)


def test_another_cut_is_not_taken_apart(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    spec = tokenizer_json(tiny_tokenizer.vocabulary)
    spec["pre_tokenizer"]["add_prefix_space"] = True  # every piece would get a blank of its own
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer.load(tmp_path)
    text = TEXT * 200
    build_corpus(tmp_path / "c", "k", iter([text]), tokenizer)
    opened = Corpus.open(tmp_path / "c")
    assert opened is not None and opened.tokens.tolist()[1:-1] == tokenizer.encode(text)


def test_equal_content_gives_equal_bytes(tmp_path: Path, corpus: Corpus, tiny_tokenizer: Tokenizer) -> None:
    build_corpus(tmp_path / "again", "key", iter(DOCUMENTS), tiny_tokenizer)
    for name in ("tokens.bin", "corpus.json"):
        assert (tmp_path / "again" / name).read_bytes() == (corpus.folder / name).read_bytes()


def test_another_key_or_version_means_build_again(corpus: Corpus, tiny_tokenizer: Tokenizer) -> None:
    assert Corpus.open(corpus.folder, "other") is None
    assert Corpus.open(corpus.folder / "nowhere", "key") is None
    build_corpus(corpus.folder, "other", iter(["a"]), tiny_tokenizer)
    again = Corpus.open(corpus.folder, "other")
    assert again is not None and again.info.documents == 1
    again.verify()
    path = corpus.folder / "corpus.json"
    for change in ({"version": 2}, {"more": 1}, {"dtype": "nonsense"}, {"tokens": "many"}):
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
        assert Corpus.open(corpus.folder, "other") is None
    path.write_text("[]")
    assert Corpus.open(corpus.folder, "other") is None


@pytest.mark.parametrize("damage", ["short", "long", "gone"])
def test_another_size_is_refused(corpus: Corpus, damage: str) -> None:
    path = corpus.folder / "tokens.bin"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(data[:-2] if damage == "short" else data + b"\0\0")
    with pytest.raises(InputError, match=rf"tokens\.bin: the token cache must have {len(data):,} bytes.*delete the"):
        Corpus.open(corpus.folder, "key")


def test_a_flipped_bit_is_found(corpus: Corpus) -> None:
    path = corpus.folder / "tokens.bin"
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    opened = Corpus.open(corpus.folder, "key")
    assert opened is not None
    with pytest.raises(
        InputError, match=r"tokens\.bin: the token cache is damaged \(hash differs\).*delete the folder"
    ):
        opened.verify()


def test_a_failure_while_building_leaves_the_old_cache(corpus: Corpus, tiny_tokenizer: Tokenizer) -> None:
    def documents() -> Iterator[str]:
        yield "fine"
        yield "half a \ud83d pair"

    with pytest.raises(InputError, match="half of a surrogate pair"):
        build_corpus(corpus.folder, "new", documents(), tiny_tokenizer)
    again = Corpus.open(corpus.folder, "key")
    assert again is not None and sorted(os.listdir(corpus.folder)) == ["corpus.json", "tokens.bin"]
    again.verify()


def test_a_folder_that_cannot_be_made(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((EnvironmentFault, InputError), match="file"):
        build_corpus(tmp_path / "file" / "c", "k", iter(["a"]), tiny_tokenizer)


def test_the_key_holds_files_tokenizer_and_settings(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    key = corpus_key([file], tiny_tokenizer, {"limit": None})
    assert corpus_key([file], tiny_tokenizer, {"limit": None}) == key
    assert corpus_key([file], tiny_tokenizer, {"limit": 5}) != key
    assert corpus_key([file], Tokenizer(train_vocabulary(iter([TEXT]), 300)), {"limit": None}) != key
    os.utime(file, ns=(1, 1))
    assert corpus_key([file], tiny_tokenizer, {"limit": None}) != key
    key = corpus_key([file], tiny_tokenizer, {"limit": None})
    file.write_text("more")
    os.utime(file, ns=(1, 1))
    assert corpus_key([file], tiny_tokenizer, {"limit": None}) != key


# --- chunks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 7, 64, 10_000])
def test_chunks_learn_every_token_once(corpus: Corpus, length: int) -> None:
    chunks = Chunks(corpus, length)
    found = [chunks.get(i, 0) for i in range(len(chunks))]
    stream = corpus.tokens.tolist()
    assert [int(t) for c in found for t in c.targets] == stream[1:]
    assert [int(t) for c in found for t in c.tokens] == stream[:-1]
    assert all(1 <= len(c) <= length and c.tokens.dtype == c.targets.dtype == np.int32 for c in found)
    assert all(np.array_equal(chunks.get(i, 3).tokens, c.tokens) for i, c in enumerate(found))


def test_shifted_chunks_begin_elsewhere_in_each_epoch(corpus: Corpus) -> None:
    length = 55
    assert (len(corpus.tokens) - 1) % length > 10  # there is room to shift
    chunks = Chunks(corpus, length, seed=1, shift=True)
    stream, starts = corpus.tokens.tolist(), set()
    for epoch in range(8):
        first = chunks.get(0, epoch)
        start = next(i for i in range(length) if stream[i : i + length] == first.tokens.tolist())
        starts.add(start)
        for i in range(len(chunks)):
            chunk, at = chunks.get(i, epoch), start + i * length
            assert chunk.tokens.tolist() == stream[at : at + length]
            assert chunk.targets.tolist() == stream[at + 1 : at + length + 1]
    assert len(starts) > 3


def test_a_corpus_shorter_than_a_chunk(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    build_corpus(tmp_path, "k", iter(["ab"]), tiny_tokenizer)
    opened = Corpus.open(tmp_path)
    assert opened is not None
    for shift in (False, True):
        chunks = Chunks(opened, 512, shift=shift)
        assert len(chunks) == 1 and chunks.get(0, 1).targets.tolist() == opened.tokens.tolist()[1:]


def test_a_corpus_of_nothing_is_refused(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    build_corpus(tmp_path, "k", iter([]), tiny_tokenizer)
    opened = Corpus.open(tmp_path)
    assert opened is not None
    with pytest.raises(InputError, match="no tokens to learn from"):
        Chunks(opened, 8)


def test_copies_repeat_earlier_spans(corpus: Corpus) -> None:
    row = np.arange(300, dtype=np.int32)
    copied = with_copies(row, np.random.default_rng(0))
    assert row.tolist() == list(range(300)) and copied.shape == row.shape and copied[0] == 0
    changed = np.flatnonzero(copied != row)
    assert 50 < len(changed) < 250 and (copied[changed] < row[changed]).all()
    chunks = Chunks(corpus, 100, seed=0, copy_share=1.0)
    first = chunks.get(0, 0)
    assert np.array_equal(first.tokens, chunks.get(0, 0).tokens)
    assert not np.array_equal(first.tokens, chunks.get(0, 1).tokens)
    assert not np.array_equal(first.tokens, Chunks(corpus, 100).get(0, 0).tokens)
    assert first.tokens[1:].tolist() == first.targets[:-1].tolist()
