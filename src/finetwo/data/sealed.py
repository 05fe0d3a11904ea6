"""Folders of prepared data: JSON files that carry their own hash, `metadata.json` among them.

It knows folders, JSON and hashes, and nothing of tokens or tasks. Its one invariant: what is read is what was written,
down to the last digit, or it is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from finetwo.core.errors import InputError
from finetwo.core.files import faults, json_bytes, read_json, sha256_file, write_json
from finetwo.core.version import __version__

METADATA = "metadata.json"
_FORMAT = 1
_SEAL = "sha256"
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "key": str,
    "task": str,
    "tokenizer": str,
    "vocab_size": int,
    "template": (dict, str, type(None)),
    "max_length": int,
    "data": list,
    "settings": dict,
    "splits": dict,
}


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Make `folder` to be filled in the block; where the block fails and leaves it empty, remove it again."""
    with faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with suppress(OSError):
            folder.rmdir()
        raise


def _hash(content: Mapping[str, object]) -> str:
    return hashlib.sha256(json_bytes(dict(content))).hexdigest()


def write_sealed(path: Path, content: Mapping[str, object]) -> None:
    """Write `content` as JSON with the SHA-256 of all the rest as its field `sha256`, atomically."""
    write_json(path, {**content, _SEAL: _hash(content)})


def read_sealed(path: Path) -> dict[str, Any]:
    """Return what `write_sealed` wrote; InputError when the file is anything else."""
    content = read_json(path)
    again = f"delete the folder {path.parent} and prepare it again"
    if not isinstance(content, dict) or _SEAL not in content:
        raise InputError(str(path), "prepared data: not a description of ours", fix=again)
    seal = content.pop(_SEAL)
    if seal != _hash(content):
        raise InputError(str(path), "prepared data: changed since it was written (its own hash differs)", fix=again)
    return content


def describe_files(paths: Iterable[Path]) -> list[dict[str, object]]:
    """Return name, size and SHA-256 of each data file, for the field `data`."""
    return [{"name": p.name, "bytes": p.stat().st_size, "sha256": sha256_file(p)} for p in paths]


def write_metadata(folder: Path, content: Mapping[str, object]) -> None:
    """Write `folder`/metadata.json, last of all: its being there says that the folder is whole.

    `content` holds `key`, `task`, `tokenizer` (its digest), `vocab_size`, `template`, `max_length`, `settings`, `data`
    and `splits`, and may hold more; the format and FineTwo's version are added. See docs/prepared.md.
    """
    fault = _wrong_field(content)
    if fault:
        raise ValueError(f"metadata: {fault}")
    write_sealed(folder / METADATA, {**content, "format": _FORMAT, "finetwo": __version__})


def is_prepared(data: object) -> bool:
    """Whether `data` is a folder that `finetwo prepare` wrote; one that may not be looked into is none."""
    try:
        return isinstance(data, str | Path) and (Path(data) / METADATA).is_file()
    except PermissionError:
        return False


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return the content of `folder`/metadata.json.

    Raises:
        InputError: no prepared data, of a format this version does not know, or changed since it was written.
    """
    path = folder / METADATA
    if not path.is_file():
        fix = f"finetwo prepare DATA --out {folder}"
        raise InputError(str(folder), f"not a folder of prepared data, or not whole: no {METADATA}", fix=fix)
    content = read_sealed(path)
    if content.get("format") != _FORMAT:
        what, fix = f"written by FineTwo {content.get('finetwo')} in a format unknown to this one", "prepare it again"
        raise InputError(str(path), what, content.get("format"), fix)
    fault = _wrong_field(content)
    if fault:
        raise InputError(str(path), fault, fix="prepare it again")
    return content


def _wrong_field(content: Mapping[str, object]) -> str:
    """Name the first field that is missing or of another type; '' when none is."""
    for name, kind in _FIELDS.items():
        if name not in content:
            return f"the field '{name}' is missing"
        if not isinstance(content[name], kind):
            return f"the field '{name}' has the wrong type"
    return ""
