"""The loss-coverage certificate: where the loss of a prepared set lies, proved token by token over all of it.

It knows prepared records, ours or anyone's, and no network. Its one invariant: each check is made on every record, and
one that fails names how many tokens or records fail it and where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from finetwo.core.errors import shown
from finetwo.insight.laid import ANSWER, END, HEADER, OTHER, PADDING, PROMPT, ROLES, Laid, Table, Told, tell
from finetwo.text.tokenizer import Tokenizer

_PLACES = 20
CHECKS: dict[str, str] = {
    "all records there": "records are missing without a reason",
    "padding out of the loss": "padding tokens carry loss",
    "prompt out of the loss": "tokens of the prompt carry loss",
    "header out of the loss": "tokens of the template's headers carry loss",
    "other out of the loss": "tokens that belong to no part of the record carry loss",
    "answer in the loss": "tokens of answers carry no loss",
    "end-of-text there": "whole answers have no end-of-text behind them, so the model never learns to stop",
    "end-of-text learned": "end-of-text tokens carry no loss (is padding told by the end-of-text id?)",
    "answers byte for byte": "answers are not what the learned tokens spell",
    "text as written": "records' tokens do not spell their text",
    "prompt as served": "records' prompts differ from the prompt in use (another template?)",
    "class on the last token": "records do not carry their own class on the last token alone",
    "every token learned": "tokens of the text are not learned, or not as what follows",
}
"""Each check, and what is wrong where it fails."""


@dataclass
class Check:
    """One check: how many it was made on, how many fail it, and the first places."""

    name: str
    of: int = 0
    failed: int = 0
    places: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing fails it."""
        return self.failed == 0

    def count(self, failed: int, where: str, of: int = 1) -> None:
        """Add what was found at `where`."""
        self.of += of
        self.failed += failed
        if failed and len(self.places) < _PLACES:
            self.places.append(shown(where, 300))

    def line(self) -> str:
        """The check as one line."""
        if self.ok:
            return f"ok      {self.name} ({f'{self.of:,} looked at' if self.of else 'there is none'})"
        named = "; ".join(self.places[:3])
        return f"FAILED  {self.name}: {self.failed:,} of {self.of:,} {CHECKS[self.name]}: {named}"

    def brief(self) -> str:
        """The failure in a few words, with its first place."""
        return f"{self.name}: {self.failed:,}" + (f" ({self.places[0]})" if self.places else "")

    def to_dict(self) -> dict[str, Any]:
        """As JSON content."""
        about = "" if self.ok else CHECKS[self.name]
        return {"name": self.name, "ok": self.ok, "of": self.of, "failed": self.failed, "about": about} | {
            "places": self.places
        }


@dataclass
class Certificate:
    """Where the tokens of a set lie, and what was checked."""

    tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    learned: dict[str, int] = field(default_factory=lambda: dict.fromkeys(ROLES, 0))
    checks: dict[str, Check] = field(default_factory=dict)
    records: int = 0
    proof: dict[str, Any] | None = None
    """What `prove` found with the real model, once it was asked."""

    @property
    def ok(self) -> bool:
        """Whether every check holds, the numeric proof included if there is one."""
        return all(c.ok for c in self.checks.values()) and (self.proof is None or bool(self.proof["ok"]))

    def check(self, name: str) -> Check:
        """The check of that name."""
        return self.checks.setdefault(name, Check(name))

    def failures(self) -> list[Check]:
        """The checks that fail."""
        return [c for c in self.checks.values() if not c.ok]

    def lines(self) -> list[str]:
        """The certificate as lines for a person."""
        total = max(1, sum(self.tokens.values()))
        shares = ", ".join(f"{r} {n:,} ({n / total:.1%})" for r, n in self.tokens.items() if n)
        carried = ", ".join(f"{r} {n:,}" for r, n in self.learned.items() if n) or "none"
        found = [f"tokens: {shares}", f"in the loss: {carried}", *(c.line() for c in self.checks.values())]
        if self.proof is not None:
            found.append(f"{'ok    ' if self.proof['ok'] else 'FAILED'}  numeric proof: {self.proof['words']}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """As JSON content."""
        return {
            "ok": self.ok,
            "records": self.records,
            "tokens": self.tokens,
            "learned": self.learned,
            "checks": [c.to_dict() for c in self.checks.values()],
            "proof": self.proof,
        }


def certify(
    records: Iterable[Laid],
    tokenizer: Tokenizer,
    expected: int | None = None,
    heard: Callable[[Laid, Told], None] = lambda record, told: None,
) -> Certificate:
    """Check every record of a set with prompts and answers, of our preparation or any other.

    `expected`: how many records the source has, the ones left out with a reason taken off. `heard` is told of each
    record and its roles.
    """
    found, table = Certificate(), Table(tokenizer)
    for name in (
        "padding out of the loss",
        "prompt out of the loss",
        "header out of the loss",
        "answer in the loss",
        "end-of-text there",
        "end-of-text learned",
        "answers byte for byte",
        "text as written",
    ):
        found.check(name)
    for record in records:
        told = tell(record, table)
        found.records += 1
        _count(found, record, told)
        _ends(found, record, told)
        _spelled(found, record, told, table)
        heard(record, told)
    if expected is not None:
        missing = max(0, expected - found.records)
        found.check("all records there").count(missing, f"{found.records:,} of {expected:,} records", expected)
    return found


def _count(found: Certificate, record: Laid, told: Told) -> None:
    """Tokens by role, and whether those carry loss that must not."""
    every = np.bincount(told.roles, minlength=len(ROLES))
    with_loss = np.bincount(told.roles[record.learned], minlength=len(ROLES))
    for i, role in enumerate(ROLES):
        found.tokens[role] += int(every[i])
        found.learned[role] += int(with_loss[i])
    # a separator between prompts is an end that must not be learned
    stray = int((record.learned & (told.roles == END) & (told.answer_of < 0)).sum())
    for number in (PADDING, PROMPT, HEADER):
        name = f"{ROLES[number]} out of the loss"
        extra = stray if number == PROMPT else 0
        found.check(name).count(int(with_loss[number]) + extra, record.where, int(every[number]))
    if every[OTHER]:
        found.check("other out of the loss").count(int(with_loss[OTHER]), record.where, int(every[OTHER]))
    first = int(len(told.roles) > 0 and told.roles[0] == ANSWER)  # it has nothing before it
    found.check("answer in the loss").count(
        int(every[ANSWER] - with_loss[ANSWER]) - first, record.where, int(every[ANSWER])
    )


def _cut_in(record: Laid, told: Told) -> tuple[int, int]:
    """The answer in which a record was cut (-1: in none), and the number of answers that are there."""
    there = told.answer_of[record.real]
    number = len(told.answers) if record.whole else int(there.max(initial=-1)) + 1
    last = -1 if record.whole or not len(there) or told.roles[record.real][-1] == END else int(there[-1])
    return last, number


def _ends(found: Certificate, record: Laid, told: Told) -> None:
    """Each whole answer must be followed by end-of-text, and that must be learned."""
    ended = set(told.answer_of[told.roles == END].tolist()) - {-1}
    learned = set(told.answer_of[(told.roles == END) & record.learned].tolist())
    cut, there = _cut_in(record, told)
    for number in range(there):
        if number == cut:
            continue
        found.check("end-of-text there").count(int(number not in ended), record.where)
        if number in ended:
            found.check("end-of-text learned").count(int(number not in learned), record.where)


def _spelled(found: Certificate, record: Laid, told: Told, table: Table) -> None:
    """The learned tokens of each answer must spell it, and all tokens the record."""
    cut, there = _cut_in(record, told)
    learned = record.learned | (np.arange(len(record.tokens)) == 0)
    for number, answer in enumerate(told.answers[:there]):
        text = table.text(record.tokens[(told.answer_of == number) & learned])
        right = answer.startswith(text) if number == cut else answer == text
        found.check("answers byte for byte").count(int(not right), record.where)
    found.check("text as written").count(int(not told.faithful), record.where)
    if record.served is not None:
        read = "".join(p.text for p in record.pieces[: _first_answer(record)])
        found.check("prompt as served").count(int(read != record.served), record.where)


def _first_answer(record: Laid) -> int:
    return next((i for i, p in enumerate(record.pieces) if p.role == "answer"), len(record.pieces))
