"""Prepared records on disk: what comes out is what went in, and anything else is refused (rows 56 and 57)."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.standins.sequences import encoded

from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.data import records as module
from finetwo.data.loader import InMemory, Loader
from finetwo.data.records import Place, Records, write_records
from finetwo.data.sealed import write_sealed
from finetwo.data.sequences import IGNORE, Segment, Sequence
from finetwo.text.tokenizer import Tokenizer

VOCAB = 400
FILES = ["d.json", "/data/ü b.jsonl", "data"]
EXTRA = {"template": "{prompt}\n", "labels": ["no", "yes"], "counts": {"too_long": 3}, "share": 0.1, "none": None}


def sequence(tokens: list[int], learn: list[bool], last: int | None = None) -> Sequence:
    """Tokens whose next ones are learned where `learn` says so; `last` stands on the last one."""
    row = np.asarray(tokens, dtype=np.int32)
    targets = np.where(learn, np.append(row[1:], 7), IGNORE).astype(np.int32)
    if last is not None:
        targets[-1] = last
    return Sequence(row, targets)


def made(count: int, seed: int = 0) -> list[tuple[Sequence, Place]]:
    rng = np.random.default_rng(seed)
    items: list[tuple[Sequence, Place]] = []
    for i in range(count):
        size = int(rng.integers(1, 40))
        tokens, learn = rng.integers(0, VOCAB, size).tolist(), (rng.random(size) < 0.5).tolist()
        items.append((sequence(tokens, learn, i % 3 or None), (FILES[i % 3], 0 if i % 3 == 2 else 3 * i + 1, i + 1)))
    return items


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_records(tmp_path / "r", "key", iter(made(50)), EXTRA)
    return tmp_path / "r"


def opened(folder: Path, key: str = "key", vocab: int = VOCAB) -> Records:
    found = Records.open(folder, key, vocab)
    assert found is not None
    return found


# --- there and back -----------------------------------------------------------------------------------------------

SEQUENCES = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, VOCAB - 1), st.booleans()), min_size=1, max_size=9),
        st.one_of(st.none(), st.integers(0, 10**6), st.just(IGNORE)),
    ),
    max_size=12,
)


@given(content=SEQUENCES, block=st.integers(1, 12))
@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_records_come_back_as_they_went_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: list[Any], block: int
) -> None:
    monkeypatch.setattr(module, "_BLOCK", block)
    sequences = [sequence([t for t, _ in row], [learn for _, learn in row], last) for row, last in content]
    places = [(FILES[i % 2], i + 5, i + 1) for i in range(len(sequences))]
    write_records(tmp_path / "r", "key", zip(sequences, places, strict=True), {})
    found = opened(tmp_path / "r")
    assert len(found) == len(sequences)
    for i, wanted in enumerate(sequences):
        got = found.get(i, epoch=i)
        assert got.tokens.tolist() == wanted.tokens.tolist() and got.targets.tolist() == wanted.targets.tolist()
        assert got.tokens.dtype == got.targets.dtype == np.int32
        assert found.place(i) == f"{FILES[i % 2]}:{i + 5}: record {i + 1}"
    assert found.counts == {
        "records": len(sequences),
        "tokens": sum(map(len, sequences)),
        "learned": sum(s.learned for s in sequences),
    }


def test_what_was_written_with_them_comes_back(folder: Path) -> None:
    found = opened(folder)
    assert found.extra == EXTRA
    assert found.place(0) == "d.json:1: record 1" and found.place(2) == "data[2]", "from memory: by index"
    assert sorted(p.name for p in folder.iterdir()) == [
        "offsets.bin", "places.bin", "records.json", "targets.bin", "tokens.bin"
    ]  # fmt: skip
    for name, digest in found.hashes.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_encoded_records_are_read_by_the_loader(tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    """What a training step sees from disk is what it saw from memory."""
    texts = [("The lamp", "went out at nine."), ("Who", "answered?"), ("Count the steps to the", "harbour")] * 4
    rows = [[Segment(a, learn=False), Segment(b, learn=True, end=True)] for a, b in texts]
    wanted = [encoded(tiny_tokenizer, row, 12)[0] for row in rows]
    ahead = tiny_tokenizer.ahead(s.text for row in rows for s in row)
    items = [(encoded(ahead, row, 12)[0], ("d", i + 1, i + 1)) for i, row in enumerate(rows)]
    write_records(tmp_path, "k", ((s, p) for s, p in items if s is not None), {})
    from_disk = Loader(opened(tmp_path, "k", tiny_tokenizer.vocab_size), 2, 2, None, 0)
    from_memory = Loader(InMemory([s for s in wanted if s is not None]), 2, 2, None, 0)
    for step in range(2 * from_disk.steps_per_epoch):
        for ours, theirs in zip(from_disk.batches(step), from_memory.batches(step), strict=True):
            assert (ours.tokens == theirs.tokens).all() and (ours.targets == theirs.targets).all()


def test_equal_records_give_equal_bytes(folder: Path, tmp_path: Path) -> None:
    write_records(tmp_path / "again", "key", made(50), EXTRA)
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes()


def test_no_records_are_records_too(tmp_path: Path) -> None:
    write_records(tmp_path, "key", [], {})
    found = opened(tmp_path)
    assert len(found) == 0 and found.summary()["lengths"] == {}


def test_lengths_are_summed_up(tmp_path: Path) -> None:
    items = [(sequence([1] * n, [True] * n), ("d", n, n)) for n in range(1, 101)]
    write_records(tmp_path, "key", items, {})
    summary: Any = opened(tmp_path).summary()
    assert summary["records"] == 100 and summary["tokens"] == summary["learned"] == 5050
    lengths = {"min": 1, "p5": 5, "p25": 25, "p50": 50, "p75": 75, "p95": 95, "p99": 99, "max": 100, "mean": 50.5}
    assert summary["lengths"] == lengths
    assert summary == json.loads(json.dumps(summary))


def test_the_example_of_the_documentation_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "prepared.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout == "1 [-100   13   14] data.jsonl:1: record 1 {'note': 'mine'}\n", done.stderr


# --- another key, and what is not whole ---------------------------------------------------------------------------


def test_another_key_or_format_means_prepare_again(folder: Path, tmp_path: Path) -> None:
    """Bad input 56: what is there is of no use, and it is the caller who says so."""
    assert Records.open(folder, "other", VOCAB) is None
    assert Records.open(tmp_path / "nowhere", "key", VOCAB) is None
    content = json.loads((folder / "records.json").read_text())
    del content["sha256"]
    write_sealed(folder / "records.json", content | {"format": 2})
    assert Records.open(folder, "key", VOCAB) is None


def test_a_failure_while_writing_leaves_the_old_records(folder: Path) -> None:
    def items() -> Iterator[tuple[Sequence, Place]]:
        yield from made(3)
        raise InputError("d.json:4", "ends badly")

    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(InputError, match="ends badly"):
        write_records(folder, "new", items(), {})
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_failure_of_the_first_records_leaves_no_folder(tmp_path: Path) -> None:
    def items() -> Iterator[tuple[Sequence, Place]]:
        yield from made(3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(tmp_path / "r", "new", items(), {})
    assert not (tmp_path / "r").exists()


def test_a_crash_before_the_end_leaves_nothing_that_looks_whole(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "write_sealed", crash)
    with pytest.raises(KeyboardInterrupt):
        write_records(folder, "key", made(3), {})
    assert Records.open(folder, "key", VOCAB) is None


def test_a_sequence_that_is_none_is_a_bug(tmp_path: Path) -> None:
    empty = Sequence(np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int32))
    uneven = Sequence(np.zeros(3, dtype=np.int32), np.zeros(2, dtype=np.int32))
    for odd in (empty, uneven):
        with pytest.raises(ValueError, match=r"d:2: record 1: \d tokens"):
            write_records(tmp_path, "k", [(odd, ("d", 2, 1))], {})


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises((EnvironmentFault, InputError), match="file"):
        write_records(tmp_path / "file" / "r", "k", made(1), {})


# --- damage -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tokens", "targets", "offsets", "places"])
@pytest.mark.parametrize("damage", ["short", "long", "gone", "flipped"])
def test_a_damaged_file_is_named(folder: Path, name: str, damage: str) -> None:
    """Bad input 57."""
    path = folder / f"{name}.bin"
    data = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        path.write_bytes(data[:9] + bytes([data[9] ^ 4]) + data[10:])
    else:
        path.write_bytes(data[:-1] if damage == "short" else data + b"\0")
    told = {"gone": "is missing", "flipped": "SHA-256"}.get(damage, f"must have {len(data):,} bytes")
    with pytest.raises(InputError, match=rf"{name}\.bin: prepared data: .*{told}.*Fix: delete the folder .*/r "):
        Records.open(folder, "key", VOCAB)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"key": "key"', '"key": "kez"'),
        ('"records": 50', '"records": 49'),
        ('"template": "{prompt}', '"template": "{prompt} '),
        ("data/", "date/"),
        ("{", "not json {"),
    ],
)
def test_a_changed_description_is_named(folder: Path, old: str, new: str) -> None:
    """A template or a count that changed would train on something else, in silence."""
    path = folder / "records.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(InputError, match=r"records\.json"):
        Records.open(folder, "key", VOCAB)


def resealed(folder: Path, **arrays: Any) -> None:
    """Write other numbers under hashes that fit: what only the check of the numbers can find."""
    content = json.loads((folder / "records.json").read_text())
    del content["sha256"]
    content |= arrays.pop("content", {})
    for name, numbers in arrays.items():
        raw = numbers.tobytes()
        (folder / f"{name}.bin").write_bytes(raw)
        content["sizes"][name] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    write_sealed(folder / "records.json", content)


def test_a_token_outside_the_vocabulary_is_named(folder: Path) -> None:
    """Bad input 57: with the place and the record."""
    found = opened(folder)
    at = int(found.offsets[7]) + 1
    whole = found.tokens.copy()
    for value in (VOCAB, -1):
        tokens = whole.copy()
        tokens[at] = value
        resealed(folder, tokens=tokens)
        told = rf"tokens\.bin: .*number {at:,} \(.*:22: record 8\) is outside the vocabulary of 400 \(got {value}\)"
        with pytest.raises(InputError, match=told):
            Records.open(folder, "key", VOCAB)


def test_a_target_that_is_none_is_named(folder: Path) -> None:
    found = opened(folder)
    first, last, whole = int(found.offsets[7]), int(found.offsets[8]) - 1, found.targets.copy()
    for at, value in ((first, VOCAB), (first, -1), (last, -1), (last, -101)):
        targets = whole.copy()
        targets[at] = value
        resealed(folder, targets=targets)
        with pytest.raises(InputError, match=rf"targets\.bin: .*number {at:,} \(.*record 8\).*got {value}"):
            Records.open(folder, "key", VOCAB)
    targets = whole.copy()
    targets[last] = 10**6  # a class: as many as you like
    resealed(folder, targets=targets)
    assert opened(folder).get(7, 0).targets[-1] == 10**6


def test_files_that_do_not_fit_together_are_named(folder: Path) -> None:
    found = opened(folder)
    offsets, places = found.offsets.copy(), found.places.copy()
    swapped = offsets.copy()
    swapped[[3, 4]] = swapped[[4, 3]]
    lost = places.copy()
    lost[0] = 3
    for arrays, told in (
        ({"offsets": offsets[:-1]}, "number of records"),
        ({"offsets": swapped}, "number of records"),
        ({"offsets": offsets + 1}, "number of tokens"),
        ({"offsets": offsets, "places": lost}, "names a file that is not listed"),
        ({"places": places[:-1]}, "not a description of ours"),
        ({"places": places, "content": {"sizes": {}}}, "not a description of ours"),
    ):
        resealed(folder, **arrays)
        with pytest.raises(InputError, match=told):
            Records.open(folder, "key", VOCAB)
