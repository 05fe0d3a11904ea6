"""The certificate of our own preparation: the very sequences that training reads, laid beside the texts they are of.

It knows prepared sets and records, and no network. Its one invariant: what is certified is what `Loader` will give,
read from the prepared set, and never prepared anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from finetwo.data.cache import Chunks
from finetwo.data.examples import Example, Loaded
from finetwo.data.labels import label_index
from finetwo.data.loader import Loader, Sequences
from finetwo.data.records import Records
from finetwo.data.sequences import IGNORE, Sequence
from finetwo.insight.coverage import Certificate, certify
from finetwo.insight.laid import ROLES, Laid, Piece, Table, Told, tell
from finetwo.insight.pages import release, walk
from finetwo.tasks.task import Task
from finetwo.text.template import Template, Turn, turns_from_json, turns_json
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.prepare import Prepared

Hear = Callable[[Laid, Told], None]
_OPEN, _CLOSE = "\ue000", "\ue001"
_BLOCK = 1 << 20
_STEPS = 32
"""Steps whose batches are laid out before the pages of the data are given back."""


def _nothing(record: Laid, told: Told) -> None:
    return None


# --- pieces -------------------------------------------------------------------------------------------------------


def pieces_of(task: Task, fields: Mapping[str, str], template: Template | None) -> list[Piece]:
    """Return the texts of a record in order, the template's words apart from the user's.

    The user's words are marked, written by the task, and found again by their marks; a record that holds such a mark
    itself is taken as all prompt.
    """
    marked = _marked(fields) if template is not None else None
    found = []
    for segment in task.write(fields if marked is None else marked, template):
        if segment.learn:
            found.append(Piece("answer", segment.text, segment.end))
        elif marked is None:
            found.append(Piece("prompt", segment.text, segment.end))
        else:
            found += _parted(segment.text)
    return found


def _marked(fields: Mapping[str, str]) -> dict[str, str] | None:
    if any(mark in value for value in fields.values() for mark in (_OPEN, _CLOSE)):
        return None
    found = {n: f"{_OPEN}{v}{_CLOSE}" if n != "completion" and v.strip() else v for n, v in fields.items()}
    if "messages" in fields:
        turns = [
            Turn(t.role, t.content if t.role == "assistant" else f"{_OPEN}{t.content}{_CLOSE}")
            for t in turns_from_json(fields["messages"])
        ]
        found["messages"] = turns_json(turns)
    return found


def _parted(text: str) -> Iterator[Piece]:
    """The template's words and the user's, in turn."""
    for part in text.split(_OPEN):
        user, close, rest = part.partition(_CLOSE)
        if close:
            yield Piece("prompt", user)
        if rest if close else user:
            yield Piece("header", rest if close else user)


# --- records ------------------------------------------------------------------------------------------------------


def lay(sequence: Sequence, where: str, pieces: list[Piece], max_length: int, table: Table) -> Laid:
    """Return one of our sequences as a record: its targets are put back on the tokens they stand for."""
    learned = sequence.targets != IGNORE
    last = sequence.targets[-1:] if learned[-1] else sequence.targets[:0]
    tokens = np.concatenate([sequence.tokens, last]).astype(np.int64)
    mask = np.concatenate([[False], learned])[: len(tokens)]
    tokens[mask] = sequence.targets[learned]
    whole = len(sequence.tokens) < max_length
    if not whole:  # it may just have fitted
        whole = table.text(tokens) == "".join(p.text for p in pieces).encode("utf-8", "surrogatepass") and bool(
            last.size
        )
        whole = whole and (int(tokens[-1]) == table.eot) == pieces[-1].end
    return Laid(where, tokens, mask, np.ones(len(tokens), dtype=bool), tuple(pieces), whole)


def _examples(prepared: Prepared, loaded: Loaded) -> Iterator[tuple[Sequence, Example]]:
    """Every sequence of every split, with the record it is of."""
    by_place = {e.where: e for part in loaded.splits.values() for e in part}
    for data in prepared.splits().values():
        assert isinstance(data, Records)
        for i, sequence in enumerate(walk(data)):
            yield sequence, by_place[data.place(i)]


def certify_records(
    prepared: Prepared, loaded: Loaded, tokenizer: Tokenizer, max_length: int, heard: Hear = _nothing
) -> Certificate:
    """Certify records with prompts and answers, or with a class, as they were written to be trained on."""
    kept = sum(len(part) for part in loaded.splits.values()) - prepared.counts.get("too_long", 0)
    if prepared.labels:
        return _certify_classes(prepared, loaded, tokenizer, kept, heard)
    table = Table(tokenizer)
    laid = (
        lay(sequence, example.where, pieces_of(prepared.task, example.fields, prepared.template), max_length, table)
        for sequence, example in _examples(prepared, loaded)
    )
    return certify(laid, tokenizer, kept, heard)


def _certify_classes(prepared: Prepared, loaded: Loaded, tokenizer: Tokenizer, kept: int, heard: Hear) -> Certificate:
    """Exactly the last token of each document carries a class, and it is the record's own."""
    found, table = Certificate(), Table(tokenizer)
    found.learned["class"] = 0
    for sequence, example in _examples(prepared, loaded):
        pieces = tuple(pieces_of(prepared.task, example.fields, None))
        learned, label = sequence.targets != IGNORE, example.fields["label"]
        ones = np.ones(len(sequence), dtype=bool)
        text = "".join(p.text for p in pieces).encode("utf-8", "surrogatepass")
        tokens = sequence.tokens.astype(np.int64)
        record = Laid(example.where, tokens, learned, ones, pieces, table.text(tokens) == text, label=label)
        told = tell(record, table)
        want = label_index(label, prepared.labels, example.where)
        right = learned.sum() == 1 and bool(learned[-1]) and int(sequence.targets[-1]) == want
        found.check("class on the last token").count(int(not right), example.where)
        found.check("text as written").count(int(not _reads(record, table)), example.where)
        for j, role in enumerate(ROLES):
            found.tokens[role] += int((told.roles == j).sum())
        found.learned["class"] += int(learned.sum())
        found.records += 1
        heard(record, told)
    found.check("all records there").count(max(0, kept - found.records), f"{found.records:,} of {kept:,}", kept)
    return found


def _reads(record: Laid, table: Table) -> bool:
    """Whether a document's tokens spell its texts, each of them from its beginning (a long one is cut)."""
    parts = np.split(record.tokens, np.flatnonzero(record.tokens == table.eot) + 1)
    texts = [p.text.encode("utf-8", "surrogatepass") for p in record.pieces]
    given = [table.text(part) for part in parts]
    return len(given) == len(texts) and all(t.startswith(g) and g for t, g in zip(texts, given, strict=True))


# --- plain text and prepared folders ------------------------------------------------------------------------------


def certify_stream(prepared: Prepared, tokenizer: Tokenizer) -> Certificate:
    """Every token of a corpus but the first is learned once in an epoch, as what follows the one before it."""
    found, table = Certificate(), Table(tokenizer)
    for name, data in prepared.splits().items():
        assert isinstance(data, Chunks)
        corpus, at = data.corpus, 0
        for i, chunk in enumerate(walk(data)):
            follow = np.asarray(corpus.tokens[at + 1 : at + 1 + len(chunk)], dtype=np.int64)
            wrong = len(chunk) if len(follow) != len(chunk) else int((chunk.targets != follow).sum())
            found.check("every token learned").count(wrong, f"{name}: chunk {i}", len(chunk))
            at += len(chunk)
        lost = len(corpus.tokens) - 1 - at
        found.check("every token learned").count(max(0, lost), f"{name}: behind the last chunk", 0)
        spelled = _count_stream(found, data, table)
        found.check("text as written").count(
            int(spelled != corpus.info.text_bytes), f"{name}: {corpus.info.text_bytes:,} bytes, tokens of {spelled:,}"
        )
        found.records += len(data)
    return found


def _count_stream(found: Certificate, data: Chunks, table: Table) -> int:
    """Count the tokens of a corpus by role, block by block; return the bytes they spell."""
    tokens, spelled = data.corpus.tokens, 0
    for at in range(0, len(tokens), _BLOCK):
        block = np.asarray(tokens[at : at + _BLOCK], dtype=np.int64)
        ends = int((block == table.eot).sum())
        spelled += int(table.lengths[block].sum())
        found.tokens["answer"] += len(block) - ends
        found.tokens["end"] += ends
        found.learned["answer"] += len(block) - ends
        found.learned["end"] += ends - int(at == 0 and block[0] == table.eot)
        release(data)
    return spelled


def certify_masks(prepared: Prepared, tokenizer: Tokenizer) -> Certificate:
    """What can be told of prepared data whose texts are not there: its targets are the tokens that follow."""
    found = Certificate()
    for name, data in prepared.splits().items():
        for i, s in enumerate(walk(data)):
            learned = s.targets != IGNORE
            if prepared.labels:
                right = learned.sum() == 1 and bool(learned[-1])
                found.check("class on the last token").count(int(not right), f"{name}: record {i + 1}")
            else:
                wrong = int((s.targets[:-1][learned[:-1]] != s.tokens[1:][learned[:-1]]).sum())
                found.check("answer in the loss").count(wrong + int(not learned.any()), f"{name}: record {i + 1}")
            ends = int((s.targets == tokenizer.eot).sum()) if not prepared.labels else 0
            found.tokens["prompt"] += len(s) - int(learned.sum())
            found.tokens["answer"] += int(learned.sum()) - ends
            found.tokens["end"] += ends
            found.records += 1
    if prepared.labels:
        found.learned["class"], found.tokens["prompt"] = found.tokens["answer"], sum(found.tokens.values())
        found.tokens["answer"] = 0
    else:
        found.learned |= {"answer": found.tokens["answer"], "end": found.tokens["end"]}
    return found


def count_padding(found: Certificate, loader: Loader, data: Sequences) -> None:
    """Lay out every batch of an epoch as training does, and check that padding carries no loss."""
    for step in range(loader.steps_per_epoch):
        batches = loader.batches(step)
        want = sum(data.get(i, 0).learned for i in loader.indices(step))
        padding = sum(b.tokens.size - (b.real - b.shared) for b in batches)
        found.tokens["padding"] += padding
        extra = abs(sum(b.learned for b in batches) - want)
        found.learned["padding"] += extra
        found.check("padding out of the loss").count(extra, f"step {step + 1}", padding)
        if step % _STEPS == 0:
            release(data)
