"""Instruction tuning: the prompt is read, the answer and its end are learned."""

from __future__ import annotations

from finetwo.data.sequences import Segment
from finetwo.tasks.task import Fields, Task, register
from finetwo.text.template import Template


def write(fields: Fields, template: Template) -> list[Segment]:
    """The template's prompt, then the answer closed by end-of-text."""
    return [Segment(template.prompt(fields), learn=False), Segment(fields["completion"], learn=True, end=True)]


INSTRUCT = register(
    Task(
        "instruct",
        "instruct",
        "records",
        False,
        "alpaca",
        write,
        "answer instructions: loss on the answer and its end only",
    )
)
