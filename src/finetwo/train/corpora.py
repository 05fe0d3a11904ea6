"""From documents to one stream of tokens on disk, read in chunks: what `style` and `pretrain` learn from.

It knows documents, splits and tokens, and no tensors. Its one invariant: a document is on one side only, and every
document read is in a corpus or in a count that is said aloud.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from finetwo.core.config import TrainConfig, to_dict
from finetwo.core.errors import InputError
from finetwo.data.cache import Chunks, Corpus, build_corpora, corpus_key
from finetwo.data.documents import Part, cut, of_text
from finetwo.data.examples import load_rows
from finetwo.data.sharing import SMALLEST_CUT, stream_splits
from finetwo.data.source import SPLITS, find_files
from finetwo.data.split import DEFAULT_SPLIT, parse_split
from finetwo.tasks.task import Task
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.prepare import Prepared

Say = Callable[[str], None]


def prepare_stream(
    data: object, task: Task, tokenizer: Tokenizer, config: TrainConfig, max_length: int, folder: Path, say: Say
) -> Prepared:
    """Turn documents into chunks of `max_length` tokens of a memory-mapped stream kept in `folder`."""
    return chunked(open_corpora(data, tokenizer, config, folder, say), task, config, max_length, say)


def chunked(corpora: dict[str, Corpus], task: Task, config: TrainConfig, max_length: int, say: Say) -> Prepared:
    """Return corpora by split as chunks of `max_length` tokens."""
    train = corpora["train"]
    length = min(max_length, max(1, len(train.tokens) - 1))
    chunks = {n: Chunks(c, length) for n, c in corpora.items()}
    for name, corpus in corpora.items():
        i = corpus.info
        say(
            f"{name}: {i.documents:,} documents, {i.text_bytes:,} bytes, {i.tokens:,} tokens, "
            f"{len(chunks[name]):,} chunks of {length}"
        )
    learn = Chunks(train, length, config.seed, shift=len(train.tokens) > 4 * length, copy_share=config.copy_share)
    digest = corpus_digest(corpora)
    counts = {n: len(c) for n, c in chunks.items()}
    return Prepared(
        task, None, learn, chunks.get("validation"), chunks.get("test"), digest, counts, whole=chunks["train"]
    )


def open_corpora(
    data: object, tokenizer: Tokenizer, config: TrainConfig, folder: Path, say: Say, made: Path | None = None
) -> dict[str, Corpus]:
    """Return the corpora of `data` by split, train first, from the cache in `folder` where that is theirs.

    Others are built in `made`, or in `folder` itself.
    """
    if config.rows.on_long != "truncate":
        what = "a text is cut into chunks, none of it is too long"
        raise InputError("--rows.on_long", what, config.rows.on_long, "leave it out")
    key = ""
    if isinstance(data, str | Path):
        key = corpus_key(find_files(Path(data)), tokenizer, [to_dict(config.rows), config.seed])
        found = _kept(folder, key, tokenizer, say)
        if found is not None:
            say(f"tokens: read from the cache in {folder}")
            return found
    parts = _parts(data, config, say)
    place = made or folder
    built = build_corpora(place, key, parts, tokenizer)
    opened = {name: Corpus.open(place / name) for name in SPLITS if name in built}
    return {name: corpus for name, corpus in opened.items() if corpus is not None}


def _kept(folder: Path, key: str, tokenizer: Tokenizer, say: Say) -> dict[str, Corpus] | None:
    """The corpora in the cache if they are the asked ones, all of them and as they were written; None to build anew."""
    found: dict[str, Corpus] = {}
    try:
        train = Corpus.open(folder / "train", key)
        if train is None:
            if (folder / "train" / "corpus.json").is_file():
                say(f"tokens: the cache in {folder} is of other data, settings or tokenizer; it is built anew")
            return None
        for name in (name for name in SPLITS if name in train.info.splits):
            corpus = train if name == "train" else Corpus.open(folder / name, key)
            if corpus is None:
                say(f"warning: {folder / name}: a part of the token cache is missing; it is built anew")
                return None
            corpus.verify(tokenizer.vocab_size)
            found[name] = corpus
    except InputError as error:
        say(f"warning: {error.line()}; it is built anew")
        return None
    return found


def corpus_digest(corpora: dict[str, Corpus]) -> str:
    """One hash over the corpora's hashes."""
    return "-".join(corpora[n].info.sha256[:21] for n in sorted(corpora))


def _parts(data: object, config: TrainConfig, say: Say) -> Iterator[Part]:
    """The documents of `data` with their splits; records in memory are shared out in memory."""
    if isinstance(data, str | Path):
        yield from stream_splits(Path(data), config.rows, config.seed, say)
        return
    heard: list[str] = []
    plan = parse_split(config.rows.split or DEFAULT_SPLIT)
    loaded = load_rows(data, config.rows, config.seed, heard.append, "text")
    documents = [(name, example) for name, part in loaded.splits.items() for example in part]
    if len(documents) == 1 and plan.fractions and len(documents[0][1].fields["text"]) >= SMALLEST_CUT:
        say(f"one document: cut at line ends, {config.rows.split or DEFAULT_SPLIT}")
        yield from cut(of_text(documents[0][1].fields["text"]), plan.fractions)
        return
    for note in heard:
        say(note)
    if not loaded.splits["train"]:
        raise InputError("--rows.split", "leaves no document for train", config.rows.split, "give train a share")
    for name, example in documents:
        yield Part(name, (example.fields["text"],), example.where)
