"""Configuration files: strict YAML in, resolved YAML out.

It knows syntax only: every scalar stays the text the user wrote, so the command line's own parser gives it its
type. Its one invariant: no tag, no alias bomb and no double key gets through, and nothing in a file can run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from finetwo.core.errors import InputError
from finetwo.core.files import replace_file, require_file

_MAX_BYTES, _MAX_ALIASES, _MAX_DEPTH = 1 << 20, 100, 20


@dataclass(frozen=True)
class Setting:
    """One value of a configuration file: its dotted name, its text or texts, and where it stands."""

    name: str
    value: str | list[str]
    where: str


def read_settings(path: Path) -> list[Setting]:
    """Return the settings of a YAML file, nested keys dotted; null values are left out.

    Raises InputError with file:line:column for bad syntax, tags, double keys and anything that is not a mapping.
    """
    size = require_file(path)
    if size > _MAX_BYTES:
        raise InputError(str(path), f"larger than {_MAX_BYTES:,} bytes: not a configuration", size)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as e:
        raise InputError(str(path), f"not UTF-8 at byte {e.start}") from None
    try:
        aliases = sum(isinstance(t, yaml.AliasToken) for t in yaml.scan(text, Loader=yaml.BaseLoader))
        if aliases > _MAX_ALIASES:
            raise InputError(str(path), f"too many aliases (limit {_MAX_ALIASES})", aliases)
        node = yaml.compose(text, Loader=yaml.BaseLoader)
    except yaml.MarkedYAMLError as e:
        mark = e.problem_mark
        line = text.splitlines()[mark.line].strip() if mark and mark.line < len(text.splitlines()) else ""
        where = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise InputError(where, f"not valid YAML: {e.problem}", line) from None
    except (yaml.YAMLError, RecursionError) as e:
        raise InputError(str(path), f"not valid YAML: {type(e).__name__}") from None
    if node is None:
        return []
    return _flatten(path, node, "", 0)


def _at(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}:{node.start_mark.column + 1}"


def _plain(path: Path, node: yaml.Node) -> None:
    if not str(node.tag).startswith("tag:yaml.org,2002:") or str(node.tag).startswith("tag:yaml.org,2002:python"):
        raise InputError(_at(path, node), "tag not allowed", str(node.tag), "write plain values")


def _flatten(path: Path, node: yaml.Node, prefix: str, depth: int) -> list[Setting]:
    _plain(path, node)
    if depth > _MAX_DEPTH:
        raise InputError(_at(path, node), f"nested deeper than {_MAX_DEPTH} levels")
    if isinstance(node, yaml.MappingNode):
        found: list[Setting] = []
        seen: dict[str, int] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or not key.value:
                raise InputError(_at(path, key), "a key must be a name")
            if key.value in seen:
                raise InputError(
                    _at(path, key),
                    f"the key {key.value} stands already in line {seen[key.value]}",
                    None,
                    "keep one of them",
                )
            seen[key.value] = key.start_mark.line + 1
            found += _flatten(path, value, f"{prefix}.{key.value}" if prefix else key.value, depth + 1)
        return found
    if not prefix:
        got = "a list" if isinstance(node, yaml.SequenceNode) else node.value
        raise InputError(
            _at(path, node), "a configuration must be a mapping of names to values", got, "write name: value"
        )
    if isinstance(node, yaml.SequenceNode):
        parts = [n.value for n in node.value if isinstance(n, yaml.ScalarNode)]
        if len(parts) != len(node.value):
            raise InputError(_at(path, node), f"{prefix} must be a list of plain values")
        return [Setting(prefix, parts, _at(path, node))]
    text = str(node.value)
    if text in ("null", "~", "") and getattr(node, "style", None) is None:
        return []
    return [Setting(prefix, text, _at(path, node))]


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write plain nested values as YAML, durably; the same content gives the same bytes."""
    text = yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True, default_flow_style=False)
    replace_file(path, text.encode("utf-8"))
