"""A verb run in this process as a person would: exit code, output, and the one line of an error."""

from __future__ import annotations

import json
from typing import Any

import pytest

from finetwo.app.cli import main


def ask(capsys: pytest.CaptureFixture[str], verb: str, *words: str) -> tuple[int, str, str]:
    """Exit code, what was written, and the one error line (empty where there is none)."""
    capsys.readouterr()
    code = main([verb, *words])
    heard = capsys.readouterr()
    errors = [line for line in heard.err.splitlines() if line.startswith("error: ")]
    assert code != 1, heard.err
    assert len(errors) == (1 if code else 0), heard.err
    return code, heard.out, "".join(errors)


def figures(capsys: pytest.CaptureFixture[str], verb: str, *words: str) -> dict[str, Any]:
    """What a verb writes with --json."""
    code, out, error = ask(capsys, verb, *words, "--json")
    assert code == 0, error
    return json.loads(out)  # type: ignore[no-any-return]
