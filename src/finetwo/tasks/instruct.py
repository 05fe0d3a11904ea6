"""Instruction tuning: the prompt is read, the answer and its end are learned; of a conversation, every answer."""

from __future__ import annotations

from finetwo.data.sequences import Segment
from finetwo.tasks.task import Fields, Task, register
from finetwo.text.template import Template, turns_from_json


def write(fields: Fields, template: Template | None) -> list[Segment]:
    """The template's prompt, then the answer closed by end-of-text; a conversation turn by turn."""
    assert template is not None
    if "messages" in fields:
        pieces = template.conversation(turns_from_json(fields["messages"]))
        return [Segment(text, learn=is_answer, end=is_answer) for text, is_answer in pieces]
    return [Segment(template.prompt(fields), learn=False), Segment(fields["completion"], learn=True, end=True)]


INSTRUCT = register(
    Task(
        name="instruct",
        kind="instruct",
        layout="records",
        write=write,
        about="answer instructions: loss on the answers and their ends only",
        template="alpaca",
    )
)
