"""What every verb begins with (its words read into options, its help or configuration shown) and a page ends with.

It must not know what a verb does. Its one invariant: `--help`, `--config` and `--print_config` mean the same for every
verb, and showing either touches nothing but the files named by `--config`.
"""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from finetwo.app.arguments import Words, cut, make_parser, options_of, parse
from finetwo.core.config import to_dict

if TYPE_CHECKING:
    from finetwo.insight.page import Page

T = TypeVar("T")


def read(
    kind: type[T], words: list[str], usage: str, about: str, settle: Callable[[T, Words], T] | None = None
) -> tuple[T, list[str]] | None:
    """Return a verb's options and positional words; None when its help or its configuration was asked for, and shown.

    `settle` checks the options and may complete them; its result is what is shown and returned. InputError for
    whatever is wrong with a word or a file.
    """
    given = cut(words, options_of(kind))
    if given.help:
        show_help(kind, usage, about)
        return None
    options = parse(kind, given)
    if settle is not None:
        options = settle(options, given)
    if given.print_config:
        print_config(options)
        return None
    return options, given.positional


def show_help(kind: type[Any], usage: str, about: str) -> None:
    """Write the help of a verb: usage, what it does with examples, and every option with its default."""
    width = line_width()
    texts = {a.dest: (a.help or "", a.default) for a in make_parser(kind)._actions}
    lines = [f"usage: {usage}", "", about.rstrip(), "", "options:"]
    for name, option in options_of(kind).items():
        text, default = texts[name]
        shown = default is not None and default is not False and default != []
        tail = f" [{','.join(map(str, default)) if isinstance(default, list) else default}]" if shown else ""
        lines += _entry(f"--{name}{option.placeholder}", text + tail, width)
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


def line_width() -> int:
    """The width in characters that text is wrapped to: the terminal's, between 60 and 120."""
    return max(60, min(shutil.get_terminal_size((100, 24)).columns, 120))


def check_page(report: str | None) -> None:
    """Raise InputError where a page cannot be written to the file `report`; None is no file."""
    if report is not None:
        from finetwo.insight.page import check_report

        check_report(report)


def show_page(page: Page, found: dict[str, Any], report: str | None, *, as_json: bool) -> None:
    """Write a page into the file `report` if there is one, and to the screen as text, or what it shows as JSON."""
    if report is not None:
        from finetwo.app.console import say
        from finetwo.insight.page import check_report

        page.write(check_report(report))
        say(f"the report is in {report}")
    sys.stdout.write(json.dumps(found) + "\n" if as_json else page.text(line_width()))
