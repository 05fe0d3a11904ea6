"""Documents to corpora on disk: in flat memory, the same however they are read, and rebuilt when they must be."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from array import array
from pathlib import Path
from typing import Any

import pytest
from tests.standins.models import TEXT

from finetwo.core.config import RowsConfig, TrainConfig
from finetwo.core.errors import InputError
from finetwo.data import opening
from finetwo.data.cache import Corpus, build_corpora
from finetwo.data.sharing import stream_splits
from finetwo.tasks.registry import find_task
from finetwo.text.engines import GAP
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.corpora import open_corpora, prepare_stream

LINES = [f"Line {i} of the story of the lamp, as it was told.\n" for i in range(2000)]


def write_lines(path: Path, texts: list[str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def corpora(
    data: Any, tokenizer: Tokenizer, folder: Path, said: list[str] | None = None, **rows: Any
) -> dict[str, list[int]]:
    """The tokens by split."""
    config = TrainConfig(task="style", rows=RowsConfig(**rows))
    found = open_corpora(data, tokenizer, config, folder, (said if said is not None else []).append)
    return {name: corpus.tokens.tolist() for name, corpus in found.items()}


def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    """Records by the thousand, or one text of any size: the tokenizer's own work aside, a few pieces are held."""

    class Vocabulary:
        pre_tokenizer = None

    class Counting:
        vocabulary, vocab_size, eot = Vocabulary(), 400, 399

        def encode(self, text: str) -> list[int]:
            return []

        def encode_flat(self, texts: list[str]) -> array[int]:
            return array("I", [i for text in texts for i in (len(text) % 400, GAP)])

    megabytes = 24
    text = "".join(LINES)
    block = text * ((1 << 20) // len(text) + 1)
    with (tmp_path / "a.txt").open("w") as whole, (tmp_path / "a.jsonl").open("w") as lines:
        for i in range(megabytes):
            whole.write(block)
            for at in range(0, len(block), 5000):
                lines.write(json.dumps({"text": f"{i} {block[at : at + 5000]}"}) + "\n")
    for name in ("a.txt", "a.jsonl"):
        tracemalloc.start()
        parts = stream_splits(tmp_path / name, RowsConfig(), 0, lambda _: None)
        infos = build_corpora(tmp_path / "t", "k", parts, Counting())  # type: ignore[arg-type]
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert sum(i.text_bytes for i in infos.values()) >= megabytes << 20
        assert infos["train"].text_bytes > 7 * infos["validation"].text_bytes
        assert peak < 12 << 20, f"{name}: {peak:,} bytes held at once"


def test_one_text_is_the_same_corpus_however_it_is_read(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a file in small pieces, packed, as a record, in memory: the tokens of its two parts, each as a whole."""
    text = "".join(LINES) + "é🙂 no line end"
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress(text.encode()))
    write_lines(tmp_path / "a.jsonl", [text])
    at = text.rfind("\n", 0, int(len(text) * 0.9)) + 1
    eot = tiny_tokenizer.eot
    parts = {"train": text[:at], "validation": text[at:]}
    wanted = {name: [eot, *tiny_tokenizer.encode(part), eot] for name, part in parts.items()}
    monkeypatch.setattr(opening, "CHUNK", 1000)
    for i, data in enumerate(("a.txt", "a.txt.gz", "a.jsonl")):
        assert corpora(tmp_path / data, tiny_tokenizer, tmp_path / f"t{i}") == wanted, data
    assert corpora([{"text": text}], tiny_tokenizer, tmp_path / "m") == wanted


def test_records_are_the_same_corpora_from_a_file_and_from_memory(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    texts = [TEXT[i : i + 90] for i in range(80)] + [" ", TEXT[3:93]]
    file = write_lines(tmp_path / "a.jsonl", texts)
    for i, split in enumerate((None, "train:0.6,validation:0.2,test:0.2", "train:50,validation:20,test:5")):
        ours = corpora(file, tiny_tokenizer, tmp_path / f"f{i}", split=split)
        assert ours == corpora([{"text": t} for t in texts], tiny_tokenizer, tmp_path / f"m{i}", split=split)
        assert list(ours) == ["train", "validation", "test"][: len(ours)]


def test_given_files_are_counted_too(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """Blank documents and doubled ones were neither counted nor said where a validation file was given."""
    write_lines(tmp_path / "d/train.jsonl", ["one lamp", " ", "two lamps"])
    write_lines(tmp_path / "d/validation.jsonl", ["two lamps", "three"])
    said: list[str] = []
    found = corpora(tmp_path / "d", tiny_tokenizer, tmp_path / "t", said)
    eot = tiny_tokenizer.eot
    assert found["train"] == [
        eot, *tiny_tokenizer.encode("one lamp"), eot, *tiny_tokenizer.encode("two lamps"), eot
    ]  # fmt: skip
    assert any("1 of 2 validation records are in train too: " in line for line in said)
    assert any("5 records read: train 2, validation 2; left out: 1 empty text" in line for line in said)


def test_a_cache_of_other_data_is_said_and_built_anew(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """Bad input 56."""
    file = write_lines(tmp_path / "a.jsonl", LINES[:40])
    said: list[str] = []
    first = corpora(file, tiny_tokenizer, tmp_path / "t", said)
    assert not any("the cache" in line for line in said)
    said.clear()
    assert corpora(file, tiny_tokenizer, tmp_path / "t", said) == first
    assert said == [f"tokens: read from the cache in {tmp_path / 't'}"]
    said.clear()
    assert corpora(file, tiny_tokenizer, tmp_path / "t", said, limit=20) != first
    other = f"tokens: the cache in {tmp_path / 't'} is of other data, settings or tokenizer; it is built anew"
    assert said[0] == other


def test_a_failure_leaves_the_cache_that_was_there(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """Counts that cannot be met are known behind the last record; nothing has been replaced by then."""
    file = write_lines(tmp_path / "a.jsonl", LINES[:40])
    corpora(file, tiny_tokenizer, tmp_path / "t")
    before = {p: p.read_bytes() for p in sorted((tmp_path / "t").rglob("*")) if p.is_file()}
    with pytest.raises(InputError, match="asks for 60 records, there are 40"):
        corpora(file, tiny_tokenizer, tmp_path / "t", split="train:50,validation:10")
    assert {p: p.read_bytes() for p in sorted((tmp_path / "t").rglob("*")) if p.is_file()} == before
    opened = Corpus.open(tmp_path / "t/train")
    assert opened is not None
    opened.verify(tiny_tokenizer.vocab_size)


def test_a_stretch_that_cannot_be_cut_is_named(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bad input 47: a text of one endless word is held up to a limit only, and told by its file."""
    from finetwo.data import cache, paragraphs

    file = tmp_path / "a.txt"
    file.write_text("A line.\n" * 100 + "ab" * 200_000, encoding="utf-8")
    limited = lambda pieces, where: paragraphs.paragraphs(pieces, where, limit=100_000)  # noqa: E731
    monkeypatch.setattr(cache, "paragraphs", limited)
    with pytest.raises(InputError, match=r"a\.txt:1: record 1: more than 100,000 characters without a line break"):
        corpora(file, tiny_tokenizer, tmp_path / "t")


def test_what_is_prepared_says_what_it_holds(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    file = write_lines(tmp_path / "a.jsonl", LINES[:40])
    said: list[str] = []
    config = TrainConfig(task="style")
    found = prepare_stream(file, find_task("style"), tiny_tokenizer, config, 32, tmp_path / "t", said.append)
    train = Corpus.open(tmp_path / "t/train")
    assert train is not None and found.whole is not None
    info, chunks = train.info, f"{len(found.whole):,} chunks of 32"
    told = f"train: {info.documents:,} documents, {info.text_bytes:,} bytes, {info.tokens:,} tokens, {chunks}"
    assert told in said and found.digest.startswith(info.sha256[:21])
