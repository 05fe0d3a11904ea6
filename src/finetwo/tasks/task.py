"""What a task is: a value that names how rows become segments, which head learns, and whether weights start fresh.

It knows no tensors and no files; LoRA, full and head-only tuning are configuration and no part of it. Its one
invariant: `prompt` is the text of every segment that is not learned, so training and serving read the same prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Literal

from finetwo.core.errors import InputError
from finetwo.data.columns import Kind
from finetwo.data.sequences import Segment
from finetwo.text.template import Template

Fields = Mapping[str, str]
Write = Callable[[Fields, Template | None], list[Segment]]


@dataclass(frozen=True)
class Task:
    """One kind of job."""

    name: str
    kind: Kind
    """Which columns it reads: a prompt and a completion (or a conversation), a text, or texts with a class."""
    layout: Literal["records", "stream"]
    """records: each row is a sequence; stream: rows are documents of one stream cut into chunks."""
    write: Write
    """How the fields of a row become segments; the template is None for a task without one."""
    about: str
    template: str | None = None
    """Name of the default template; None where there is no prompt."""
    head: Literal["language", "classes"] = "language"
    """language: learned segments are predicted token by token; classes: the last token carries the class."""
    fresh: bool = False
    """Whether the network starts from fresh weights."""


_TASKS: dict[str, Task] = {}


def register(task: Task) -> Task:
    """Make `task` known under its name."""
    _TASKS[task.name] = task
    return task


def find_task(name: str) -> Task:
    """Return the task called `name`, also one of the entry-point group `finetwo.tasks`; InputError lists the known."""
    if name not in _TASKS:
        for entry in entry_points(group="finetwo.tasks"):
            if entry.name == name:
                entry.load()  # importing its module registers it
    if name not in _TASKS:
        raise InputError("--task", "unknown task", name, f"use auto, {', '.join(sorted(_TASKS))}")
    return _TASKS[name]


def all_tasks() -> list[Task]:
    """Every task, by name."""
    return [_TASKS[n] for n in sorted(_TASKS)]
