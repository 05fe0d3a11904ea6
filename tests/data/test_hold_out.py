"""Whole works held out of a folder of texts."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.examples import load_splits
from finetwo.data.sharing import stream_splits


def novels(folder: Path, sizes: dict[str, int]) -> Path:
    folder.mkdir()
    for name, size in sizes.items():
        (folder / f"{name}.txt").write_text(f"{name}. " * size, encoding="utf-8")
    return folder


def sides(folder: Path, rows: RowsConfig, notes: list[str]) -> dict[str, set[str]]:
    """Which works stand where, told twice: whole and streamed."""
    loaded = load_splits(folder, rows, 0, notes.append, "text")
    whole = {n: {e.fields["text"].split(".")[0] for e in part} for n, part in loaded.splits.items() if part}
    streamed: dict[str, set[str]] = {}
    for part in stream_splits(folder, rows, 0, lambda _: None):
        streamed.setdefault(part.split, set()).add("".join(part.pieces).split(".")[0])
    assert streamed == whole
    return whole


def test_the_named_works_are_held_out(tmp_path: Path) -> None:
    folder = novels(tmp_path / "n", {"emma": 50, "persuasion": 50, "sense": 50})
    notes: list[str] = []
    found = sides(folder, RowsConfig(hold_out="*suas*"), notes)
    assert found == {"train": {"emma", "sense"}, "validation": {"persuasion"}}
    assert any("held out for validation: persuasion.txt" in note for note in notes)


def test_a_few_works_give_the_shortest(tmp_path: Path) -> None:
    notes: list[str] = []
    found = sides(novels(tmp_path / "n", {"a": 90, "b": 20, "c": 80}), RowsConfig(), notes)
    assert found == {"train": {"a", "c"}, "validation": {"b"}}
    assert any("b.txt (--rows.hold_out chooses)" in note for note in notes)


@pytest.mark.parametrize("sizes", [{"a": 50, "b": 50}, {"a": 50, "b": 40, "c": 45}])
def test_nothing_is_held_out_where_it_would_cost_too_much(tmp_path: Path, sizes: dict[str, int]) -> None:
    assert sides(novels(tmp_path / "n", sizes), RowsConfig(), []) == {"train": set(sizes)}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        (RowsConfig(hold_out="*nobody*"), r"matches no file .*emma.txt"),
        (RowsConfig(hold_out="*"), "matches every file"),
        (RowsConfig(hold_out="*emma*", split="train:0.9,validation:0.1"), "given otherwise"),
    ],
)
def test_what_cannot_be_held_out(tmp_path: Path, rows: RowsConfig, told: str) -> None:
    folder = novels(tmp_path / "n", {"emma": 50, "sense": 50, "pride": 50})
    with pytest.raises(InputError, match=told):
        load_splits(folder, rows, 0, lambda _: None, "text")
