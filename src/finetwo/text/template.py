"""Prompt templates: how the fields of a record become the text that the model reads before it answers.

The same `prompt()` writes the training prompt and the serving prompt, so the two cannot drift; a template knows
nothing of tokens. Its one invariant: `Template.from_dict(t.to_dict())` writes the same prompts as `t`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from finetwo.core.errors import InputError

# The two preambles of Stanford Alpaca are a wire format: models tuned elsewhere expect them to the letter.
_ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)
_NAMED: dict[str, tuple[str, str]] = {
    "alpaca": (
        _ALPACA + "\n\n### Instruction:\n{prompt}\n\n### Response:\n",
        _ALPACA_INPUT + "\n\n### Instruction:\n{prompt}\n\n### Input:\n{input}\n\n### Response:\n",
    ),
    "dolly": (
        "### Instruction: {prompt}\n\n### Response: ",
        "### Instruction: {prompt}\n\n### Context: {input}\n\n### Response: ",
    ),
    "plain": ("{prompt}\n", "{prompt}\n{input}\n"),
}
_PIECE = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")


@dataclass(frozen=True)
class Template:
    """A prompt text with {field} placeholders, and the one used when the record has an input."""

    name: str
    text: str
    with_input: str

    @classmethod
    def named(cls, name: str) -> Template:
        """Return a built-in template; InputError lists them."""
        if name not in _NAMED:
            raise InputError(
                "--template",
                "unknown template",
                name,
                f"use {', '.join(_NAMED)}, a text with {{field}} placeholders, or a file",
            )
        return cls(name, *_NAMED[name])

    @classmethod
    def parse(cls, text: str, where: str = "--template") -> Template:
        """Return a user's own template; InputError gives line and column of a brace that is not balanced."""
        if not placeholders(text, where):
            raise InputError(
                where, "the template has no {field} placeholder", text, "for example '{prompt}\\nAnswer: '"
            )
        return cls("custom", text, text)

    def fields(self) -> list[str]:
        """Names of the placeholders, in order of first use."""
        return placeholders(self.text, self.name)

    def rename(self, names: Mapping[str, str]) -> Template:
        """Return the template with placeholder names replaced (a column's name by the part it plays)."""

        def swap(text: str) -> str:
            return _PIECE.sub(
                lambda m: "{" + names.get(m[0][1:-1].strip(), m[0][1:-1].strip()) + "}" if len(m[0]) > 2 else m[0], text
            )

        return Template(self.name, swap(self.text), swap(self.with_input))

    def check_fields(self, known: list[str], where: str = "--template") -> None:
        """Raise InputError with line and column for a placeholder that no record can fill."""
        for match in _PIECE.finditer(self.text):
            name = match[0][1:-1].strip()
            if len(match[0]) > 2 and name not in known:
                raise InputError(
                    f"{where}:{_position(self.text, match.start())}",
                    "no such field",
                    match[0],
                    f"the fields are {', '.join(known)}",
                )

    def prompt(self, fields: Mapping[str, str], where: str = "prompt") -> str:
        """Return the text before the answer; InputError when a field of the template is missing."""
        text = self.with_input if fields.get("input", "").strip() else self.text

        def fill(match: re.Match[str]) -> str:
            piece = match[0]
            if piece in ("{{", "}}"):
                return piece[0]
            name = piece[1:-1].strip()
            if name == "input":
                return fields.get("input", "")
            if name not in fields:
                raise InputError(
                    where, f"the template needs the field {name!r}", sorted(fields), "give it in a JSON prompt file"
                )
            return fields[name]

        return _PIECE.sub(fill, text)

    def to_dict(self) -> dict[str, str]:
        """The template as JSON content."""
        return {"name": self.name, "text": self.text, "with_input": self.with_input}

    @classmethod
    def from_dict(cls, content: object, where: str = "template") -> Template:
        """Read what `to_dict` wrote; InputError on anything else."""
        if (
            not isinstance(content, dict)
            or set(content) != {"name", "text", "with_input"}
            or not all(isinstance(v, str) for v in content.values())
        ):
            raise InputError(where, "a template must be an object of the strings name, text and with_input", content)
        placeholders(content["text"], where)
        placeholders(content["with_input"], where)
        return cls(**content)

    @property
    def digest(self) -> str:
        """SHA-256 of the content, as hex."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()


def _position(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"{line}:{at - text.rfind(chr(10), 0, at)}"


def placeholders(text: str, where: str) -> list[str]:
    """Names inside single braces, in order; InputError with line:column for an unbalanced or empty one."""
    names: list[str] = []
    for match in _PIECE.finditer(text):
        piece = match[0]
        if piece in ("{{", "}}"):
            continue
        name = piece[1:-1].strip()
        if len(piece) == 1 or not name:
            raise InputError(
                f"{where}:{_position(text, match.start())}",
                "unbalanced or empty brace",
                piece,
                "write {field}, and {{ or }} for a plain brace",
            )
        if name not in names:
            names.append(name)
    return names
