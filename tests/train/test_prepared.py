"""Data prepared once: the cache of a run, the folders of `finetwo prepare`, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.train.support import digest, losses, quick, records, snapshot, write_jsonl

from finetwo.app.cli import main
from finetwo.core.errors import InputError
from finetwo.data.sealed import read_metadata

SETTINGS: dict[str, Any] = {"max_steps": 6, "eval_every": "3"}


def prepared(base: Path, data: Path, out: Path, *words: str) -> Path:
    """A folder made by the command line."""
    assert main(["prepare", str(data), "--model", str(base), "--out", str(out), "--template", "plain", *words]) == 0
    return out


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_jsonl(tmp_path / "data.jsonl", records(60))


def test_a_second_start_reads_the_cache_and_gives_the_same_run(base: Path, data: Path, tmp_path: Path) -> None:
    said: list[str] = []
    quick(str(data), base, tmp_path / "a", **SETTINGS, say=said.append)
    assert not any("read from the cache" in line for line in said)
    first = [line for line in said if line.startswith(("columns:", "train:", "template:"))]
    again: list[str] = []
    quick(str(data), base, tmp_path / "a", **SETTINGS, resume="never", say=again.append)
    assert any("tokens: read from the cache" in line for line in again)
    assert [line for line in again if line.startswith(("columns:", "train:", "template:"))] == first
    assert losses(tmp_path / "a") == losses(tmp_path / "a" / "previous-1")


@pytest.mark.parametrize("change", ["data", "template", "max_length"])
def test_the_cache_is_built_anew_for_anything_else(base: Path, data: Path, tmp_path: Path, change: str) -> None:
    """Bad input 56."""
    quick(str(data), base, tmp_path / "a", **SETTINGS)
    settings = dict(SETTINGS)
    if change == "data":
        write_jsonl(data, records(60, seed=1))
    else:
        settings[change] = {"template": "dolly", "max_length": 40}[change]
    said: list[str] = []
    quick(str(data), base, tmp_path / "a", **settings, resume="never", say=said.append)
    assert any("is built anew" in line for line in said)
    quick(str(data), base, tmp_path / "b", **settings)
    assert digest(tmp_path / "a" / "final") == digest(tmp_path / "b" / "final")


def test_a_damaged_cache_is_named_and_built_anew(base: Path, data: Path, tmp_path: Path) -> None:
    """Bad input 57."""
    quick(str(data), base, tmp_path / "a", **SETTINGS)
    path = tmp_path / "a" / "tokens" / "train" / "tokens.bin"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(raw)
    said: list[str] = []
    quick(str(data), base, tmp_path / "a", **SETTINGS, resume="never", say=said.append)
    assert any(str(path) in line and "built anew" in line for line in said)
    assert losses(tmp_path / "a") == losses(tmp_path / "a" / "previous-1")


def test_a_prepared_folder_gives_the_same_run(base: Path, data: Path, tmp_path: Path) -> None:
    folder = prepared(base, data, tmp_path / "ready")
    content = read_metadata(folder)
    assert content["task"] == "instruct" and content["template"]["name"] == "plain"
    sizes = {name: split["records"] for name, split in content["splits"].items()}
    assert sum(sizes.values()) == 60 and sizes["train"] > 40
    assert content["data"][0]["name"] == "data.jsonl" and len(content["data"][0]["sha256"]) == 64
    quick(str(data), base, tmp_path / "a", **SETTINGS)
    quick(str(folder), base, tmp_path / "b", **SETTINGS, template=None)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")
    assert digest(tmp_path / "a" / "final") == digest(tmp_path / "b" / "final")


def test_a_prepared_corpus_gives_the_same_run(base: Path, tmp_path: Path) -> None:
    text = tmp_path / "story.txt"
    text.write_text("".join(f"The keeper counted {i} steps to the top, and nobody answered.\n" for i in range(200)))
    assert main(["prepare", str(text), "--model", str(base), "--out", str(tmp_path / "ready")]) == 0
    assert read_metadata(tmp_path / "ready")["task"] == "style"
    settings = SETTINGS | {"template": None, "max_length": 32}
    quick(str(text), base, tmp_path / "a", **settings)
    quick(str(tmp_path / "ready"), base, tmp_path / "b", **settings)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_a_prepared_folder_keeps_classes(base: Path, tmp_path: Path) -> None:
    rows = [{"text": f"the lamp is lit {i}", "label": "odd" if i % 2 else "even"} for i in range(60)]
    data = write_jsonl(tmp_path / "classes.jsonl", rows)
    assert main(["prepare", str(data), "--model", str(base), "--out", str(tmp_path / "ready")]) == 0
    settings = SETTINGS | {"template": None, "class_weights": "balanced"}
    report = quick(str(tmp_path / "ready"), base, tmp_path / "b", **settings)
    assert report.model.network.config.labels == ("even", "odd")
    quick(str(data), base, tmp_path / "a", **settings)
    assert digest(tmp_path / "a" / "final") == digest(tmp_path / "b" / "final")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"rows": {"limit": 3}}, "--rows.limit: has no effect on prepared data"),
        ({"template": "dolly"}, "--template: has no effect on prepared data"),
        ({"max_length": 8}, "prepared with max_length"),
        ({"task": "classify"}, "prepared for the task instruct"),
    ],
)
def test_what_prepared_data_refuses(
    base: Path, data: Path, tmp_path: Path, settings: dict[str, Any], told: str
) -> None:
    folder = prepared(base, data, tmp_path / "ready")
    with pytest.raises(InputError, match=told):
        quick(str(folder), base, tmp_path / "b", **(SETTINGS | {"template": None} | settings))
    assert not (tmp_path / "b").exists()


def test_prepared_with_another_tokenizer(base: Path, data: Path, tmp_path: Path) -> None:
    """Bad input 56."""
    folder = prepared(base, data, tmp_path / "ready")
    with pytest.raises(InputError, match="prepared with another tokenizer"):
        quick(str(folder), Path("tiny"), tmp_path / "b", **SETTINGS, template=None)


def test_prepare_touches_nothing_where_it_cannot_go_on(
    base: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "ready"
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 3, "completion": "b"}\n')
    assert main(["prepare", str(bad), "--model", str(base), "--out", str(out)]) == 2
    assert "bad.jsonl:2: record 2" in capfd.readouterr().err
    assert not out.exists() and not list(tmp_path.glob(".tmp-*"))
    prepared(base, data, out)
    before = snapshot(out)
    assert main(["prepare", str(data), "--model", str(base), "--out", str(out)]) == 2
    assert "exists and is not an empty folder" in capfd.readouterr().err
    assert snapshot(out) == before


def test_a_changed_description_is_refused(base: Path, data: Path, tmp_path: Path) -> None:
    folder = prepared(base, data, tmp_path / "ready")
    content = json.loads((folder / "metadata.json").read_text())
    content["max_length"] += 1
    (folder / "metadata.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="changed since it was written"):
        quick(str(folder), base, tmp_path / "b", **SETTINGS, template=None)
