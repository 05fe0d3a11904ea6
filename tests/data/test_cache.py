"""The token cache: whole, checked, rebuilt when anything it depends on changes (rows 56 and 57)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tests.standins.models import TEXT

from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.data import cache
from finetwo.data.cache import Chunks, Corpus, build_corpora, corpus_key, with_copies
from finetwo.data.documents import Part
from finetwo.text.tokenizer import Tokenizer, train_vocabulary
from finetwo.text.vocabulary import tokenizer_json

DOCUMENTS = [TEXT, "", "short", TEXT[:99] + "<|endoftext|>"]


def build(folder: Path, key: str, documents: Iterable[str], tokenizer: Tokenizer, split: str = "train") -> Corpus:
    """Build one corpus of `documents`, each in pieces of seven characters."""
    pieces = ([text[i : i + 7] for i in range(0, len(text), 7)] for text in documents)
    build_corpora(folder, key, (Part(split, p, "here") for p in pieces), tokenizer)
    opened = Corpus.open(folder / split, key)
    assert opened is not None
    return opened


@pytest.fixture
def corpus(tmp_path: Path, tiny_tokenizer: Tokenizer) -> Corpus:
    return build(tmp_path / "c", "key", DOCUMENTS, tiny_tokenizer)


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
    corpus.verify(tiny_tokenizer.vocab_size)


def test_long_documents_are_encoded_as_a_whole(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    text = TEXT * 300
    assert len(text) > 1 << 16
    opened = build(tmp_path, "k", [text], tiny_tokenizer)
    assert opened.tokens.tolist()[1:-1] == tiny_tokenizer.encode(text)


def test_another_cut_is_not_taken_apart(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    spec = tokenizer_json(tiny_tokenizer.vocabulary)
    spec["pre_tokenizer"]["add_prefix_space"] = True  # every piece would get a blank of its own
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    tokenizer = Tokenizer.load(tmp_path)
    text = TEXT * 200
    opened = build(tmp_path / "c", "k", [text], tokenizer)
    assert opened.tokens.tolist()[1:-1] == tokenizer.encode(text)


def test_equal_content_gives_equal_bytes(tmp_path: Path, corpus: Corpus, tiny_tokenizer: Tokenizer) -> None:
    again = build(tmp_path / "again", "key", DOCUMENTS, tiny_tokenizer)
    for name in ("tokens.bin", "corpus.json"):
        assert (again.folder / name).read_bytes() == (corpus.folder / name).read_bytes()


def test_another_key_or_version_means_build_again(corpus: Corpus, tiny_tokenizer: Tokenizer) -> None:
    assert Corpus.open(corpus.folder, "other") is None
    assert Corpus.open(corpus.folder / "nowhere", "key") is None
    again = build(corpus.folder.parent, "other", ["a"], tiny_tokenizer)
    assert again.folder == corpus.folder and again.info.documents == 1
    again.verify(tiny_tokenizer.vocab_size)
    path = corpus.folder / "corpus.json"
    for change in ({"version": 1}, {"more": 1}, {"dtype": "nonsense"}, {"dtype": "<f4"}, {"tokens": "many"}):
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
        opened.verify(400)


def test_a_token_that_is_none_is_found(corpus: Corpus, tiny_tokenizer: Tokenizer) -> None:
    """Bad input 57: the hash fits, the vocabulary does not."""
    corpus.verify(tiny_tokenizer.eot + 1)
    with pytest.raises(InputError, match=r"tokens\.bin: token 0 of the cache is outside the vocabulary of 399"):
        corpus.verify(tiny_tokenizer.eot)


def test_a_failure_while_building_leaves_the_old_cache(corpus: Corpus, tiny_tokenizer: Tokenizer) -> None:
    def refused() -> Iterator[str]:
        yield "fine"
        raise InputError("data", "ends badly")

    for documents, told in ((["fine", "half a \ud83d pair"], "half of a surrogate pair"), (refused(), "ends badly")):
        with pytest.raises(InputError, match=told):
            build(corpus.folder.parent, "new", documents, tiny_tokenizer)
        again = Corpus.open(corpus.folder, "key")
        assert again is not None and sorted(os.listdir(corpus.folder)) == ["corpus.json", "tokens.bin"]
        again.verify(tiny_tokenizer.vocab_size)


def test_a_failure_of_the_first_build_leaves_no_folder(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    with pytest.raises(InputError, match="half of a surrogate pair"):
        build(tmp_path, "k", ["fine", "half a \ud83d pair"], tiny_tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((EnvironmentFault, InputError), match="file"):
        build(tmp_path / "file" / "c", "k", ["a"], tiny_tokenizer)


def test_one_pass_makes_every_split(tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the documents are mixed and grouped, each corpus is what it would be alone; train is sealed last."""
    monkeypatch.setattr(cache, "GROUP", 300)
    documents = [(("train", "test", "validation", "train")[i % 4], TEXT[: i * 13]) for i in range(60)]
    order: list[str] = []
    real = cache.write_json
    monkeypatch.setattr(cache, "write_json", lambda path, value: (order.append(path.parent.name), real(path, value)))
    infos = build_corpora(tmp_path / "all", "k", [Part(name, [text], "") for name, text in documents], tiny_tokenizer)
    assert order[-1] == "train" and sorted(infos) == ["test", "train", "validation"]
    for split in infos:
        alone = build(tmp_path / "one", "k", [text for name, text in documents if name == split], tiny_tokenizer, split)
        opened = Corpus.open(tmp_path / "all" / split)
        assert (
            opened is not None
            and opened.info == replace(alone.info, splits=sorted(infos))
            and opened.summary() == alone.summary()
        )
        assert opened.tokens.tolist() == alone.tokens.tolist()
    assert build_corpora(tmp_path / "none", "k", [], tiny_tokenizer) == {} and not (tmp_path / "none").exists()


def test_the_key_holds_files_tokenizer_and_settings(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    file = tmp_path / "a.txt"
    file.write_text("one")
    key = corpus_key({"train": [file]}, tiny_tokenizer, {"limit": None})
    assert corpus_key({"train": [file]}, tiny_tokenizer, {"limit": None}) == key
    assert corpus_key({"train": [file]}, tiny_tokenizer, {"limit": 5}) != key
    assert corpus_key({"train": [file]}, Tokenizer(train_vocabulary(iter([TEXT]), 300)), {"limit": None}) != key
    os.utime(file, ns=(1, 1))
    assert corpus_key({"train": [file]}, tiny_tokenizer, {"limit": None}) != key
    key = corpus_key({"train": [file]}, tiny_tokenizer, {"limit": None})
    file.write_text("more")
    os.utime(file, ns=(1, 1))
    assert corpus_key({"train": [file]}, tiny_tokenizer, {"limit": None}) != key


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
    opened = build(tmp_path, "k", ["ab"], tiny_tokenizer)
    for shift in (False, True):
        chunks = Chunks(opened, 512, shift=shift)
        assert len(chunks) == 1 and chunks.get(0, 1).targets.tolist() == opened.tokens.tolist()[1:]


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="Linux tells what a map holds")
def test_the_map_of_a_large_corpus_is_not_held(tmp_path: Path, corpus: Corpus) -> None:
    """Training reads chunks in an order that is drawn: after a while it would hold the whole file in memory."""
    count = 32 << 20
    path = tmp_path / "large.bin"
    with path.open("wb") as file:
        for _ in range(64):
            file.write(bytes(1 << 20))
    tokens = np.memmap(path, dtype="<u2", mode="r")
    chunks = Chunks(Corpus(corpus.folder, replace(corpus.info, tokens=count), tokens), 1024)
    most = 0
    for i, index in enumerate(np.random.default_rng(0).permutation(len(chunks))[:600].tolist()):
        assert chunks.get(index, 0).tokens.sum() == 0
        if i % 15 == 0:
            held = Path("/proc/self/smaps").read_text(encoding="utf-8").partition("large.bin")[2]
            most = max(most, int(held.partition("Rss:")[2].split()[0]))
    assert 0 < most < 40 << 10  # KiB, of a file of 64 MiB


def test_a_corpus_of_nothing_is_refused(corpus: Corpus) -> None:
    with pytest.raises(InputError, match="no tokens to learn from"):
        Chunks(Corpus(corpus.folder, corpus.info, corpus.tokens[:1]), 8)


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
