"""A report of sections, tables and texts side by side, written as plain text, Markdown or one HTML file.

It knows layout and nothing of what is reported. Its one invariant: text from outside is escaped in every form, and the
HTML file needs no other file and no network.
"""

from __future__ import annotations

import html
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path

from finetwo.core.errors import InputError
from finetwo.core.files import replace_file

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #ccc}"
    "table{border-collapse:collapse;margin:.8rem 0;width:100%}"
    "th,td{border:1px solid #ccc;padding:.3rem .6rem;text-align:left;vertical-align:top}th{background:#f2f2f2}"
    "td{white-space:pre-wrap;overflow-wrap:anywhere}"
    "@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}th{background:#2a2a2a}th,td{border-color:#444}}"
)


@dataclass(frozen=True)
class Table:
    """Short cells under a header."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Beside:
    """Longer texts, each under its name, to be read side by side."""

    columns: Sequence[tuple[str, str]]


Block = str | Table | Beside


@dataclass
class Section:
    """A heading, and what stands under it."""

    heading: str
    blocks: list[Block] = field(default_factory=list)


@dataclass
class Page:
    """A report."""

    title: str
    sections: list[Section] = field(default_factory=list)

    def text(self, width: int = 100) -> str:
        """Return the report for a terminal."""
        parts = [clean(self.title)]
        for section in self.sections:
            parts.append(f"\n{clean(section.heading)}")
            parts += [_text_of(block, width) for block in section.blocks]
        return "\n".join(parts) + "\n"

    def markdown(self) -> str:
        """Return the report as Markdown."""
        parts = [f"# {_cell(self.title)}"]
        for section in self.sections:
            parts.append(f"## {_cell(section.heading)}")
            parts += [_markdown_of(block) for block in section.blocks]
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """Return the report as one HTML file."""
        title = html.escape(clean(self.title))
        body = [f"<h1>{title}</h1>"]
        for section in self.sections:
            body.append(f"<h2>{html.escape(clean(section.heading))}</h2>")
            body += [_html_of(block) for block in section.blocks]
        head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
        policy = (
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        )
        return (
            f'<!doctype html>\n<html lang="en"><head>{head}{policy}<title>{title}</title>'
            f"<style>{_STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
        )

    def write(self, path: Path) -> None:
        """Write the report to `path`, in the form that its ending names (see `check_report`)."""
        made = {".html": self.html, ".htm": self.html, ".md": self.markdown, ".txt": self.text}[path.suffix.lower()]()
        replace_file(path, made.encode("utf-8", "backslashreplace"))


PAGES = (".html", ".htm", ".md", ".txt")


def check_report(name: str, endings: Sequence[str] = PAGES) -> Path:
    """Return the path of a report to be written; InputError for another ending or a folder that is not there."""
    path = Path(name)
    if path.suffix.lower() not in endings:
        told = [ending for ending in endings if ending != ".htm"]
        what = f"must end in {', '.join(told[:-1])} or {told[-1]}"
        raise InputError("--report", what, name, "for example --report report.html")
    if path.is_dir() or not path.parent.is_dir():
        what = "is a folder" if path.is_dir() else "its folder is not there"
        raise InputError("--report", what, name, "give a file in a folder that exists")
    return path


def clean(text: str) -> str:
    """Return `text` with what a terminal would obey or hide written out; line feeds and tabs stay."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode("ascii") for c in text
    ).replace("\t", "    ")


def _text_of(block: Block, width: int) -> str:
    if isinstance(block, str):
        return textwrap.fill(clean(block), width, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    if isinstance(block, Beside):
        lines = []
        for name, text in block.columns:
            wrapped = [w for line in clean(text).split("\n") for w in textwrap.wrap(line, width - 4) or [""]]
            lines += [f"  [{clean(name)}]", *(f"    {line}".rstrip() for line in wrapped)]
        return "\n".join(lines)
    return _table_of(block, width)


def _table_of(table: Table, width: int) -> str:
    """A table of at most `width` columns, its widest cells wrapped (a column keeps 8 characters in any case)."""
    rows = [[clean(cell).replace("\n", " ") for cell in row] for row in [table.header, *table.rows]]
    natural = [max(len(row[i]) for row in rows) for i in range(len(table.header))]
    room = max(8, width - 2 * len(natural))
    most = next((c for c in range(room, 8, -1) if sum(min(n, c) for n in natural) <= room), 8)
    widths = [min(n, most) for n in natural]
    lines = []
    for row in rows:
        cells = [
            textwrap.wrap(c, w, break_on_hyphens=False) if len(c) > w else [c] for c, w in zip(row, widths, strict=True)
        ]
        for parts in zip_longest(*cells, fillvalue=""):
            lines.append("  " + "  ".join(c.ljust(w) for c, w in zip(parts, widths, strict=True)).rstrip())
    return "\n".join(lines)


def _markdown_of(block: Block) -> str:
    if isinstance(block, str):
        return _cell(block)
    table = block if isinstance(block, Table) else Table([n for n, _ in block.columns], [[t for _, t in block.columns]])
    rows = [table.header, ["---"] * len(table.header), *table.rows]
    return "\n".join("| " + " | ".join(c if c == "---" else _cell(c) for c in row) + " |" for row in rows)


def _cell(text: str) -> str:
    """Text that means nothing to Markdown nor to HTML inside it."""
    safe = html.escape(clean(text), quote=False)
    for mark in "\\`*_[]|#~":
        safe = safe.replace(mark, f"\\{mark}")
    return safe.replace("\n", "<br>")


def _html_of(block: Block) -> str:
    if isinstance(block, str):
        return f"<p>{html.escape(clean(block))}</p>"
    table = block if isinstance(block, Table) else Table([n for n, _ in block.columns], [[t for _, t in block.columns]])
    head = "".join(f"<th>{html.escape(clean(c))}</th>" for c in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(clean(c))}</td>" for c in row) + "</tr>" for row in table.rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
