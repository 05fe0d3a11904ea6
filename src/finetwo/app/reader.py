"""What a person types, or a pipe brings, as texts: single lines, lines joined by a backslash, and blocks.

It must not know what a text means. Its one invariant: without a terminal the same input gives the same texts, and
nothing is written to standard output.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module

from finetwo.core.errors import InputError


class Reader:
    """Reads what a person says: a line, lines joined by a backslash, or a block between triple quotes."""

    def __init__(self) -> None:
        self.typed = sys.stdin.isatty()
        """Whether somebody sits at a keyboard."""
        self._edited = self.typed and sys.stdout.isatty()
        if self._edited:
            with suppress(ImportError):  # where there is one, lines can be edited and called back
                import_module("readline")

    def read(self) -> tuple[str, bool] | None:
        """Return the next text and whether it may be a command; None at the end of the input.

        Raises:
            InputError: the input is not text in the terminal's encoding.
        """
        line = self._line("> ")
        if line is None:
            return None
        if line.lstrip().startswith('"""'):
            return self._block(line.lstrip()[3:]), False
        lines = [line]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            lines.append(self._line(". ") or "")
        return "\n".join(lines), len(lines) == 1

    def _block(self, first: str) -> str:
        """The lines up to the closing quotes, or to the end of the input."""
        lines, line = [], first
        while not line.rstrip().endswith('"""'):
            lines.append(line)
            following = self._line(". ")
            if following is None:
                return "\n".join(lines).strip("\n")
            line = following
        return "\n".join([*lines, line.rstrip()[:-3]]).strip("\n")

    def _line(self, prompt: str) -> str | None:
        try:
            if self._edited:
                return input(prompt)
            if self.typed:
                sys.stderr.write(prompt)
                sys.stderr.flush()
            line = sys.stdin.readline()
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            raise InputError("standard input", f"not {error.encoding}", None, "write UTF-8 text") from None
        return line.removesuffix("\n") if line else None
