"""JSON that carries its own hash, and metadata.json of prepared data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from finetwo.core.errors import InputError
from finetwo.core.version import __version__
from finetwo.data.sealed import describe_files, read_metadata, read_sealed, write_metadata, write_sealed

CONTENT: dict[str, Any] = {
    "key": "k" * 64,
    "task": "instruct",
    "tokenizer": "t" * 64,
    "vocab_size": 50257,
    "template": {"name": "alpaca", "prompt": "{prompt}\n"},
    "max_length": 1024,
    "settings": {"seed": 0, "split": None},
    "data": [{"name": "d.json", "bytes": 3, "sha256": "x"}],
    "splits": {"train": {"records": 2, "lengths": {"mean": 1.5}}},
    "more": "é",
}


def test_what_is_sealed_comes_back(tmp_path: Path) -> None:
    write_sealed(tmp_path / "a.json", CONTENT)
    assert read_sealed(tmp_path / "a.json") == CONTENT


def test_any_changed_byte_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_sealed(path, {"count": 12, "name": "lamp", "list": [1, 2]})
    data = path.read_bytes()
    for at in range(len(data)):
        if chr(data[at]).isalnum():
            path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
            with pytest.raises(InputError, match=r"a\.json"):
                read_sealed(path)
    for other in (b"", b"[]", b"{}", b'{"sha256": 3}', data[:-9]):
        path.write_bytes(other)
        with pytest.raises(InputError, match=r"a\.json"):
            read_sealed(path)


def test_layout_alone_may_change(tmp_path: Path) -> None:
    """The hash is of the content, so a file that was indented anew is still the same."""
    path = tmp_path / "a.json"
    write_sealed(path, CONTENT)
    path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    assert read_sealed(path) == CONTENT


def test_metadata_comes_back_with_format_and_version(tmp_path: Path) -> None:
    write_metadata(tmp_path, CONTENT)
    assert read_metadata(tmp_path) == CONTENT | {"format": 1, "finetwo": __version__}
    write_metadata(tmp_path, CONTENT | {"template": None})
    assert read_metadata(tmp_path)["template"] is None


def test_metadata_that_is_not_there_or_of_another_format(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a folder of prepared data.*Fix: finetwo prepare DATA --out"):
        read_metadata(tmp_path)
    write_sealed(tmp_path / "metadata.json", CONTENT | {"format": 9, "finetwo": "9.0"})
    with pytest.raises(InputError, match=r"written by FineTwo 9\.0 in a format unknown to this one \(got 9\)"):
        read_metadata(tmp_path)


@pytest.mark.parametrize("name", [n for n in CONTENT if n != "more"])
def test_metadata_with_a_field_missing_or_of_another_type(tmp_path: Path, name: str) -> None:
    without = {n: v for n, v in CONTENT.items() if n != name}
    for content, told in ((without, f"'{name}' is missing"), (CONTENT | {name: 1.5}, f"'{name}' has the wrong type")):
        with pytest.raises(ValueError, match=told):
            write_metadata(tmp_path, content)
        write_sealed(tmp_path / "metadata.json", content | {"format": 1, "finetwo": "0"})
        with pytest.raises(InputError, match=rf"metadata\.json: the field {told}.*Fix: prepare it again"):
            read_metadata(tmp_path)


def test_data_files_are_described(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"abc")
    digest = hashlib.sha256(b"abc").hexdigest()
    assert describe_files([tmp_path / "a.txt"]) == [{"name": "a.txt", "bytes": 3, "sha256": digest}]
