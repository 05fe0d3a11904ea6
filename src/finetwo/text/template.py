"""Prompt templates: how a record, or a conversation turn by turn, becomes the text that is read before an answer.

The same `prompt()` writes the training prompt and the serving prompt, so the two cannot drift; a template knows
nothing of tokens. Its one invariant: `Template.from_dict(t.to_dict())` writes the same prompts as `t`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from finetwo.core.errors import InputError
from finetwo.core.strict_json import parse_json

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
    "chat": ("### User:\n{prompt}\n\n### Assistant:\n", "### User:\n{prompt}\n\n{input}\n\n### Assistant:\n"),
}
_SYSTEM = "### System:\n{}\n\n"
"""How a system text is written, by every template: it stands before the first prompt."""
_PIECE = re.compile(r"\{\{|\}\}|\{[^{}]*\}|[{}]")


Role = Literal["system", "user", "assistant"]
"""Who speaks in a conversation."""
_ROLES: dict[str, Role] = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "human": "user",  # ShareGPT's words
    "gpt": "assistant",
}


@dataclass(frozen=True)
class Turn:
    """What one side of a conversation says."""

    role: Role
    content: str


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
                    f"the fields are {', '.join(dict.fromkeys(known))}",
                )

    def prompt(self, fields: Mapping[str, str], where: str = "prompt") -> str:
        """Return the text before the answer; InputError when a field of the template is missing."""
        literals, names = _parts(self.with_input if fields.get("input", "").strip() else self.text)
        written = [literals[0]]
        for name, literal in zip(names, literals[1:], strict=True):
            value = fields.get(name, "" if name == "input" else None)
            if value is None:
                raise InputError(
                    where, f"the template needs the field {name!r}", sorted(fields), "give it in a JSON prompt file"
                )
            written += (value, literal)
        return "".join(written)

    def conversation(self, turns: Sequence[Turn]) -> list[tuple[str, bool]]:
        """Return the pieces of a conversation in order, each with whether it is an answer.

        A user's turn is written as the prompt of a record would be, so that a conversation of one question is the
        ordinary prompt. Each answer is followed by end-of-text and by nothing else: that token ends an answer wherever
        one is learned, and what comes after it reads as it would at the start of a document. Pieces are to be encoded
        one by one, so that no token spans two of them.
        """
        return [(self._written(turn), turn.role == "assistant") for turn in turns]

    def _written(self, turn: Turn) -> str:
        if turn.role == "user":
            return self.prompt({"prompt": turn.content, "input": ""}, "conversation")
        return turn.content if turn.role == "assistant" else _SYSTEM.format(turn.content)

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


@lru_cache(maxsize=64)
def _parts(text: str) -> tuple[list[str], list[str]]:
    """The literal texts around the placeholders of a template, and the names in these; not to be changed."""
    literals, names, end = [""], [], 0
    for match in _PIECE.finditer(text):
        literals[-1] += text[end : match.start()]
        end = match.end()
        if match[0] in ("{{", "}}"):
            literals[-1] += match[0][0]
        else:
            names.append(match[0][1:-1].strip())
            literals.append("")
    literals[-1] += text[end:]
    return literals, names


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


# --- conversations ----------------------------------------------------------------------------------------------


def parse_turns(value: object, where: str, *, answered: bool = True) -> list[Turn]:
    """Read a conversation: `messages` ({role, content}), ShareGPT's turns ({from, value}), `Turn`s, or their JSON.

    An optional system turn comes first, then user and assistant take turns. Left out are a blank system turn, answers
    before the first question and, if the conversation is wanted `answered`, a question after the last answer; `value`
    then has more turns than the result. Without `answered` the last turn must be the user's.

    Raises:
        InputError: anything else, with the number of the turn; nothing is joined or guessed.
    """
    if isinstance(value, str):
        value = parse_json(value, where)
    if not isinstance(value, list | tuple):
        shape = '[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]'
        raise InputError(where, "a conversation must be a list of turns", type(value).__name__, f"write {shape}")
    found: list[Turn] = []
    for number, item in enumerate(value, 1):
        place = f"{where}: turn {number}"
        turn = _turn(item, place)
        blank_system = turn.role == "system" and not turn.content.strip()
        unasked = turn.role == "assistant" and all(t.role == "system" for t in found)
        if not blank_system and not unasked:
            _check_order(found, turn, place)
            found.append(turn)
    while answered and found and found[-1].role != "assistant":
        found.pop()
    if not found or (found[-1].role == "assistant") != answered:
        what = "no question is answered in this conversation" if answered else "the last turn must be the user's"
        fix = "give a user's turn and an assistant's after it" if answered else "leave out what follows the question"
        raise InputError(where, what, f"{len(value)} turns", fix)
    return found


def _turn(item: object, where: str) -> Turn:
    """One turn, in either spelling."""
    if isinstance(item, Turn):
        item = {"role": item.role, "content": item.content}
    if not isinstance(item, Mapping):
        raise InputError(where, "a turn must be an object", type(item).__name__, 'write {"role": ..., "content": ...}')
    who, what = ("role", "content") if "role" in item else ("from", "value")
    if who not in item or what not in item:
        fix = 'write {"role": ..., "content": ...} or {"from": ..., "value": ...}'
        raise InputError(where, "a turn needs role and content", f"the keys {', '.join(map(str, item))}", fix)
    role, content = item[who], item[what]
    if role in ("tool", "function") or item.get("tool_calls") or item.get("function_call"):
        raise InputError(where, "tools have no place in a conversation here", role, "leave such conversations out")
    if not isinstance(role, str) or role not in _ROLES:
        raise InputError(where, f"unknown {who}", role, f"use {', '.join(_ROLES)}")
    if not isinstance(content, str):
        got = type(content).__name__ if isinstance(content, list | dict) else content
        raise InputError(where, f"{what} must be text", "null" if content is None else got, "write it as one text")
    if item.get("weight", 1) not in (1, None):
        raise InputError(where, "every answer is learned; a weight is not supported", item["weight"], "leave it out")
    return Turn(_ROLES[role], content)


def _check_order(before: Sequence[Turn], turn: Turn, where: str) -> None:
    if turn.role == "system" and before:
        raise InputError(where, "a system turn must come first", turn.content, "put it first, or leave it out")
    if before and before[-1].role == turn.role:
        what = f"two turns of the {turn.role} in a row"
        raise InputError(where, what, turn.content, "join them, or put what was said between them")


def blank_part(turns: Sequence[Turn]) -> Literal["prompt", "completion"] | None:
    """The part that is blank in some turn of a conversation: a question (prompt) or an answer (completion)."""
    blank = next((turn for turn in turns if not turn.content.strip()), None)
    return None if blank is None else "completion" if blank.role == "assistant" else "prompt"


def turns_json(turns: Sequence[Turn]) -> str:
    """Return a conversation as canonical JSON, in the layout of `messages`: equal turns give equal texts."""
    content = [{"role": turn.role, "content": turn.content} for turn in turns]
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def turns_from_json(text: str, where: str = "messages") -> list[Turn]:
    """Read what `turns_json` wrote; InputError on anything else."""
    found = parse_json(text, where)
    if not isinstance(found, list):
        raise InputError(where, "a conversation must be a list of turns", type(found).__name__)
    return [_turn(item, f"{where}: turn {number}") for number, item in enumerate(found, 1)]
