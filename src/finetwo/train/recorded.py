"""Reading what a run recorded: its receipt, what of it differs from another, and how its model is to be asked.

It knows files and no run in progress. Its one invariant: a receipt that is read has every part that a reader takes for
granted, or it is refused in one line.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetwo.core.errors import InputError
from finetwo.core.files import read_json
from finetwo.data.sealed import METADATA, read_metadata
from finetwo.store.run import CACHE, is_run_folder
from finetwo.text.template import Template
from finetwo.train.receipt import MARK, RECEIPT

ENVIRONMENT_KEYS = ("code", "python", "packages", "hardware")
"""What of a receipt may explain that the same job gave other numbers."""
_NONE = type(None)
_PARTS: dict[str, tuple[type, ...]] = {
    "data": (dict,),
    "data.path": (str, _NONE),
    "data.digest": (str,),
    "data.files": (list,),
    "tokenizer": (str,),
    "template": (dict,),
    "template.digest": (str, _NONE),
    "template.content": (dict, _NONE),
    "base": (dict,),
    "base.name": (str,),
    "base.sha256": (str,),
    "base.adapter": (str, _NONE),
    "seed": (int,),
    "total_steps": (int,),
    "config": (dict,),
    "code": (dict,),
    "packages": (dict,),
    "hardware": (dict,),
    "finished": (bool,),
    "failure": (dict, _NONE),
    "losses": (dict,),
    "losses.steps": (int,),
    "losses.links": (list,),
    "weights": (dict, _NONE),
}


def read_receipt(path: Path) -> dict[str, Any]:
    """Return the receipt in a file, or in a run folder; InputError where there is none, or it cannot be one."""
    path = path / RECEIPT if path.is_dir() else path
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != 1:
        got = content.get("format") if isinstance(content, dict) else type(content).__name__
        raise InputError(str(path), "is not a receipt of a format known here", got, "give the receipt.json of a run")
    wrong = next((name for name, kinds in _PARTS.items() if not _is_part(content, name, kinds)), "") or _odd(content)
    if wrong:
        what, fix = f"a damaged receipt: {wrong} is not what it must be", "take the receipt.json as the run wrote it"
        raise InputError(str(path), what, None, fix)
    return content


def _is_part(content: Mapping[str, Any], name: str, kinds: tuple[type, ...]) -> bool:
    outer, _, inner = name.partition(".")
    if inner and not isinstance(content.get(outer), dict):
        return False
    there = content[outer] if inner else content
    last = inner or outer
    value = there.get(last, ...)
    return isinstance(value, kinds) and (isinstance(value, bool) is (bool in kinds))


def _odd(content: Mapping[str, Any]) -> str:
    """The first part whose inside cannot be: links that do not make the steps, files or ends without their fields."""

    def texts(value: Any, *names: str) -> bool:
        return isinstance(value, dict) and all(isinstance(value.get(name), str) for name in names)

    links, steps = content["losses"]["links"], content["losses"]["steps"]
    if not all(texts(link, "sha256", "marks") and isinstance(link.get("step"), int) for link in links):
        return "losses.links"
    if steps < 0 or sum(len(link["marks"]) for link in links) != MARK * steps:
        return "losses.steps"
    for name, parts in (("failure", ("type", "line")), ("weights", ("file", "sha256"))):
        if content[name] is not None and not texts(content[name], *parts):
            return name
    return "" if all(texts(file, "name", "sha256") for file in content["data"]["files"]) else "data.files"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], names: Sequence[str] = ENVIRONMENT_KEYS) -> list[str]:
    """What differs between two receipts, one text each: 'packages.torch: 2.12 then, 2.13 now'."""
    return [found for name in names for found in _compare(old.get(name), new.get(name), name)]


def _compare(old: Any, new: Any, path: str) -> Iterator[str]:
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for key in sorted({*old, *new}):
            yield from _compare(old.get(key), new.get(key), f"{path}.{key}")
    elif old != new:
        yield f"{path}: {_short(old)} then, {_short(new)} now"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:12] if len(text) == 64 and " " not in text else text


@dataclass(frozen=True)
class Recorded:
    """What a run recorded of how its model is to be asked."""

    run: Path
    template: Template | None
    tokenizer: str
    """Digest of vocabulary and merges."""


def recorded_of(folder: Path) -> Recorded | None:
    """What the run that wrote the model in `folder` recorded, by its receipt or its prepared data; None without one."""
    run = folder.resolve().parent
    if not is_run_folder(run):
        return None
    if (run / RECEIPT).is_file():
        receipt = read_receipt(run)
        content, tokenizer = receipt["template"].get("content"), receipt.get("tokenizer")
    elif (run / CACHE / METADATA).is_file():
        made = read_metadata(run / CACHE)
        content, tokenizer = made["template"], made["tokenizer"]
    else:
        return None
    return Recorded(run, None if content is None else Template.from_dict(content, str(run)), str(tokenizer))
