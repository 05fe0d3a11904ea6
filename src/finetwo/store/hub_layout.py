"""Which files of a hub's data set are which split: by its card's configurations, or by the names of files and folders.

It knows names and the text of a card, and must not know a hub or a disk. Its one invariant: every file it chooses is
in the list of files it was given, and nothing of the data set is run to find it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from finetwo.core.errors import InputError
from finetwo.data.folders import SPLITS, is_data_file, split_of

CARD = "README.md"
"""The file whose head names the configurations."""
Splits = dict[str, list[str]]
"""File names by split, in the order in which they are read."""

_MAX_CARD, _MAX_ALIASES = 1 << 20, 100
_PLAIN = re.compile(r"[^/\\\x00-\x1f]{1,200}")
_NO_DATA = {"dataset_infos.json", "dataset_info.json", "dataset_dict.json", "state.json", "config.json"}
_SCRIPT = "this data set is a program, and programs of a hub are never run"


def data_files(names: Sequence[str]) -> list[str]:
    """The names that can be data, in order; hidden files, cards and names that lead elsewhere are left out."""
    return [n for n in sorted(names) if _is_safe(n) and is_data_file(n) and n.rpartition("/")[2] not in _NO_DATA]


def _is_safe(name: str) -> bool:
    return all(_PLAIN.fullmatch(part) and not part.startswith(".") for part in name.split("/"))


def choose(names: Sequence[str], card: str, config: str | None, where: str) -> Splits:
    """Return the files of configuration `config` (None: the one there is) by split: train, validation, test.

    Splits of other names are there too, under their own names; it is the caller's to say that they are not used.

    Raises:
        InputError: no data, only a program, no such configuration or several of them (lists them), a pattern that
            matches nothing or leads elsewhere.
    """
    data = data_files(names)
    configs = read_configs(card, where)
    if configs:
        return _by_card(data, configs, config, where)
    repo = where.partition("@")[0]
    scripts = [n for n in sorted(names) if n == f"{repo.rpartition('/')[2]}.py" or (not data and n.endswith(".py"))]
    if scripts:
        fix = f"hub:{repo}@refs/convert/parquet names the hub's own copy as Parquet, if there is one"
        raise InputError(where, _SCRIPT, scripts[0], fix)
    if not data:
        seen = ", ".join(sorted(names)[:5]) or "no files"
        what = "holds no data that can be read (JSON, JSONL, CSV, TSV, text, Parquet, Arrow)"
        raise InputError(where, what, seen, "download it, and write its records as JSON lines")
    return _by_names(data, config, where)


def read_configs(card: str, where: str) -> list[dict[str, Any]]:
    """Return the `configs` of a card's YAML head, [] without one; InputError for a head that is not plain YAML."""
    parts = re.split(r"(?m)^---[ \t]*\r?$", card.removeprefix("\ufeff")[:_MAX_CARD], maxsplit=2)
    if len(parts) < 3 or parts[0].strip():
        return []
    try:
        aliases = sum(isinstance(t, yaml.AliasToken) for t in yaml.scan(parts[1], Loader=yaml.SafeLoader))
        head = yaml.safe_load(parts[1]) if aliases <= _MAX_ALIASES else None
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        what = f"its head is not plain YAML: {type(error).__name__}"
        raise InputError(f"{where}: {CARD}", what, fix="give another revision, or download its files") from None
    configs = head.get("configs") if isinstance(head, dict) else None
    found = [c for c in configs if isinstance(c, dict) and "config_name" in c] if isinstance(configs, list) else []
    return [c for c in found if c.get("data_files") or c.get("data_dir")]


def _by_card(data: list[str], configs: list[dict[str, Any]], config: str | None, where: str) -> Splits:
    named = {str(c["config_name"]): c for c in configs}
    if config is None:
        marked = [name for name, c in named.items() if c.get("default") is True]
        chosen = next((n for n in (*marked, "default") if n in named), next(iter(named)) if len(named) == 1 else None)
    else:
        chosen = config if config in named else None
    if chosen is None:
        raise _which(list(named), config, where)
    entry, folder = named[chosen], str(named[chosen].get("data_dir") or "").strip("/")
    patterns = entry.get("data_files")
    if patterns is None:
        return _by_words([n for n in data if n.startswith(f"{folder}/")], where)
    if not isinstance(patterns, list) or not all(isinstance(p, dict) for p in patterns):
        patterns = [{"split": "train", "path": patterns}]
    found: Splits = {}
    for entry in patterns:
        paths = entry.get("path")
        for path in paths if isinstance(paths, list) else [paths]:
            full = f"{folder}/{path}" if folder else str(path).removeprefix("./")
            matches = [n for n in data if _pattern(full).fullmatch(n)]
            if not matches:
                what = f"{CARD} names files that are not there, or that cannot be read"
                raise InputError(where, what, full, "give another configuration or revision")
            split = split_of(str(entry.get("split"))) or str(entry.get("split"))
            known = found.setdefault(split, [])
            known += [n for n in matches if n not in known]
    return found


def _pattern(text: str) -> re.Pattern[str]:
    """A file pattern as a regular expression: ** is any path, * and ? stay within one name."""
    out = ""
    for piece in re.split(r"(\*\*/|\*\*|\*|\?|\[[\w-]+\])", text):
        known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        out += known.get(piece) or (piece if re.fullmatch(r"\[[\w-]+\]", piece) else re.escape(piece))
    return re.compile(out)


def _by_names(data: list[str], config: str | None, where: str) -> Splits:
    """Without a card: what lies in the folder of the configuration, or else at the top or in data/."""
    top = {n: n.split("/")[0] for n in data if "/" in n}
    folders = sorted({f for f in top.values() if f != "data" and split_of(f.removeprefix("partial-")) is None})
    if config is not None:
        inside = [n for n in data if n.startswith(f"{config}/")]
        if not inside:
            raise _which(folders, config, where)
        return _by_words(inside, where, len(config) + 1)
    plain = [n for n in data if top.get(n) not in folders]
    if plain:
        return _by_words(plain, where)
    if len(folders) > 1:
        raise _which(folders, None, where)
    return _by_words(data, where, len(folders[0]) + 1)


def _by_words(data: list[str], where: str, start: int = 0) -> Splits:
    """Share out files by the split that a word of their name, or else of their folder, stands for; else all train."""
    found: Splits = {}
    for name in data:
        *folders, last = name[start:].split("/")
        words = [w for part in (last, *reversed(folders)) for w in re.split(r"[\W\d_]+", part)]
        split = next((s for w in words if (s := split_of(w)) is not None), None)
        found.setdefault(split or "", []).append(name)
    rest = found.pop("", [])
    if not found and not rest:
        raise InputError(where, "the configuration holds no data that can be read", fix="give another one")
    return found | ({"other files": rest} if rest else {}) if found else {"train": rest}


def _which(known: list[str], config: str | None, where: str) -> InputError:
    """The error for a configuration that must be named, or is not there."""
    name, at, revision = where.partition("@")
    listed = ", ".join(known[:30]) + (f" and {len(known) - 30} more" if len(known) > 30 else "")
    if config is None:
        return InputError(where, f"has several configurations: {listed}", fix=f"hub:{name}/{known[0]}{at}{revision}")
    if not known:
        return InputError(where, "has no configurations", config, f"leave it out: hub:{name}{at}{revision}")
    fix = f"hub:{name}/{known[0]}{at}{revision}"
    return InputError(where, f"no such configuration; there are {listed}", config, fix)


__all__ = ["CARD", "SPLITS", "Splits", "choose", "data_files", "read_configs"]
