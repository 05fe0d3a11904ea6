"""Plain text: `style` goes on from a model's weights, `pretrain` starts from fresh ones; every token is learned."""

from __future__ import annotations

from finetwo.data.sequences import Segment
from finetwo.tasks.task import Fields, Task, register
from finetwo.text.template import Template


def write(fields: Fields, template: Template | None) -> list[Segment]:
    """The whole text closed by end-of-text."""
    return [Segment(fields["text"], learn=True, end=True)]


STYLE = register(
    Task(
        name="style",
        kind="text",
        layout="stream",
        write=write,
        about="write like the given texts: loss on every token",
    )
)
PRETRAIN = register(
    Task(
        name="pretrain",
        kind="text",
        layout="stream",
        write=write,
        about="train a network from fresh weights on plain text",
        fresh=True,
    )
)
