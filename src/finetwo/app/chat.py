"""`finetwo chat`: talk with a model, line by line or block by block, in a terminal or through a pipe.

It knows words, lines and streams, and leaves the conversation to `Dialogue`. Its one invariant: standard output holds
the answers and nothing else; whatever is said about them goes to standard error.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finetwo.app import front
from finetwo.app.arguments import Words
from finetwo.app.console import say
from finetwo.app.reader import Reader
from finetwo.core.config import SamplingConfig
from finetwo.core.errors import FineTwoError, InputError

if TYPE_CHECKING:
    from finetwo.app.dialogue import Dialogue
    from finetwo.generate.pipeline import Model
    from finetwo.model.network import Network

_USAGE = "finetwo chat MODEL [--history] [--option VALUE ...]"
_ABOUT = '''Talk with a model folder, a run folder, an adapter or a hub name. Answers appear as they are made. A line
that ends in a backslash goes on in the next; a text between """ and """ may hold any lines.

A model tuned on conversations (template chat) is sent the whole conversation; one tuned on single prompts is sent
the last question alone, unless --history asks for all. A model without a template continues your text as it stands.

commands in the chat:
  /set NAME VALUE   change a setting of the sampling: /set temperature 0.2
  /settings         show how the next answer is made
  /base             let the untuned model answer, and the tuned one again
  /system TEXT      a text that stands before the conversation (without TEXT: none)
  /undo             take the last question and its answer back
  /clear            begin anew
  /save FILE        add the conversation to a JSONL file that finetwo train reads
  /help             show this list
  /quit             end the chat, as Ctrl-D does; Ctrl-C stops an answer

examples:
  finetwo chat runs/data-instruct
  finetwo chat runs/chats-instruct --system "You are brief." --temperature 0
  printf 'Name a colour.\\nAnd another?\\n' | finetwo chat runs/chats-instruct
'''
_FOREIGN = dict.fromkeys(("/exit", "/q", "/bye"), "/quit") | {"/reset": "/clear", "/new": "/clear", "/?": "/help"}


@dataclass
class ChatArguments:
    """Options of `finetwo chat`."""

    history: bool | None = None
    """Send the whole conversation (default where the template is chat), or --no_history for the last question alone."""
    system: str | None = None
    """A text that stands before the conversation."""
    temperature: float = 0.7
    """0 is greedy; higher is more random."""
    top_p: float = 0.95
    """Keep the smallest set of tokens whose probability reaches p."""
    top_k: int = 0
    """Keep only the k most likely tokens (0: all)."""
    min_p: float = 0.0
    """Drop tokens less likely than min_p times the likeliest."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens already seen less likely."""
    max_new_tokens: int = 128
    """Stop an answer after this many tokens."""
    stop: list[str] = field(default_factory=list)
    """Strings that end an answer (comma-separated, a JSON list, or given again)."""
    seed: int = 0
    """Seed of the sampling; the same chat with the same seed has the same answers."""
    base: str | None = None
    """The untuned model for /base, or the base of an adapter; by default as the model's own files name it."""
    revision: str | None = None
    """Revision of a hub model."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:N or mps."""
    quantize: Literal["int8", "int4"] | None = None
    """Keep the weights in int8 or int4: smaller and faster on a CPU, a little less exact; an adapter is merged."""

    def sampling(self) -> SamplingConfig:
        """The settings of the first answer; InputError for one out of range."""
        config = SamplingConfig(**{f.name: getattr(self, f.name) for f in fields(SamplingConfig) if f.name != "n"})
        config.check()
        return config


def run(words: list[str]) -> int:
    """Run the verb with the given words; return the exit code."""
    asked = front.read(ChatArguments, words, _USAGE, _ABOUT, _settle)
    if asked is None:
        return 0
    arguments, (name,) = asked
    dialogue = _open(name, arguments)
    for line in _welcome(dialogue, arguments.history):
        say(line)
    Chat(dialogue, Reader()).run()
    return 0


def _settle(arguments: ChatArguments, words: Words) -> ChatArguments:
    words.expect("chat", 1, 1, "one model is needed", _USAGE)
    arguments.sampling()
    return arguments


# --- the models -------------------------------------------------------------------------------------------------


def _open(name: str, arguments: ChatArguments) -> Dialogue:
    """The model ready to talk; InputError for a classifier, and for turns where there is no template."""
    from finetwo.app.api import load
    from finetwo.app.dialogue import Dialogue
    from finetwo.store.hub import resolve
    from finetwo.store.models import is_adapter_folder

    folder = resolve(name, arguments.revision)
    adapter = is_adapter_folder(folder)
    model = load(
        name,
        base=arguments.base if adapter else None,
        revision=arguments.revision,
        device=arguments.device,
        quantize=arguments.quantize,
    )
    if model.network.config.labels:
        raise InputError(name, "is a classifier, which does not talk", None, f'finetwo predict {name} "TEXT"')
    if model.template is None and (arguments.history or arguments.system):
        option = "--system" if arguments.system else "--history"
        raise InputError(option, f"{name} has no template: it continues a text as it stands", None, "leave it out")

    def untuned() -> Model:
        if adapter and arguments.quantize is None:
            return _without_adapter(model)
        untuned_name = str(model.base) if adapter else arguments.base or _tuned_from(folder, name)
        return load(untuned_name, device=arguments.device, quantize=arguments.quantize)

    by_template = model.template is not None and model.template.name == "chat"
    history = by_template if arguments.history is None else arguments.history
    return Dialogue(model, arguments.sampling(), history, untuned, arguments.system or "")


def _without_adapter(model: Model) -> Model:
    """The same network with its adapter left out: the weights are shared, not copied."""
    return replace(model, network=_bare(model.network), name=str(model.base))


def _bare(network: Network) -> Network:
    """A network of the same shape on the same tensors, its adapter slots empty."""
    import torch

    with torch.device("meta"):
        bare = type(network)(network.config)
    bare.load_state_dict(network.state(), assign=True)
    return bare.eval()


def _tuned_from(folder: Path, name: str) -> str:
    """The name of the model that a run started from, by the run's configuration; InputError where there is none."""
    from finetwo.store.run import is_run_folder
    from finetwo.store.yaml import read_settings

    config = folder.parent / "config.yaml"
    found = {}
    if is_run_folder(folder.parent) and config.is_file():
        found = {setting.name: str(setting.value) for setting in read_settings(config)}
    if found.get("task") == "pretrain":
        raise InputError("/base", f"{name} was trained from fresh weights: there is no base", None, "ask it as it is")
    if "model" not in found:
        what = f"{name} does not say which model it was tuned from"
        raise InputError("/base", what, None, f"finetwo chat {name} --base MODEL, if it was tuned at all")
    return found["model"]


def _welcome(dialogue: Dialogue, asked: bool | None) -> list[str]:
    """What a person should know before the first question."""
    template = dialogue.model.template
    lines = [f"chat with {dialogue.model.name}; /help lists the commands, Ctrl-D ends"]
    if template is None:
        return [*lines, "this model has no template: it continues your text as it stands, each text alone"]
    if dialogue.history:
        unusual = "" if template.name == "chat" else " (a model tuned on single prompts may do badly with it)"
        return [*lines, f"template {template.name}: the whole conversation is sent with each question{unusual}"]
    more = "" if asked is not None else " (--history sends the whole conversation)"
    return [*lines, f"template {template.name}: each question is sent alone{more}"]


# --- the chat ---------------------------------------------------------------------------------------------------


class Chat:
    """Questions, answers and commands until the input ends."""

    def __init__(self, dialogue: Dialogue, reader: Reader) -> None:
        self._dialogue, self._reader = dialogue, reader
        self._screen = sys.stdout.isatty()
        self._over = False

    def run(self) -> None:
        """Read and answer until the end; an error is one line and ends nothing."""
        while not self._over:
            waiting = True
            try:
                said = self._reader.read()
                waiting = False
                self._take(said)
            except KeyboardInterrupt:
                if waiting and not self._reader.typed:
                    raise
                say("\n(Ctrl-D or /quit ends the chat)" if waiting else "(stopped)")
            except FineTwoError as error:
                if waiting and not self._reader.typed:
                    raise
                say(f"error: {error.line()}")

    def _take(self, said: tuple[str, bool] | None) -> None:
        """Do what was said: answer it, obey it, or end where nothing more comes."""
        if said is None:
            self._over = True
            if self._reader.typed:
                say("")
        elif said[1] and said[0].startswith("/"):
            self._obey(said[0])
        elif said[0].strip():
            self._answer(said[0])

    def _answer(self, question: str) -> None:
        notes: list[str] = []
        try:
            self._dialogue.answer(question, self._write, notes.append)
        finally:
            sys.stdout.write("\n")
            sys.stdout.flush()
            for note in notes:
                say(note)
        if self._screen:
            sys.stdout.write("\n")

    def _write(self, piece: str) -> None:
        """Show a piece of an answer; on a screen without the characters that would steer it."""
        if self._screen:
            piece = "".join(c for c in piece if c.isprintable() or c in "\n\t")
        sys.stdout.write(piece)
        sys.stdout.flush()

    def _obey(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        dialogue = self._dialogue
        plain: dict[str, Callable[[], str]] = {
            "/settings": lambda: "\n".join(dialogue.settings()),
            "/base": dialogue.flip,
            "/undo": dialogue.undo,
            "/clear": dialogue.clear,
            "/help": _commands,
            "/quit": self._quit,
        }
        with_text: dict[str, Callable[[str], str]] = {
            "/set": self._set,
            "/system": dialogue.set_system,
            "/save": dialogue.save,
        }
        if name in with_text:
            said = with_text[name](rest)
        elif name not in plain:
            known = [*plain, *with_text]
            near = _FOREIGN.get(name) or next(iter(get_close_matches(name, known, n=1)), None)
            fix = f"did you mean {near}?" if near else 'see /help; a text that begins with / stands between """ and """'
            raise InputError(name, "no such command", None, fix)
        elif rest:
            raise InputError(name, "takes nothing after it", rest, f"write {name} alone")
        else:
            said = plain[name]()
        if said:
            say(said)

    def _set(self, rest: str) -> str:
        name, *value = re.split(r"\s*=\s*|\s+", rest, maxsplit=1)
        if not "".join(value):
            raise InputError("/set", "needs a name and a value", rest or None, "/set temperature 0.7")
        return self._dialogue.set(name, value[0])

    def _quit(self) -> str:
        self._over = True
        return ""


def _commands() -> str:
    """The list of commands, as the help has it."""
    return _ABOUT.partition("commands in the chat:\n")[2].partition("\n\n")[0]
