"""Encodes records many at a time, on all cores: the same sequences as one by one.

It knows segments and the tokenizer, and no tasks and no files. Its one invariant: neither the other records nor the
number of cores changes a sequence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetwo.core.errors import InputError
from finetwo.data.beginnings import shared_beginnings
from finetwo.data.sequences import IGNORE, Fate, Int32, Segment, Sequence
from finetwo.text.engines import GAP
from finetwo.text.tokenizer import GROUP, Tokenizer, in_threads

_Flat = NDArray[np.uint32]


@dataclass(frozen=True)
class _Encoded:
    """A group of records as one row of ids (n,), which of them are learned, and where each record begins and ends."""

    ids: Int32
    learn: NDArray[np.bool_]
    bounds: NDArray[np.int64]


def encode_records(
    tokenizer: Tokenizer, records: Iterable[list[Segment]], max_length: int
) -> Iterator[tuple[Sequence | None, Fate]]:
    """Yield each record's segments, encoded apart, as one sequence cut at `max_length` tokens of input, and its fate.

    A cut sequence loses its end, end-of-text included, so a cut answer never teaches the model to stop there. None
    when nothing that is learned fits. Records are taken some groups ahead of what is yielded.
    """
    tokenizer.encode("")  # its engine is made once, not by every thread
    for encoded in in_threads(lambda group: _encoded(tokenizer, group), _groups(records)):
        yield from _sequences(encoded, max_length)


def _groups(records: Iterable[list[Segment]]) -> Iterator[list[list[Segment]]]:
    """Gather records into groups of about `GROUP` characters."""
    group: list[list[Segment]] = []
    size = 0
    for record in records:
        group.append(record)
        size += sum(len(segment.text) for segment in record)
        if size >= GROUP:
            yield group
            group, size = [], 0
    if group:
        yield group


def _encoded(tokenizer: Tokenizer, records: list[list[Segment]]) -> _Encoded:
    segments = [segment for record in records for segment in record]
    flat = _flat(tokenizer, [segment.text for segment in segments])
    gaps = np.flatnonzero(flat == GAP)
    ends = np.fromiter((segment.end for segment in segments), np.bool_, len(segments))
    learned = np.fromiter((segment.learn for segment in segments), np.bool_, len(segments))
    kept = np.ones(len(flat), dtype=np.bool_)
    kept[gaps] = ends  # the gap behind a segment becomes its end-of-text id, or vanishes
    flat[gaps] = tokenizer.eot
    sizes = np.diff(gaps, prepend=-1)
    reached = np.concatenate(([0], np.cumsum(sizes - ~ends)))
    firsts = np.cumsum([0, *map(len, records)])
    return _Encoded(flat[kept].astype(np.int32), np.repeat(learned, sizes)[kept], reached[firsts])


def _flat(tokenizer: Tokenizer, texts: list[str]) -> _Flat:
    """The ids of all texts in turn with `GAP` behind each; what many of them begin with is encoded once."""
    heads = shared_beginnings(texts) if tokenizer.vocabulary.pre_tokenizer is None else [""] * len(texts)
    known = list(dict.fromkeys(heads))
    if known in ([""], []):
        return _ids(tokenizer, texts)
    try:
        rests = _ids(tokenizer, [text[len(head) :] for text, head in zip(texts, heads, strict=True)])
    except InputError:  # to be told by its place in the text, not in what is left of it
        return _ids(tokenizer, texts)
    parts = [np.asarray(tokenizer.encode(head), dtype=np.uint32) for head in known]
    number = {head: i for i, head in enumerate(known)}
    which = np.fromiter((number[head] for head in heads), np.int64, len(heads))
    added = np.fromiter(map(len, parts), np.int64, len(parts))[which]
    shift = np.cumsum(added)
    sizes = np.diff(np.flatnonzero(rests == GAP), prepend=-1)
    flat = np.empty(len(rests) + int(added.sum()), dtype=np.uint32)
    flat[np.arange(len(rests)) + np.repeat(shift, sizes)] = rests
    begins = np.cumsum(sizes) - sizes + shift - added
    for i, part in enumerate(parts):
        flat[begins[which == i][:, None] + np.arange(len(part))] = part
    return flat


def _ids(tokenizer: Tokenizer, texts: list[str]) -> _Flat:
    return np.frombuffer(tokenizer.encode_flat(texts), dtype=np.uint32).copy()


def _sequences(encoded: _Encoded, max_length: int) -> Iterator[tuple[Sequence | None, Fate]]:
    """Cut a group into its records, each a view, and set the targets."""
    ids, learn = encoded.ids, encoded.learn
    targets = np.full(len(ids), IGNORE, dtype=np.int32)
    targets[:-1] = np.where(learn[1:], ids[1:], IGNORE)
    before = np.concatenate(([0], np.cumsum(learn)))  # learned ids before each place
    starts = encoded.bounds[:-1]
    ends = np.minimum(encoded.bounds[1:], starts + max_length + 1)
    cut = (ends < encoded.bounds[1:]).tolist()
    some = (before[ends] > before[np.minimum(starts + 1, ends)]).tolist()
    for start, end, is_cut, is_learned in zip(starts.tolist(), ends.tolist(), cut, some, strict=True):
        if is_learned:
            yield Sequence(ids[start : end - 1], targets[start : end - 1]), "truncated" if is_cut else "kept"
        else:
            yield None, "too long"
