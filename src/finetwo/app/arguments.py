"""From the words of a command line, and a YAML file, to a dataclass.

Words are cut here, so that an unknown name gets the nearest of ours and every error has one line; types are
jsonargparse's work. Its one invariant: an option given on the command line wins over the file, and both are parsed
the same way (a list in a file is taken item by item, as it stands).
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from finetwo.app.foreign import remedy
from finetwo.core.config import COMMA_TEXTS
from finetwo.core.errors import InputError

T = TypeVar("T")
Given = str | list[str]
"""What an option is given: a text, or from a file also a list."""
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


@dataclasses.dataclass(frozen=True)
class Option:
    """One option: its dotted name and type."""

    name: str
    kind: Any

    @property
    def plain(self) -> Any:
        """The type without None."""
        if isinstance(self.kind, types.UnionType) or typing.get_origin(self.kind) is typing.Union:
            return next(a for a in typing.get_args(self.kind) if a is not type(None))
        return self.kind

    @property
    def is_bool(self) -> bool:
        """Whether the option is a switch."""
        return self.plain is bool

    @property
    def is_list(self) -> bool:
        """Whether the option takes several values."""
        return typing.get_origin(self.plain) is list

    @property
    def placeholder(self) -> str:
        """What stands for the value in the help."""
        if typing.get_origin(self.plain) is typing.Literal:
            return " " + "|".join(str(a) for a in typing.get_args(self.plain))
        if self.is_list:
            return " A,B,..."
        return {int: " N", float: " X", bool: ""}.get(self.plain, " TEXT")

    @property
    def wants(self) -> str:
        """The kind of value, in words."""
        if typing.get_origin(self.plain) is typing.Literal:
            return "one of " + ", ".join(str(a) for a in typing.get_args(self.plain))
        if self.is_list:
            return f"a comma-separated list of {'numbers' if float in typing.get_args(self.plain) else 'values'}"
        return {int: "an integer", float: "a number", bool: "true or false", str: "text"}.get(self.plain, "a value")


def options_of(kind: type[Any], prefix: str = "") -> dict[str, Option]:
    """Every option of a configuration dataclass, nested ones dotted."""
    found: dict[str, Option] = {}
    for name, hint in typing.get_type_hints(kind).items():
        full = f"{prefix}{name}"
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            found |= options_of(hint, f"{full}.")
        else:
            found[full] = Option(full, hint)
    return found


@dataclasses.dataclass
class Words:
    """A command line cut into positional words and (name, value, where it stands)."""

    positional: list[str]
    named: list[tuple[str, Given, str]]
    help: bool = False
    print_config: bool = False
    after_switch: dict[str, str] = dataclasses.field(default_factory=dict)
    """Positional words that follow a switch, with its name: perhaps meant as its value."""

    def expect(self, verb: str, least: int, most: float, what: str, fix: str) -> None:
        """Refuse another number of positional words; fewer will do where only the configuration is shown."""
        count = len(self.positional)
        if count > most:
            for word, name in self.after_switch.items():
                fix = f"write --{name} or --no_{name}"
                raise InputError(f"--{name}", "is a switch: true, false or nothing may follow", word, fix)
        if count > most or (count < least and not self.print_config):
            raise InputError(verb, what, " ".join(self.positional) or None, fix)


def cut(words: Sequence[str], options: dict[str, Option]) -> Words:
    """Cut the words of a command line; InputError for an unknown or valueless option, with our name for it."""
    found = Words([], [])
    known = [*options, "help", "debug", "config", "print_config"]
    from_files: list[tuple[str, Given, str]] = []
    queue = list(words)
    switch = ""
    while queue:
        word, last_switch, switch = queue.pop(0), switch, ""
        if word == "--":
            found.positional += queue
            break
        if word in ("-h", "--help"):
            found.help = True
        elif word == "--print_config":
            found.print_config = True
        elif word.startswith("--"):
            name, value = _option(word, queue, options, known)
            if name == "config":
                from_files += _from_file(value or "", options)
                continue
            switch = name if value is None else ""
            found.named.append((name, value if value is not None else "true", f"--{name}"))
        elif re.fullmatch(r"-[A-Za-z][\w.=-]*", word):
            raise _unknown(word, word, known)
        else:
            found.positional.append(word)
            if last_switch:
                found.after_switch[word] = last_switch
    found.named = from_files + found.named
    return found


def _option(word: str, queue: list[str], options: dict[str, Option], known: list[str]) -> tuple[str, str | None]:
    """The name and value of an option, whose value may be the next of the queue; None for a switch without one."""
    name, equals, value = word[2:].partition("=")
    if name[:3] in ("no_", "no-") and name not in options and name[3:] in options and options[name[3:]].is_bool:
        return name[3:], "false"
    if name not in options and name != "config":
        raise _unknown(word, f"--{name}", known)
    if equals:
        return name, value
    if name in options and options[name].is_bool:
        return name, queue.pop(0) if queue and queue[0].lower() in (*_TRUE, *_FALSE) else None
    return name, _value(name, queue)


def _unknown(word: str, shown: str, known: list[str]) -> InputError:
    """The error for an unknown option; a word that may well be a prompt is told how to be one."""
    fix = remedy(shown.lstrip("-"), known)
    if not word.startswith("--") or any(c.isspace() for c in word):
        fix = (f"{fix}; " if fix else "") + f"if it is no option but a word of its own, put -- before it: -- {word}"
    return InputError(shown, "unknown option", None, fix or "see --help")


def _value(name: str, queue: list[str]) -> str:
    if not queue or (queue[0].startswith("--") and len(queue[0]) > 2):
        raise InputError(f"--{name}", "needs a value", None, f"write --{name} VALUE")
    return queue.pop(0)


def _from_file(path: str, options: dict[str, Option]) -> list[tuple[str, Given, str]]:
    from finetwo.store.yaml import read_settings

    found: list[tuple[str, Given, str]] = []
    for setting in read_settings(Path(path)):
        if setting.name not in options:
            fix = remedy(setting.name, list(options), dashes="") or "--print_config shows every name there is"
            raise InputError(setting.where, f"unknown key {setting.name}", None, fix)
        found.append((setting.name, setting.value, f"{setting.where}: {setting.name}"))
    return found


def split_list(text: str, *, escapes: bool = False) -> list[str]:
    """The items of a list written as one text: a JSON list, a lone comma, or comma-separated.

    With `escapes`, line feed and tab may be written as in Python in what is not JSON: a shell makes them hard to type.
    """
    if text.startswith("["):
        try:
            items = json.loads(text)
        except (ValueError, RecursionError):
            items = None
        if isinstance(items, list) and all(isinstance(i, str | int | float) and not isinstance(i, bool) for i in items):
            return [str(i) for i in items]
    if escapes:
        text = text.replace("\\n", "\n").replace("\\t", "\t")
    return [text] if text == "," else text.split(",")


def _typed(option: Option, values: list[Given]) -> str:
    """One option's words as the text jsonargparse reads: lists as JSON, switches as true or false.

    Raises:
        ValueError: a list where one value belongs, or a list item that is no number where numbers belong.
    """
    text = values[-1]
    if option.is_list:
        items = [i for v in values for i in (v if isinstance(v, list) else split_list(v, escapes=True))]
        if float in typing.get_args(option.plain):
            return "[" + ",".join(repr(float(item)) for item in items) + "]"
        return json.dumps(items)
    if isinstance(text, list):
        if option.name not in COMMA_TEXTS:
            raise ValueError("a list where one value belongs")
        return ",".join(text)
    if option.is_bool:
        low = text.lower()
        return "true" if low in _TRUE else "false" if low in _FALSE else text
    if option.plain is int and re.fullmatch(r"[0-9][0-9_,]*[0-9]", text):
        return text.replace(",", "").replace("_", "")
    return text


def make_parser(kind: type[Any]) -> Any:
    """A jsonargparse parser of the dataclass `kind`."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog="finetwo", exit_on_error=False, add_help=False, parser_mode="json")
    parser.add_class_arguments(kind, as_group=False)
    return parser


def parse(kind: type[T], words: Words) -> T:
    """Build the dataclass `kind` from the cut words; InputError names option or file line, wanted type and value."""
    options = options_of(kind)
    values: dict[str, list[Given]] = {}
    places: dict[str, str] = {}
    for name, value, where in words.named:
        fresh = not options[name].is_list or where != places.get(name)
        values[name] = [value] if fresh else [*values[name], value]
        places[name] = where
    parser = make_parser(kind)
    from jsonargparse import ArgumentError

    typed: dict[str, str] = {}
    for name, given in values.items():
        try:
            typed[name] = _typed(options[name], given)
            parser.parse_args([f"--{name}={typed[name]}"])
        except (ArgumentError, ValueError, TypeError):
            got = given[-1] if isinstance(given[-1], str) else f"[{', '.join(given[-1])}]"
            wants = options[name].wants
            raise InputError(places[name], f"must be {wants}", got, f"give {wants}") from None
    result = parser.parse_args([f"--{n}={t}" for n, t in typed.items()])
    return _build(kind, result)


def _build(kind: type[T], values: Any) -> T:
    """The dataclass from jsonargparse's namespace (nested groups may come as namespaces or as instances)."""
    hints = typing.get_type_hints(kind)
    given = {}
    for item in dataclasses.fields(kind):  # type: ignore[arg-type]
        value = getattr(values, item.name)
        hint = hints[item.name]
        nested = dataclasses.is_dataclass(hint) and isinstance(hint, type) and not isinstance(value, hint)
        given[item.name] = _build(hint, value) if nested else value
    return kind(**given)
