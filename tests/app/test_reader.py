"""Lines, joined lines and blocks, from a pipe; the terminal's side is in test_chat.py."""

from __future__ import annotations

import io

import pytest

from finetwo.app.reader import Reader
from finetwo.core.errors import InputError


def said(monkeypatch: pytest.MonkeyPatch, text: str) -> list[tuple[str, bool]]:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    reader = Reader()
    return list(iter(reader.read, None))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", []),
        ("one\ntwo", [("one", True), ("two", True)]),
        ("\n  a \n", [("", True), ("  a ", True)]),
        ("one \\\ntwo\\\n\\\nthree\nfour\n", [("one \ntwo\n\nthree", False), ("four", True)]),
        ("open\\", [("open\n", False)]),
        ('"""one\n/quit\\\n\ntwo"""\nthree\n', [("one\n/quit\\\n\ntwo", False), ("three", True)]),
        ('  """\none\n"""  \n', [("one", False)]),
        ('"""/help"""\n', [("/help", False)]),
        ('"""one\ntwo\n', [("one\ntwo", False)]),
        ('say """ hello\n', [('say """ hello', True)]),
        ("/help\n", [("/help", True)]),
        ("/help\\\nnot a command\n", [("/help\nnot a command", False)]),
        ("\u2028é 猫\x0c\n", [("\u2028é 猫\x0c", True)]),
    ],
)
def test_texts_of_a_pipe(monkeypatch: pytest.MonkeyPatch, text: str, wanted: list[tuple[str, bool]]) -> None:
    assert said(monkeypatch, text) == wanted


def test_nothing_is_written_for_a_pipe(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said(monkeypatch, 'one\\\ntwo\n"""three\n"""\n')
    assert capsys.readouterr() == ("", "")


def test_bytes_that_are_no_text_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8"))
    with pytest.raises(InputError, match=r"standard input: not utf-8\. Fix: write UTF-8 text"):
        Reader().read()
