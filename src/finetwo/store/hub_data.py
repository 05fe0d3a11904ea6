"""Where the name of a data set becomes a local path: `hub:OWNER/NAME[/CONFIGURATION][@REVISION]`, or a path as it is.

It knows the hub's cache and must not know what is in a data file: those are read as a user's own are, so that no
program of a data set runs and no second copy is made. Its one invariant: the folder it returns is one commit, whole
and checked, laid out as `find_files` reads it (train-00000-of-00002.parquet, ...).
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.core.files import TEMPORARY, faults, fsync_dir, replace_file
from finetwo.data.folders import FORMATS, SPLITS
from finetwo.data.opening import PACKED, TABLES
from finetwo.store.download import Source, fetch_all, is_offline, is_repository_name, list_files
from finetwo.store.hub_layout import CARD, Splits, choose, data_files

PREFIX = "hub:"
"""What the name of a hub's data set begins with; a local file of such a name is given as ./hub:..."""

_SYNTAX = "write hub:OWNER/NAME, hub:OWNER/NAME/CONFIGURATION or hub:OWNER/NAME@REVISION"
_REMEDY = "or give a local file or folder"
_MOVED: Mapping[str, str] = {
    "ag_news": "fancyzhx/ag_news",
    "emotion": "dair-ai/emotion",
    "glue": "nyu-mll/glue",
    "imdb": "stanfordnlp/imdb",
    "rotten_tomatoes": "cornell-movie-review-data/rotten_tomatoes",
    "super_glue": "aps/super_glue",
    "wikitext": "Salesforce/wikitext",
}
"""Data sets that had no owner once, and are known by that name."""
_ENDINGS = {*FORMATS, *TABLES, *PACKED}
_COMMIT = re.compile(r"[0-9a-f]{40}")
_log = logging.getLogger("finetwo")


@dataclass(frozen=True)
class HubName:
    """The parts of a name such as hub:nyu-mll/glue/rte@main."""

    repo: str
    config: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Read `text`; InputError says how to write it."""
        path, at, revision = text.removeprefix(PREFIX).partition("@")
        owner, _, rest = path.partition("/")
        name, slash, config = rest.partition("/")
        if owner in _MOVED and (not rest or not slash):
            inside = f"/{rest}" if rest else ""
            raise InputError(text, "a data set of the hub has an owner", fix=f"{PREFIX}{_MOVED[owner]}{inside}")
        parts = [*config.split("/"), *revision.split("/")]
        plain = all(re.fullmatch(r"[^\x00-\x1f\\]{1,200}", part) and part != ".." for part in parts if part)
        whole = "" not in revision.split("/") if at else True
        if not is_repository_name(f"{owner}/{name}") or "/" in config or bool(slash) != bool(config):
            raise InputError(text, "not the name of a data set of the hub", fix=_SYNTAX)
        if not plain or not whole:
            raise InputError(text, "not a possible configuration or revision", fix=_SYNTAX)
        return cls(f"{owner}/{name}", config or None, revision or None)


def data_path(data: str | os.PathLike[str], say: Callable[[str], None] = lambda _: None) -> Path:
    """Return the local path that `data` names: a path as it is, the folder of a hub's data set, fetched if need be.

    HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN are honoured. `say` takes what was chosen.

    Raises:
        InputError: a name that nobody knows, a configuration that must be chosen, nothing in it that can be read,
            or only a program; with offline mode, what is not in the cache.
        EnvironmentFault: the network or the disk fails, or what arrived is not what was promised.
    """
    text = os.fspath(data)
    if not text.startswith(PREFIX):
        return Path(text)
    name = HubName.parse(text)
    source = Source.of("dataset", name.repo, name.revision, _REMEDY)
    if is_offline("dataset"):
        folder = _kept(source, name)
        if folder is None:
            fix = f"unset HF_HUB_OFFLINE, {_REMEDY}"
            raise InputError(text, f"not in the cache {source.cache}, and offline mode is on", fix=fix)
    else:
        try:
            folder = _download(source, name, say)
        except EnvironmentFault as error:
            folder = _kept(source, name)
            if folder is None:
                raise
            _log.warning("%s; using the copy in the cache", error.line())
    _describe(text, folder, say)
    return folder


def _describe(text: str, folder: Path, say: Callable[[str], None]) -> None:
    counts = {split: len(list(folder.glob(f"{split}-*"))) for split in SPLITS}
    found = ", ".join(f"{split} {count} file{'s' * (count > 1)}" for split, count in counts.items() if count)
    say(f"data: {text}, commit {folder.name[:12]}: {found}")


# --- the layout that is read ------------------------------------------------------------------------------------


def _views(source: Source, name: HubName) -> Path:
    """The folder of a configuration in the cache; beside the hub's own folders, so that it goes when they go."""
    return source.folder / "finetwo" / quote(name.config or "-", safe="")


def _kept(source: Source, name: HubName) -> Path | None:
    """The folder of an earlier download, if all of it is still there."""
    views = _views(source, name)
    note = views / f"{quote(source.revision or 'main', safe='')}.ref"
    commit = source.revision or ""
    with faults(note):
        if note.is_file():
            commit = note.read_text(encoding="ascii", errors="replace").strip()
        folder = views / commit
        if not _COMMIT.fullmatch(commit) or not folder.is_dir():
            return None
        links = list(folder.iterdir())
    return folder if links and all(link.exists() for link in links) else None


def _download(source: Source, name: HubName, say: Callable[[str], None]) -> Path:
    """Fetch what a configuration needs, all of one commit, and lay it out."""
    listing = list_files(source)
    if not _COMMIT.fullmatch(listing.commit):
        raise EnvironmentFault(
            source.where, f"{source.host} does not say which commit it holds", listing.commit, "check HF_ENDPOINT"
        )
    pinned = replace(source, revision=listing.commit)
    card = ""
    if CARD in listing.files and (listing.files[CARD].size or 0) <= 4 << 20:
        card = (fetch_all(pinned, listing.files, [CARD]) / CARD).read_bytes().decode("utf-8", "replace")
    splits = choose(list(listing.files), card, name.config, source.where)
    wanted = {split: splits[split] for split in SPLITS if split in splits}
    if not wanted:
        fix = "give a configuration or a revision that has one"
        raise InputError(source.where, "no split called train, validation or test", ", ".join(splits), fix)
    if unused := [split for split in splits if split not in wanted]:
        say(f"data: splits that are not used: {', '.join(unused)}")
    names = [file for files in wanted.values() for file in files]
    size = sum(listing.files[file].size or 0 for file in names)
    say(f"data: {len(names)} of {len(data_files(list(listing.files)))} data files, {size:,} bytes, from {source.host}")
    snapshot = fetch_all(pinned, listing.files, names)
    views = _views(source, name)
    with faults(views):
        folder = _lay_out(views, snapshot, wanted)
        replace_file(views / f"{quote(source.revision or 'main', safe='')}.ref", listing.commit.encode())
    return folder


def _linked(folder: Path) -> dict[str, str]:
    return {link.name: str(link.readlink()) for link in folder.iterdir()} if folder.is_dir() else {}


def _lay_out(views: Path, snapshot: Path, splits: Splits) -> Path:
    """Link the files of each split by the names that `find_files` knows; the folder is there whole or not at all."""
    folder = views / snapshot.name
    temporary = views / f"{TEMPORARY}{os.getpid()}-{snapshot.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for split, files in splits.items():
        for index, file in enumerate(files):
            ending = "".join(s for s in Path(file).suffixes[-2:] if s.lower() in _ENDINGS)
            link = temporary / f"{split}-{index:05}-of-{len(files):05}{ending}"
            link.symlink_to(os.path.relpath(snapshot / file, folder))
    if _linked(folder) == _linked(temporary):  # another run may be reading it
        shutil.rmtree(temporary)
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
    fsync_dir(views)
    return folder
