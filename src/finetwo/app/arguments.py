"""From the words of a command line, and a YAML file, to a dataclass.

Words are cut here, so that an unknown name gets the nearest of ours and every error has one line; types are
jsonargparse's work. Its one invariant: an option given on the command line wins over the file, and both are parsed
the same way.
"""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from finetwo.app.foreign import remedy
from finetwo.core.config import to_dict
from finetwo.core.errors import InputError

T = TypeVar("T")
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
    named: list[tuple[str, str, str]]
    help: bool = False
    print_config: bool = False


def cut(words: Sequence[str], options: dict[str, Option], config_allowed: bool = True) -> Words:
    """Cut the words of a command line; InputError for an unknown or valueless option, with our name for it."""
    found = Words([], [])
    known = [*options, "help", "debug"] + (["config", "print_config"] if config_allowed else [])
    queue = list(words)
    while queue:
        word = queue.pop(0)
        if word == "--":
            found.positional += queue
            break
        if word in ("-h", "--help"):
            found.help = True
        elif word == "--print_config" and config_allowed:
            found.print_config = True
        elif word.startswith("--") and len(word) > 2:
            name, equals, value = word[2:].partition("=")
            given = value if equals else None
            if name == "config" and config_allowed:
                found.named = _from_file(given if given is not None else _value(name, queue), options) + found.named
                continue
            if (
                name not in options
                and name.startswith(("no_", "no-"))
                and name[3:] in options
                and options[name[3:]].is_bool
            ):
                name, given = name[3:], "false"
            if name not in options:
                raise InputError(f"--{name}", "unknown option", None, remedy(name, known))
            if given is None and options[name].is_bool:
                given = queue.pop(0) if queue and queue[0].lower() in (*_TRUE, *_FALSE) else "true"
            found.named.append((name, given if given is not None else _value(name, queue), f"--{name}"))
        elif word.startswith("-") and len(word) == 2 and word[1].isalpha():
            raise InputError(word, "unknown option", None, remedy(word[1:], known))
        else:
            found.positional.append(word)
    return found


def _value(name: str, queue: list[str]) -> str:
    if not queue or (queue[0].startswith("--") and len(queue[0]) > 2):
        raise InputError(f"--{name}", "needs a value", None, f"write --{name} VALUE")
    return queue.pop(0)


def _from_file(path: str, options: dict[str, Option]) -> list[tuple[str, str, str]]:
    from finetwo.store.yaml import read_settings

    found = []
    for setting in read_settings(Path(path)):
        if setting.name not in options:
            raise InputError(
                setting.where,
                f"unknown key {setting.name}",
                None,
                remedy(setting.name, list(options)).replace("--", ""),
            )
        found.append((setting.name, setting.text, f"{setting.where}: {setting.name}"))
    return found


def _typed(option: Option, values: list[str]) -> str:
    """One option's words as the text jsonargparse reads: lists as JSON, switches as true or false."""
    text = values[-1]
    if option.is_bool:
        low = text.lower()
        return "true" if low in _TRUE else "false" if low in _FALSE else text
    if option.is_list:
        parts: list[str] = []
        for value in values:
            parts += json.loads(value) if value.startswith("[") else value.split(",")
        if float in typing.get_args(option.plain):
            return "[" + ",".join(parts) + "]"
        return json.dumps([p.replace("\\n", "\n").replace("\\t", "\t") for p in parts])
    if option.plain is int and re.fullmatch(r"[0-9][0-9_,]*[0-9]", text):
        return text.replace(",", "").replace("_", "")
    return text


def make_parser(kind: type[Any], prog: str, about: str) -> Any:
    """A jsonargparse parser of the dataclass `kind`."""
    from jsonargparse import ArgumentParser, set_parsing_settings

    set_parsing_settings(docstring_parse_attribute_docstrings=True)
    parser = ArgumentParser(prog=prog, description=about, exit_on_error=False, add_help=False)
    parser.add_class_arguments(kind, as_group=False)
    return parser


def parse(kind: type[T], words: Words, prog: str, about: str) -> T:
    """Build the dataclass `kind` from the cut words; InputError names option or file line, wanted type and value."""
    options = options_of(kind)
    values: dict[str, list[str]] = {}
    places: dict[str, str] = {}
    for name, value, where in words.named:
        fresh = not options[name].is_list or where != places.get(name)
        values[name] = [value] if fresh else [*values[name], value]
        places[name] = where
    parser = make_parser(kind, prog, about)
    from jsonargparse import ArgumentError

    typed = {name: _typed(options[name], given) for name, given in values.items()}
    for name, text in typed.items():
        try:
            parser.parse_args([f"--{name}={text}"])
        except (ArgumentError, ValueError, TypeError):
            raise InputError(
                places[name], f"must be {options[name].wants}", values[name][-1], f"give {options[name].wants}"
            ) from None
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


def show_help(kind: type[Any], usage: str, about: str, *, config: bool = False) -> None:
    """Write the help of a verb: usage, what it does with examples, and every option with its default."""
    width = max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))
    texts = {a.dest: (a.help or "", a.default) for a in make_parser(kind, "finetwo", about)._actions}
    lines = [f"usage: {usage}", "", about.rstrip(), "", "options:"]
    for name, option in options_of(kind).items():
        text, default = texts[name]
        shown = default is not None and default is not False and default != []
        tail = f" [{','.join(map(str, default)) if isinstance(default, list) else default}]" if shown else ""
        lines += _entry(f"--{name}{option.placeholder}", text + tail, width)
    if config:
        lines += _entry("--config FILE", "Read options from a YAML file; those given here win over it.", width)
        lines += _entry("--print_config", "Show every option as it would be used, as YAML, and do nothing.", width)
    lines += _entry("--debug", "Show the traceback of an error.", width)
    sys.stdout.write("\n".join(lines) + "\n")


def _entry(head: str, text: str, width: int) -> list[str]:
    """One option of the help: its name, and its text in a column of its own."""
    left = 28
    body = textwrap.wrap(" ".join(text.split()), width - left - 2) or [""]
    first = [f"  {head}"] if len(head) > left - 3 else [f"  {head:<{left - 2}}{body.pop(0)}"]
    return first + [" " * left + line for line in body]


def print_config(config: Any) -> None:
    """Write a configuration as YAML."""
    import yaml

    sys.stdout.write(yaml.safe_dump(to_dict(config), sort_keys=False, allow_unicode=True))
