"""What a task is: a value that names how rows become segments and whether weights start fresh.

It knows no tensors and no files. Its one invariant: `prompt` is the text of every segment that is not learned, so
training and serving read the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from finetwo.core.errors import InputError
from finetwo.data.sequences import Segment
from finetwo.text.template import Template

Fields = Mapping[str, str]
Write = Callable[[Fields, Template], list[Segment]]


@dataclass(frozen=True)
class Task:
    """One kind of job."""

    name: str
    kind: Literal["instruct", "text"]
    """Which columns it reads: prompt, input and completion, or text."""
    layout: Literal["records", "stream"]
    """records: each row is a sequence; stream: rows are documents of one stream cut into chunks."""
    fresh: bool
    """Whether the network starts from fresh weights."""
    template: str | None
    """Name of the default template; None where there is no prompt."""
    write: Write
    """How the fields of a row become segments."""
    about: str


_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Make `task` known under its name."""
    _TASKS[task.name] = task
    return task


def find_task(name: str) -> Task:
    """Return the task called `name`; InputError lists the known ones."""
    if name not in _TASKS:
        raise InputError("--task", "unknown task", name, f"use {', '.join(sorted(_TASKS))}")
    return _TASKS[name]


def all_tasks() -> list[Task]:
    """Every task, by name."""
    return [_TASKS[n] for n in sorted(_TASKS)]
