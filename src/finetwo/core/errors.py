"""The errors a person may see, each one line: where, what, got, remedy.

Every failure that FineTwo expects is a `FineTwoError`; the command line prints it as one line on stderr
and leaves with its `exit_code`. Anything else that escapes is a bug in FineTwo.

    FineTwoError
    ├── InputError        2   usage, configuration, data, model or a corrupt file
    ├── EnvironmentFault  3   disk, permission, memory, network, a lost peer
    ├── NumericError      4   a numeric guard stopped the run
    └── Stopped     130/143   a signal arrived; the state is saved
"""

from __future__ import annotations

_SHOWN = 120


def shown(value: object, limit: int = _SHOWN) -> str:
    """Return `value` as one safe, short, printable line: control characters escaped, long text cut."""
    text = value if isinstance(value, str) else repr(value)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text if len(text) <= limit else text[: limit - 1] + "…"


class FineTwoError(Exception):
    """An expected failure: `where` it was found, `what` is wrong, what was `got`, how to `fix` it."""

    exit_code = 2

    def __init__(self, where: str, what: str, got: object = None, fix: str = "") -> None:
        self.where, self.what, self.got, self.fix = where, what, got, fix
        super().__init__(self.line())

    def line(self) -> str:
        """The message as one line: `where: what (got value). Fix: remedy`."""
        head = f"{shown(self.where, 300)}: {shown(self.what, 600)}" if self.where else shown(self.what, 600)
        if self.got is not None:
            head += f" (got {shown(self.got)})"
        return f"{head}. Fix: {shown(self.fix, 400)}" if self.fix else head


class InputError(FineTwoError):
    """Bad usage, configuration, data, model, or a corrupt file (exit code 2)."""


class EnvironmentFault(FineTwoError):
    """The machine cannot do it: disk, permission, memory, network (exit code 3)."""

    exit_code = 3


class NumericError(FineTwoError):
    """A numeric guard stopped the run before bad numbers reached the weights (exit code 4)."""

    exit_code = 4


class Stopped(FineTwoError):
    """A signal stopped the run after its state was saved (exit code 128 + signal number)."""

    def __init__(self, signal_number: int, what: str, fix: str = "") -> None:
        super().__init__("", what, fix=fix)
        self.exit_code = 128 + signal_number
