"""From a user's data to sequences: which task, which template, which splits, and what was cut or left out.

It knows rows, tasks and tokens, and no tensors. Its one invariant: every record read is in a sequence or in a
count that is said aloud.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from finetwo.core.config import RowsConfig, TrainConfig, to_dict
from finetwo.core.errors import InputError
from finetwo.data.cache import Chunks, Corpus, build_corpus, corpus_key
from finetwo.data.columns import Columns, detect_columns, select
from finetwo.data.examples import Example, Loaded, load_rows, load_splits
from finetwo.data.loader import InMemory, Sequences
from finetwo.data.sequences import Sequence, encode_segments
from finetwo.data.source import find_files, read_rows
from finetwo.data.split import DEFAULT_SPLIT, parse_split
from finetwo.tasks.registry import find_task
from finetwo.tasks.task import Task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

Say = Callable[[str], None]
_SMALLEST_CUT = 400
"""A single document of fewer characters is not cut: its parts would say nothing."""


@dataclass
class Prepared:
    """Data ready for the loop."""

    task: Task
    template: Template | None
    train: Sequences
    validation: Sequences | None
    test: Sequences | None
    digest: str
    counts: dict[str, int] = field(default_factory=dict)
    places: list[str] = field(default_factory=list)
    """Where each training sequence came from; empty for a stream."""
    whole: Sequences | None = None
    """The training set as it is measured: a stream without the random offsets of training."""

    def splits(self) -> dict[str, Sequences]:
        """The sets that are there, by name, each token in them once."""
        named = {"train": self.whole or self.train, "validation": self.validation, "test": self.test}
        return {name: data for name, data in named.items() if data is not None}

    def where_of(self, index: int) -> str:
        """Name the record behind training sequence `index`."""
        return self.places[index] if self.places else f"chunk {index}"


def detect_task(config: TrainConfig, data: object) -> Task:
    """Return the asked task, or the one that the columns of the data stand for."""
    if config.task != "auto":
        return find_task(config.task)
    columns = config.rows.columns
    if columns.text is not None:
        return find_task("style")
    if not isinstance(data, str | Path):
        return find_task("instruct" if columns.prompt else _kind_of_rows(data))
    files = [p for group in find_files(Path(data)).values() for p in group]
    first = next(
        iter(
            read_rows(
                files[0],
                RowsConfig(
                    format=config.rows.format, delimiter=config.rows.delimiter, encoding=config.rows.encoding, limit=1
                ),
            )
        )
    )
    return find_task("style" if detect_columns(list(first.fields), columns, first.where).kind == "text" else "instruct")


def _kind_of_rows(data: object) -> str:
    quiet = load_rows(data, RowsConfig(limit=1), 0, lambda _: None)
    return "style" if quiet.columns.kind == "text" else "instruct"


def prepare_records(
    loaded: Loaded, task: Task, template: Template, tokenizer: Tokenizer, config: TrainConfig, max_length: int, say: Say
) -> Prepared:
    """Turn examples into sequences in memory, counting what was cut and what did not fit."""
    if not loaded.splits["train"]:
        raise InputError("--rows.split", "leaves no record for train", config.rows.split, "give train a share")
    counts: Counter[str] = Counter()
    sets: dict[str, list[Sequence]] = {}
    places: list[str] = []
    for name, examples in loaded.splits.items():
        kept: list[Sequence] = []
        for example in examples:
            sequence, fate = encode_segments(tokenizer, task.write(example.fields, template), max_length)
            if fate != "kept":
                sequence = _too_long(example, config.rows, sequence, fate, max_length, counts)
            if sequence is not None:
                kept.append(sequence)
                if name == "train":
                    places.append(example.where)
        sets[name] = kept
        counts[name] = len(kept)
    _say_long(counts, max_length, say)
    if not sets["train"]:
        raise InputError(
            loaded.origin,
            f"no record is left to train on: {counts['too_long']} were too long for max_length {max_length}",
            None,
            "raise --max_length or shorten the prompts",
        )
    learned = sum(s.learned for s in sets["train"])
    total = sum(len(s) for s in sets["train"])
    ends = sum(int(s.targets[-1] == tokenizer.eot) for s in sets["train"])
    say(
        f"train: {len(sets['train']):,} records, {total:,} tokens, {learned:,} carry loss ({learned / total:.0%}); "
        f"end-of-text is learned in {ends:,}"
    )
    return Prepared(
        task,
        template,
        InMemory(sets["train"]),
        InMemory(sets["validation"]) if sets["validation"] else None,
        InMemory(sets["test"]) if sets["test"] else None,
        loaded.digest,
        loaded.counts | dict(counts),
        places,
    )


def _too_long(
    example: Example, rows: RowsConfig, sequence: Sequence | None, fate: str, max_length: int, counts: Counter[str]
) -> Sequence | None:
    """Apply --rows.on_long to a sequence that did not fit whole."""
    if rows.on_long == "error":
        raise InputError(
            example.where,
            f"longer than max_length {max_length}",
            None,
            "raise --max_length, shorten the record, or --rows.on_long truncate",
        )
    if fate == "too long" or rows.on_long == "skip":
        counts["too_long"] += 1
        return None
    counts["truncated"] += 1
    return sequence


def _say_long(counts: Counter[str], max_length: int, say: Say) -> None:
    if counts["truncated"]:
        say(
            f"warning: {counts['truncated']:,} records were cut at {max_length} tokens; their answers have no end to "
            "learn (--rows.on_long skip leaves them out)"
        )
    if counts["too_long"]:
        say(f"warning: {counts['too_long']:,} records were left out: longer than {max_length} tokens")


def prepare_stream(
    data: object, task: Task, tokenizer: Tokenizer, config: TrainConfig, max_length: int, folder: Path, say: Say
) -> Prepared:
    """Turn documents into chunks of `max_length` tokens of a memory-mapped stream kept in `folder`."""
    if config.rows.on_long != "truncate":
        what = "a text is cut into chunks, none of it is too long"
        raise InputError("--rows.on_long", what, config.rows.on_long, "leave it out")
    files = find_files(Path(data)) if isinstance(data, str | Path) else {}
    settings = [to_dict(config.rows), config.seed]
    key = corpus_key([p for group in files.values() for p in group], tokenizer, settings) if files else ""
    names = ("train", "validation", "test")
    corpora = {n: _cached(folder / n, key, say) for n in names} if key else {}
    if not corpora.get("train"):
        corpora = _build_corpora(data, files, tokenizer, config, folder, key, say)
    else:
        say(f"tokens: read from the cache in {folder}")
    train = corpora["train"]
    assert train is not None
    length = min(max_length, max(1, len(train.tokens) - 1))
    chunks = {n: Chunks(c, length) for n, c in corpora.items() if c is not None}
    for name, corpus in corpora.items():
        if corpus is not None:
            i = corpus.info
            say(
                f"{name}: {i.documents:,} documents, {i.text_bytes:,} bytes, {i.tokens:,} tokens, "
                f"{len(chunks[name]):,} chunks of {length}"
            )
    learn = Chunks(train, length, config.seed, shift=len(train.tokens) > 4 * length, copy_share=config.copy_share)
    digest = corpus_digest({n: c for n, c in corpora.items() if c is not None})
    counts = {n: len(c) for n, c in chunks.items()}
    return Prepared(
        task, None, learn, chunks.get("validation"), chunks.get("test"), digest, counts, whole=chunks["train"]
    )


def _cached(folder: Path, key: str, say: Say) -> Corpus | None:
    """The cache in `folder` if it is the asked one and still what was written; None to build it anew."""
    try:
        corpus = Corpus.open(folder, key)
        if corpus is not None:
            corpus.verify()
    except InputError as error:
        say(f"warning: {error.line()}; it is built anew")
        return None
    return corpus


def corpus_digest(corpora: dict[str, Corpus]) -> str:
    """One hash over the corpora's hashes."""
    return "-".join(corpora[n].info.sha256[:21] for n in sorted(corpora))


def _build_corpora(
    data: object,
    files: dict[str, list[Path]],
    tokenizer: Tokenizer,
    config: TrainConfig,
    folder: Path,
    key: str,
    say: Say,
) -> dict[str, Corpus | None]:
    found: dict[str, Corpus | None] = {}
    if "validation" in files and config.rows.split is None:
        documents = {n: _texts(paths, config.rows, say) for n, paths in files.items()}
    else:
        splits = _split_documents(data, config, say)
        documents = {n: iter(texts) for n, texts in splits.items() if texts}
    for name in sorted(documents, key="train".__eq__):  # train last: its being there says that all are
        build_corpus(folder / name, key, documents[name], tokenizer)
        found[name] = Corpus.open(folder / name)
    return found


def _texts(paths: list[Path], rows: RowsConfig, say: Say) -> Iterator[str]:
    """Stream the documents of some files."""
    columns: Columns | None = None
    for path in paths:
        for row in read_rows(path, rows, say):
            if columns is None:
                columns = detect_columns(list(row.fields), rows.columns, row.where)
                if columns.text is None:
                    raise InputError(
                        row.where, "no text column", ", ".join(row.fields), "name it: --rows.columns.text NAME"
                    )
            yield select(row, columns)["text"]


def _split_documents(data: object, config: TrainConfig, say: Say) -> dict[str, list[str]]:
    """Documents by split; a single document is cut at a line near 90 %, so that no text is on both sides."""
    heard: list[str] = []
    plan = parse_split(config.rows.split or DEFAULT_SPLIT)
    if isinstance(data, str | Path):
        loaded = load_splits(Path(data), config.rows, config.seed, heard.append)
    else:
        loaded = load_rows(data, config.rows, config.seed, heard.append)
    if loaded.columns.kind != "text":
        raise InputError(
            loaded.origin,
            "the task needs plain text",
            ", ".join(loaded.columns.roles.values()),
            "name the column: --rows.columns.text NAME",
        )
    splits = {n: [e.fields["text"] for e in examples] for n, examples in loaded.splits.items()}
    documents = [text for texts in splits.values() for text in texts]
    if len(documents) == 1 and plan.fractions and len(documents[0]) >= _SMALLEST_CUT:
        say(f"one document: cut at line ends, {config.rows.split or DEFAULT_SPLIT}")
        return {name: [text] for name, text in _cut(documents[0], plan.fractions).items() if text}
    for note in heard:
        say(note)
    if not splits["train"]:
        raise InputError("--rows.split", "leaves no document for train", config.rows.split, "give train a share")
    return splits


def _cut(text: str, shares: Mapping[str, float]) -> dict[str, str]:
    """Cut one text into consecutive parts of the given shares, each ending at a line end (or blank)."""
    parts: dict[str, str] = {}
    start, share = 0, 0.0
    for name, part in shares.items():
        share += part
        end = len(text) if share > 1 - 1e-6 else int(len(text) * share)
        if end < len(text):
            end = text.rfind("\n", start, end) + 1 or text.rfind(" ", start, end) + 1 or end
        parts[name], start = text[start:end], end
    return parts
