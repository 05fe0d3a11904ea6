"""Classification: a text is read to its last token, which carries the class; no end token is appended."""

from __future__ import annotations

from finetwo.data.sequences import Segment
from finetwo.tasks.task import Fields, Task, register
from finetwo.text.template import Template


def write(fields: Fields, template: Template | None) -> list[Segment]:
    """The text as it stands."""
    return [Segment(fields["text"], learn=False)]


CLASSIFY = register(
    Task(
        name="classify",
        kind="classify",
        layout="records",
        write=write,
        about="tell the class of a text: loss on the class at its last token",
        head="classes",
    )
)
