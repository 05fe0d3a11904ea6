"""Which template a job uses: as asked, the model's own, or the one that goes with the columns.

It knows templates, tasks and columns, and no rows. Its one invariant: a template it returns can be filled from the
columns that are there, and never holds the answer.
"""

from __future__ import annotations

from pathlib import Path

from finetwo.core.errors import InputError
from finetwo.core.files import require_file
from finetwo.data.columns import Columns
from finetwo.tasks.task import Task
from finetwo.text.template import Template

_USUAL = {"Dolly": "dolly", "prompt/completion": "plain"}
"""The template that goes with a known arrangement of columns."""


def make_template(
    task: Task, wanted: str | None, stored: Template | None, columns: Columns, known: list[str]
) -> Template | None:
    """The template of a job: as asked (a name, a text, a file), else the model's own, else the task's default."""
    if task.template is None:
        if wanted is not None:
            raise InputError("--template", f"the task {task.name} has no prompt", wanted, "leave --template out")
        return None
    parts = [role for role in columns.roles if role != "completion"]
    parts += ["prompt"] if columns.messages is not None else []  # each turn of a conversation is one
    if wanted is None and stored is not None:
        stored.check_fields([*parts, "input", *known], f"the model's template {stored.name}")
        return stored
    if wanted is None:
        talk = columns.messages is not None
        return Template.named("chat" if talk else _USUAL.get(columns.layout, task.template))
    if is_file(wanted):
        template = Template.parse(_template_file(Path(wanted)), wanted)
    elif "{" in wanted or "}" in wanted:
        template = Template.parse(wanted.replace("\\n", "\n"))
    else:
        return Template.named(wanted)
    roles = {name: role for role, name in columns.roles.items() if role != "completion"}  # a prompt holds no answer
    template.check_fields([*roles, *known, *(["prompt"] if columns.messages is not None else [])])
    return template.rename(roles)


def is_file(wanted: str) -> bool:
    """Whether --template names a file rather than holding the text itself."""
    try:
        return Path(wanted).is_file() or ("{" not in wanted and wanted.endswith((".txt", ".template")))
    except (OSError, ValueError):
        return False


def _template_file(path: Path) -> str:
    require_file(path)
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(str(path), f"not UTF-8 at byte {e.start}", None, "save the template as UTF-8") from None
