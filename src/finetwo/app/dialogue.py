"""A conversation under way: what was said, how the next answer is sampled, and whether the tuned or the base answers.

It must not know a terminal: text goes in, pieces and notes come out through functions. Its one invariant: what is
remembered is what was said, so the prompt of the next answer and a saved conversation hold the same turns.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from finetwo.app.arguments import Words, parse
from finetwo.app.foreign import remedy
from finetwo.core.config import SamplingConfig
from finetwo.core.errors import InputError
from finetwo.core.files import faults, replace_file, require_file
from finetwo.core.strict_json import parse_json
from finetwo.generate.engine import Engine, Request
from finetwo.generate.pipeline import Model, Prompt
from finetwo.text.template import Turn

Take = Callable[[str], None]
"""Takes a piece of an answer, or a line about it."""


@dataclass(frozen=True)
class Exchange:
    """A question and its answer."""

    question: str
    answer: str
    whole: bool
    """Whether the answer ended by itself: neither cut at a limit nor stopped."""
    untuned: bool
    """Whether the base gave it."""


@dataclass
class Dialogue:
    """One conversation with a model."""

    model: Model
    sampling: SamplingConfig
    history: bool
    """Whether the whole conversation is sent, or the last question alone."""
    make_untuned: Callable[[], Model]
    """Gives the model before tuning; called when it is first wanted."""
    system: str = ""
    exchanges: list[Exchange] = field(default_factory=list)
    at_base: bool = False
    _untuned: Model | None = None

    # --- answering -----------------------------------------------------------------------------------------------

    def answer(self, question: str, write: Take, note: Take) -> None:
        """Answer piece by piece, and remember both; an answer that is broken off is remembered as far as it came.

        Raises:
            InputError: the question cannot be written in the template.
            NumericError: the network's output is not finite.
        """
        asked = self._untuned if self.at_base and self._untuned else self.model
        prompt = self._prompt(asked, question, note)
        engine = Engine(asked.network, asked.tokenizer)
        ids = asked.prompt_ids(prompt)
        window = asked.network.config.n_positions
        if engine.fit(ids)[1]:
            note(f"(the question is longer than the context of {window} tokens and loses its beginning)")
        said, reason, count = "", None, 0
        try:
            for event in engine.stream([Request(ids, self.sampling)]):
                said, reason, count = said + event.text, event.finish_reason, count + 1
                if event.text:
                    write(event.text)
        finally:
            if said.strip():
                self.exchanges.append(Exchange(question, said, reason == "stop", asked is not self.model))
        if not said.strip():
            note("(the model ended its answer before it began; nothing is remembered)")
        elif reason == "length":
            full = count < self.sampling.max_new_tokens
            more = f"the context of {window} tokens is full" if full else f"/set max_new_tokens {2 * count} allows more"
            note(f"(cut after {count} tokens: {more})")

    def _prompt(self, asked: Model, question: str, note: Take) -> Prompt:
        """What the model is asked: the text as it stands without a template, else turns that fit into the context."""
        if asked.template is None:
            return question
        turns = [*self._turns(self.exchanges if self.history else []), Turn("user", question)]
        kept, dropped = asked.fit_turns(turns, self.sampling.max_new_tokens)
        if dropped:
            window = asked.network.config.n_positions
            note(f"(the context of {window} tokens has no room for the oldest {dropped} turns: they are not sent)")
        return kept

    def _turns(self, exchanges: list[Exchange]) -> list[Turn]:
        system = [Turn("system", self.system)] if self.system else []
        pairs = ((Turn("user", e.question), Turn("assistant", e.answer)) for e in exchanges)
        return [*system, *(turn for pair in pairs for turn in pair)]

    # --- settings ------------------------------------------------------------------------------------------------

    def set(self, name: str, value: str) -> str:
        """Change a setting of the sampling as the command line would; InputError leaves it as it was."""
        known = [f.name for f in fields(SamplingConfig) if f.name != "n"]
        where = f"/set {name}"
        if name == "n":
            raise InputError(where, "a chat gives one answer at a time", value, "finetwo generate --n gives several")
        if name not in known:
            fix = remedy(name, known, dashes="") or f"use {', '.join(known)}"
            raise InputError(where, "no such setting", None, fix)
        changed = parse(SamplingConfig, Words([], [(name, value, where)]))
        sampling = replace(self.sampling, **{name: getattr(changed, name)})
        sampling.check("/set ")
        self.sampling = sampling
        return f"{name} = {getattr(sampling, name)}"

    def settings(self) -> list[str]:
        """How the next answer will be made, one line each."""
        template = self.model.template.name if self.model.template else "none"
        sent = "the text as it stands"
        if self.model.template:
            sent = "the whole conversation" if self.history else "the last question alone"
        shown = {
            "model": self.model.name,
            "answers": self._speaker(),
            "template": template,
            "sent": sent,
            "system": self.system or "none",
            **{name: value for name, value in asdict(self.sampling).items() if name != "n"},
        }
        return [f"{name:<20}{value}" for name, value in shown.items()]

    def set_system(self, text: str) -> str:
        """Set the system's turn, or with an empty text take it away."""
        if self.model.template is None:
            raise InputError("/system", f"{self.model.name} has no template to write it in", text or None)
        self.system = text
        return "the system text is set" if text else "no system text"

    def flip(self) -> str:
        """Let the base answer instead of the tuned model, or the other way round; InputError where there is none."""
        if not self.at_base and self._untuned is None:
            self._untuned = replace(self.make_untuned(), template=self.model.template)
        self.at_base = not self.at_base
        return f"answers now come from {self._speaker()}"

    def _speaker(self) -> str:
        return f"the untuned base, {self._untuned.name}" if self.at_base and self._untuned else self.model.name

    # --- what was said -------------------------------------------------------------------------------------------

    def undo(self) -> str:
        """Forget the last question and its answer."""
        if not self.exchanges:
            raise InputError("/undo", "nothing was said yet")
        gone = self.exchanges.pop()
        return f"taken back: {gone.question.splitlines()[0][:60]!r} and its answer"

    def clear(self) -> str:
        """Forget the conversation; the system text and the settings stay."""
        self.exchanges.clear()
        return "a new conversation"

    def save(self, name: str) -> str:
        """Write the conversation as a line of JSONL in the layout of `messages`, which `finetwo train` reads.

        A file that is there gets a further line; the same conversation, saved earlier, is replaced by its longer form.

        Raises:
            InputError: nothing was answered yet, or the file is something else.
            EnvironmentFault: it cannot be written.
        """
        if not name:
            raise InputError("/save", "no file given", None, "/save chats.jsonl")
        if not self.exchanges:
            raise InputError("/save", "nothing was answered yet", name, "ask something first")
        path = Path(name).expanduser() if name.startswith("~/") else Path(name)
        if not path.parent.is_dir():
            raise InputError(str(path), "there is no such folder", None, "make it first, or give another name")
        messages = [asdict(turn) for turn in self._turns(self.exchanges)]
        lines = _conversations(path)
        if lines and messages[: len(lines[-1])] == lines[-1]:
            lines.pop()
        lines.append(messages)
        text = "".join(json.dumps({"messages": m}, ensure_ascii=False) + "\n" for m in lines)
        replace_file(path, text.encode("utf-8", "replace"))
        count = f"{len(self.exchanges)} answer{'s' * (len(self.exchanges) > 1)}"
        return f"saved {count} to {path} (conversation {len(lines)} there){self._doubts()}"

    def _doubts(self) -> str:
        """What whoever trains on the conversation should know."""
        cut, base = sum(not e.whole for e in self.exchanges), sum(e.untuned for e in self.exchanges)
        parts = [f"{cut} cut or stopped"] * bool(cut) + [f"{base} by the untuned base"] * bool(base)
        return f"; {', '.join(parts)}" if parts else ""


def _conversations(path: Path) -> list[list[dict[str, str]]]:
    """The conversations of a file that an earlier save wrote, none where there is no file; InputError on others."""
    if not path.exists():
        return []
    require_file(path)
    with faults(path):
        content = path.read_bytes()
    found = []
    for number, line in enumerate(content.split(b"\n"), 1):
        if line.strip():
            messages = _messages(line)
            if messages is None:
                what = "the file holds something else than saved conversations"
                raise InputError(f"{path}:{number}", what, None, "give another name; a chat is added to chats only")
            found.append(messages)
    return found


def _messages(line: bytes) -> list[dict[str, str]] | None:
    """The turns of one saved line; None for any other line."""
    try:
        record = parse_json(line.decode("utf-8"), "line")
    except (InputError, UnicodeDecodeError):
        return None
    messages = record.get("messages") if isinstance(record, dict) and len(record) == 1 else None
    return messages if isinstance(messages, list) else None
