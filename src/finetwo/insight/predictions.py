"""The file of predictions: one JSON object a line for each prompt, with reference, answer and, once judged, score.

It knows answers and no models. Its one invariant: a file of predictions is new, and complete or not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from finetwo.core.errors import InputError
from finetwo.insight.metric import Answered


def check_new(path: Path) -> None:
    """Raise InputError when there is something at `path` already, or no folder to put it in."""
    if path.exists() or path.is_symlink():
        raise InputError("--predictions", "exists already", str(path), "give a new name, or remove it")
    if not path.parent.is_dir():
        raise InputError("--predictions", "its folder is not there", str(path), f"make the folder {path.parent}")


def written(answers: Iterable[Answered], file: BinaryIO) -> Iterator[Answered]:
    """Write each answer to `file` and pass it on."""
    for answered in answers:
        file.write(_line(answered.to_dict()))
        yield answered


def write_judged(judged: Iterable[tuple[Answered, int | None]], file: BinaryIO) -> Iterator[int]:
    """Write each answer with its score (null where the judge gave none); yield how many there are so far."""
    for count, (answered, score) in enumerate(judged, 1):
        file.write(_line(answered.to_dict() | {"judge": score}))
        yield count


def read_predictions(path: Path) -> Iterator[Answered]:
    """Yield the answers that `written` wrote."""
    with path.open("rb") as lines:
        for line in lines:
            yield Answered(**({"input": ""} | json.loads(line)))


def _line(content: dict[str, object]) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode("utf-8") + b"\n"
