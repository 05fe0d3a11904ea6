"""Entailment: a pair of texts, the end-of-text id between them, is read to its last token, which carries the class."""

from __future__ import annotations

from finetwo.data.sequences import Segment
from finetwo.tasks.task import Fields, Task, register
from finetwo.text.template import Template


def write(fields: Fields, template: Template | None) -> list[Segment]:
    """The first text closed by end-of-text, which separates and is read like any token; then the second."""
    return [Segment(fields["first"], learn=False, end=True), Segment(fields["second"], learn=False)]


ENTAIL = register(
    Task(
        name="entail",
        kind="entail",
        layout="records",
        write=write,
        about="tell how the second text follows from the first: loss on the class at the last token",
        head="classes",
    )
)
