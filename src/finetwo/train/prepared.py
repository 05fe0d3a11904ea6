"""Data prepared once and used again: the cache in a run folder, and the folders that `finetwo prepare` writes.

It knows how data is prepared and what that depends on, and no network. Its one invariant: prepared data is used only
where everything it depends on is the same, and it gives the run that preparing anew would give.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from finetwo.core.config import TrainConfig, to_dict
from finetwo.core.errors import InputError
from finetwo.core.files import TEMPORARY, faults, fsync_dir
from finetwo.core.version import __version__
from finetwo.data.cache import Chunks, Corpus
from finetwo.data.examples import Loaded, load_rows, load_splits
from finetwo.data.loader import Sequences
from finetwo.data.records import Records, write_records
from finetwo.data.sealed import METADATA, describe_files, is_prepared, read_metadata, write_metadata
from finetwo.data.source import SPLITS, find_files
from finetwo.tasks.task import Task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer
from finetwo.train.corpora import chunked, open_corpora
from finetwo.train.prepare import Prepared, prepare_records
from finetwo.train.templates import is_file, make_template

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """What is to be prepared, and for what: everything that the sequences depend on."""

    config: TrainConfig
    data: object
    task: Task
    tokenizer: Tokenizer
    template: Template | None = None
    """The template that the model brings along."""
    labels: tuple[str, ...] = ()
    """The classes that the model tells apart already."""
    look: Callable[[Loaded, Template | None], None] = lambda loaded, template: None
    """Is shown the records and their template where they are read from the user's files, and not from a cache."""

    @property
    def max_length(self) -> int:
        """Longest sequence in tokens."""
        assert self.config.max_length is not None
        return self.config.max_length

    def key(self, files: list[Path]) -> str:
        """A digest of the files' names, sizes and times, and of all settings that shape the sequences."""
        asked = self.config.template
        content = Path(asked).read_bytes().hex() if asked is not None and is_file(asked) else asked
        parts = [
            [(str(p), p.stat().st_size, p.stat().st_mtime_ns) for p in files],
            [self.tokenizer.digest, self.task.name, _source(self.task), self.max_length, content, __version__],
            self.labels,
            [self.template.to_dict() if self.template else None, to_dict(self.config.rows), self.config.seed],
        ]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _source(task: Task) -> str:
    """The source of the module that writes the task's records, which may be a user's own and change."""
    try:
        return hashlib.sha256(inspect.getsource(inspect.getmodule(task.write) or task.write).encode()).hexdigest()
    except (OSError, TypeError):
        return "unknown"


def prepare(wanted: Wanted, folder: Path, made: Path, say: Say) -> Prepared:
    """Return the data of a job: from a prepared folder, from the cache in `folder`, or made now in the folder `made`.

    What was made takes the cache's place by `adopt`, once the run is known to go on with it.
    """
    if is_prepared(wanted.data):
        return _given(wanted, Path(str(wanted.data)), say)
    if wanted.task.layout == "stream":
        corpora = open_corpora(wanted.data, wanted.tokenizer, wanted.config, folder, say, made)
        return chunked(corpora, wanted.task, wanted.config, wanted.max_length, say)
    if not isinstance(wanted.data, str | Path):
        return _records(wanted, say)
    key = wanted.key([path for group in find_files(Path(wanted.data)).values() for path in group])
    found = _cached(wanted, folder, key, say)
    if found is not None:
        return found
    notes: list[str] = []

    def note(line: str) -> None:
        notes.append(line)
        say(line)

    _write(wanted, _records(wanted, note), made, key, notes)
    return _open(wanted, made, read_metadata(made))


def adopt(made: Path, folder: Path) -> None:
    """Put what was made, if anything was, in the place of the cache in `folder`."""
    if made.is_dir():
        with faults(folder):
            shutil.rmtree(folder, ignore_errors=True)
            made.rename(folder)
            fsync_dir(folder.parent)


def _records(wanted: Wanted, say: Say) -> Prepared:
    """Read, split and encode records, and say what was found."""
    config, task = wanted.config, wanted.task
    if isinstance(wanted.data, str | Path):
        loaded = load_splits(Path(wanted.data), config.rows, config.seed, say, task.kind)
    else:
        loaded = load_rows(wanted.data, config.rows, config.seed, say, task.kind)
    known = sorted({k for e in loaded.splits["train"][:1] for k in e.fields if k != "completion"})
    template = make_template(task, config.template, wanted.template, loaded.columns, known)
    if template is not None:
        say(f"template: {template.name}")
    if set(loaded.labels) == set(wanted.labels):  # a classifier that goes on keeps the order of its head
        loaded = replace(loaded, labels=wanted.labels)
    wanted.look(loaded, template)
    found = prepare_records(loaded, task, template, wanted.tokenizer, config, wanted.max_length, say)
    if found.labels and len(found.class_counts) < 2:
        fix = "give records of another class, or another --rows.split"
        raise InputError(loaded.origin, "train holds records of one class only", ", ".join(found.class_counts), fix)
    return found


# --- folders ------------------------------------------------------------------------------------------------------


def write_prepared(wanted: Wanted, folder: Path, say: Say) -> dict[str, Any]:
    """Prepare data into a folder of its own (see docs/prepared.md) and return its description."""
    key = wanted.key([path for group in find_files(Path(str(wanted.data))).values() for path in group])
    made = folder.with_name(f"{TEMPORARY}{folder.name}")  # what is left of an interrupted one is in nobody's way
    with faults(folder):
        shutil.rmtree(made, ignore_errors=True)
        made.mkdir(parents=True)
    try:
        if wanted.task.layout == "records":
            _write(wanted, _records(wanted, say), made, key, [])
        else:
            _describe(wanted, prepare(wanted, made, made, say), made, key, [])
        adopt(made, folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return read_metadata(folder)


def _write(wanted: Wanted, made: Prepared, folder: Path, key: str, notes: list[str]) -> None:
    """Write the sets of records, and last of all what they are."""
    (folder / METADATA).unlink(missing_ok=True)
    start = 0
    for name, data in made.splits().items():
        places = made.places[start : start + len(data)]
        start += len(data)
        write_records(folder / name, key, ((data.get(i, 0), p) for i, p in enumerate(places)), {})
    _describe(wanted, made, folder, key, notes)


def _describe(wanted: Wanted, made: Prepared, folder: Path, key: str, notes: list[str]) -> None:
    files = [path for group in find_files(Path(str(wanted.data))).values() for path in group]
    write_metadata(
        folder,
        {
            "key": key,
            "task": wanted.task.name,
            "layout": wanted.task.layout,
            "tokenizer": wanted.tokenizer.digest,
            "vocab_size": wanted.tokenizer.vocab_size,
            "template": made.template.to_dict() if made.template else None,
            "max_length": wanted.max_length,
            "settings": to_dict(wanted.config.rows) | {"seed": wanted.config.seed},
            "data": describe_files(files),
            "digest": made.digest,
            "counts": made.counts,
            "labels": list(made.labels),
            "class_counts": made.class_counts,
            "notes": notes,
            "splits": {name: _summary(wanted, data, folder / name, key) for name, data in made.splits().items()},
        },
    )


def _summary(wanted: Wanted, data: Sequences, folder: Path, key: str) -> dict[str, Any]:
    """How many sequences a written set has, how long they are, and the hashes of its files."""
    if isinstance(data, Chunks):
        return data.corpus.summary()
    written = Records.open(folder, key, wanted.tokenizer.vocab_size)
    assert written is not None
    return written.summary()


def _cached(wanted: Wanted, folder: Path, key: str, say: Say) -> Prepared | None:
    """The data in a run's cache if it is the asked one and still what was written; None to prepare it anew."""
    if not (folder / METADATA).is_file():
        return None
    try:
        content = read_metadata(folder)
        if content["key"] != key:
            say(f"tokens: the cache in {folder} is of other data, settings or tokenizer; it is built anew")
            return None
        found = _open(wanted, folder, content)
    except InputError as error:
        say(f"warning: {error.line()}; it is built anew")
        return None
    for line in content["notes"]:
        say(line)
    say(f"tokens: read from the cache in {folder}")
    return found


def _given(wanted: Wanted, folder: Path, say: Say) -> Prepared:
    """The data of a folder of `finetwo prepare`; InputError where it was prepared for something else."""
    content = read_metadata(folder)
    again = "prepare the data again with these settings, or leave the setting out"
    if content["tokenizer"] != wanted.tokenizer.digest:
        fix = "prepare the data again with --model or --tokenizer as in training"
        raise InputError(str(folder), "prepared with another tokenizer than this model's", None, fix)
    if content["task"] != wanted.task.name:
        raise InputError(str(folder), f"prepared for the task {content['task']}", wanted.task.name, again)
    if wanted.task.layout == "records" and content["max_length"] > wanted.max_length:
        raise InputError(str(folder), f"prepared with max_length {content['max_length']}", wanted.max_length, again)
    unset = to_dict(TrainConfig().rows)
    asked = {name for name, value in to_dict(wanted.config.rows).items() if value != unset[name]}
    if asked or wanted.config.template is not None:
        name = f"--rows.{sorted(asked)[0]}" if asked else "--template"
        fix = "leave it out, or prepare the data again with it"
        raise InputError(name, f"has no effect on prepared data ({folder})", None, fix)
    if wanted.task.layout == "stream":
        return _given_stream(wanted, folder, content, say)
    found = _open(wanted, folder, content)
    sizes = ", ".join(f"{name} {len(data):,}" for name, data in found.splits().items())
    say(f"prepared data: {folder}: {sizes}")
    return found


def _given_stream(wanted: Wanted, folder: Path, content: Mapping[str, Any], say: Say) -> Prepared:
    """The corpora of a prepared folder, cut into chunks of the length that is wanted now."""
    corpora: dict[str, Corpus] = {}
    for name in SPLITS:
        if name in content["splits"]:
            corpus = Corpus.open(folder / name)
            if corpus is None or corpus.summary() != content["splits"][name]:
                fix = f"delete the folder {folder} and prepare it again"
                raise InputError(str(folder / name), "prepared data: missing, or not of this folder", None, fix)
            corpus.verify(wanted.tokenizer.vocab_size)
            corpora[name] = corpus
    say(f"prepared data: {folder}")
    return chunked(corpora, wanted.task, wanted.config, wanted.max_length, say)


def _open(wanted: Wanted, folder: Path, content: Mapping[str, Any]) -> Prepared:
    """The sets in a folder that is described by `content`."""
    sets: dict[str, Records | None] = {}
    for name in SPLITS:
        if name in content["splits"]:
            sets[name] = Records.open(folder / name, content["key"], wanted.tokenizer.vocab_size)
            if sets[name] is None:
                fix = f"delete the folder {folder} and prepare it again"
                raise InputError(str(folder / name), "prepared data: missing, or not of this folder", None, fix)
    train = sets["train"]
    assert train is not None
    template = content["template"]
    return Prepared(
        wanted.task,
        None if template is None else Template.from_dict(template, str(folder)),
        train,
        sets.get("validation"),
        sets.get("test"),
        content["digest"],
        dict(content["counts"]),
        train.place,
        labels=tuple(content["labels"]),
        class_counts=dict(content["class_counts"]),
    )
