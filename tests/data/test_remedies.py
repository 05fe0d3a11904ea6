"""Every fault of a user's data is told with a remedy: read off the code, so that no new one goes without."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import finetwo

PACKAGE = Path(finetwo.__file__).parent
FILES = sorted([*(PACKAGE / "data").glob("*.py"), *(PACKAGE / "store").glob("hub_*.py"), PACKAGE / "store/download.py"])
KINDS = ("InputError", "EnvironmentFault")


def without_remedy(source: str) -> list[int]:
    """The lines of the errors that are made without a fix; an unpacked argument may hold it."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if isinstance(call.func, ast.Name) and call.func.id in KINDS and len(call.args) < 4
        if not any(keyword.arg == "fix" for keyword in call.keywords)
        if not any(isinstance(argument, ast.Starred) for argument in call.args)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_fault_of_data_names_its_remedy(path: Path) -> None:
    assert not without_remedy(path.read_text(encoding="utf-8"))


def test_the_reading_of_the_code_can_fail() -> None:
    assert without_remedy(
        'raise InputError("a", "b")\nInputError("a", "b", 1, "c")\nInputError("a", "b", fix="c")'
    ) == [1]
