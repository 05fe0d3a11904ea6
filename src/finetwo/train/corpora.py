"""From documents to one stream of tokens on disk, read in chunks: what `style` and `pretrain` learn from.

It knows documents, splits and tokens, and no tensors. Its one invariant: a document is on one side only, and every
document read is in a corpus.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from finetwo.core.config import RowsConfig, TrainConfig, to_dict
from finetwo.core.errors import InputError
from finetwo.data.cache import Chunks, Corpus, build_corpus, corpus_key
from finetwo.data.columns import Columns, detect_columns, select
from finetwo.data.examples import load_rows, load_splits
from finetwo.data.source import find_files, read_rows
from finetwo.data.split import DEFAULT_SPLIT, parse_split
from finetwo.tasks.task import Task
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.prepare import Prepared

Say = Callable[[str], None]
_SMALLEST_CUT = 400
"""A single document of fewer characters is not cut: its parts would say nothing."""


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
