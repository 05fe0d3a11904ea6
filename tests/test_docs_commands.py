"""The commands of the pages on style and comparing are read as they stand: every option in them is there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from finetwo.app.cli import main

DOCS = Path(__file__).parents[1] / "docs"
COMMANDS = [
    (page, line)
    for page in ("style.md", "compare.md")
    for block in re.findall(r"```\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.S)
    for line in block.splitlines()
]


def test_the_pages_have_commands() -> None:
    assert {shlex.split(line)[1] for _, line in COMMANDS} == {"train", "style", "forget", "compare"}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_command_is_understood(page: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = shlex.split(line)
    assert program == "finetwo", page
    assert main([*words, "--print_config"]) == 0, capsys.readouterr().err


def test_options_named_in_the_text_are_there() -> None:
    for page, verbs in (("style.md", ("style", "forget", "train")), ("compare.md", ("compare",))):
        text = (DOCS / page).read_text(encoding="utf-8")
        known = " ".join((Path(__file__).parents[1] / "src" / "finetwo" / "app" / f"{v}.py").read_text() for v in verbs)
        known += (Path(__file__).parents[1] / "src" / "finetwo" / "core" / "config.py").read_text()
        for name in set(re.findall(r"--(\w+)", text)) - {"no_stages", "rows"}:
            assert re.search(rf"^    {name}: ", known, flags=re.M), (page, name)
