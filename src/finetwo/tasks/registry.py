"""The tasks there are: importing this module makes them known."""

from __future__ import annotations

from finetwo.tasks import classify, entail, instruct, text
from finetwo.tasks.task import all_tasks, find_task

__all__ = ["all_tasks", "classify", "entail", "find_task", "instruct", "text"]
