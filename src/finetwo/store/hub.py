"""The one place where names become local folders: `tiny`, a folder, a run, or a model of a hub.

It knows names, the hub's cache and which files a model has, and must not know what is in them. Its one invariant:
a local name never touches the network, and a folder it returns from the hub is one commit, whole and checked.
"""

from __future__ import annotations

import difflib
import hashlib
import logging
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError
from finetwo.core.files import fault, faults, free_bytes, read_json, sha256_file
from finetwo.store.local import (
    CONFIGS,
    EMBEDDED,
    INDEX,
    LEGACY,
    SHORT_NAMES,
    SUPPLY,
    WEIGHTS,
    embedded_folder,
    local_folder,
    refuse_legacy,
)

_OTHERS = (
    "generation_config.json",
    "special_tokens_map.json",
    "encoder.json",
    "vocab.bpe",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.json",
    "merges.txt",
)
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_SHARD = re.compile(r"[\w][\w.-]{0,200}\.safetensors", re.ASCII)
_log = logging.getLogger("finetwo")


def resolve(name: str, revision: str | None = None) -> Path:
    """Return the local folder of model `name`: `tiny`, a folder or run folder, a short name, or `owner/name` of a hub.

    A model of the hub is downloaded if need be (HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE, HF_TOKEN are honoured).
    Raises InputError for a name nobody knows or a folder without a model, EnvironmentFault where the network fails.
    """
    name = os.fspath(name)
    local = embedded_folder() if name == EMBEDDED else local_folder(name)
    if local is not None:
        if revision is not None:
            raise InputError(name, "a revision is only for a model of the hub", revision)
        return local
    repo = SHORT_NAMES.get(name, name)
    if not _REPO.fullmatch(repo) or ".." in repo:
        near = difflib.get_close_matches(name, [EMBEDDED, *SHORT_NAMES], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError("--model", "unknown model", name, f"{hint}{_known()}, owner/name of the hub; or {SUPPLY}")
    return _from_hub(_Source(repo, revision, _cache_folder(), _endpoint()))


def _known() -> str:
    return f"known are {', '.join([EMBEDDED, *SHORT_NAMES])}"


# --- the hub ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """One model of a hub: repository, revision, and the cache and server it is looked for in."""

    repo: str
    revision: str | None
    cache: Path
    endpoint: str

    @property
    def where(self) -> str:
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def host(self) -> str:
        return urlsplit(self.endpoint).hostname or self.endpoint


def _cache_folder() -> Path:
    """Return the hub's cache as its own library finds it, but from the environment of now, not of its import."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _offline() -> bool:
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE") or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def _from_hub(source: _Source) -> Path:
    """Return the folder of `source`: from the hub, or from the cache when offline or the network fails."""
    if _offline():
        folder = _cached(source)
        if folder is None:
            fix = f"unset HF_HUB_OFFLINE; {_known()}; or {SUPPLY}"
            raise InputError(source.where, f"not in the cache {source.cache}, and offline mode is on", fix=fix)
        return folder
    try:
        return _download(source)
    except EnvironmentFault as error:
        folder = _cached(source)
        if folder is None:
            raise
        _log.warning("%s; using the copy in the cache", error.line())
        return folder


def _cached(source: _Source) -> Path | None:
    """Return the cached folder of `source` if it is whole."""
    from huggingface_hub import try_to_load_from_cache

    for name in CONFIGS:
        found = try_to_load_from_cache(source.repo, name, cache_dir=source.cache, revision=source.revision)
        if isinstance(found, str):
            folder = Path(found).parent
            shards = _shards(folder / INDEX, None) if (folder / INDEX).exists() else []
            whole = any((folder / weights).exists() for weights in WEIGHTS)
            return folder if whole and all((folder / shard).exists() for shard in shards) else None
    return None


def _download(source: _Source) -> Path:
    """Bring the files of `source` that a model needs into the cache, and return their folder."""
    siblings = _siblings(source)
    wanted = [name for name in (*CONFIGS, *_OTHERS, "finetwo.json") if name in siblings]
    weights = [name for name in WEIGHTS if name in siblings]
    if not set(wanted) & set(CONFIGS):
        raise InputError(source.where, f"holds no model: tried {' and '.join(CONFIGS)}")
    if not weights:
        for name in LEGACY:
            if name in siblings:
                refuse_legacy(source.where, name)
        raise InputError(source.where, f"holds no weights: tried {', '.join(WEIGHTS)}")
    folder = _fetch_all(source, siblings, wanted)
    if weights[0] == INDEX:
        _fetch_all(source, siblings, [INDEX])
        weights = [INDEX, *_shards(folder / INDEX, siblings)]
    elif INDEX in weights:
        weights.remove(INDEX)
    again = _fetch_all(source, siblings, weights)
    if again != folder:
        raise EnvironmentFault(source.where, "the model changed while it was downloaded", fix="try again")
    return folder


def _siblings(source: _Source) -> dict[str, Any]:
    """Return the repository's files by name, each with `size`, `blob_id` and `lfs` as far as the hub tells."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(endpoint=source.endpoint)
        info = api.model_info(source.repo, revision=source.revision, files_metadata=True, timeout=20)
    except Exception as error:  # the library lets through errors of its HTTP client, which it changes
        raise _hub_error(source, error) from error
    return {file.rfilename: file for file in info.siblings or ()}


def _shards(index: Path, siblings: Mapping[str, Any] | None) -> list[str]:
    """Return the shard files that an index names; raise InputError for a path or a name the hub lacks."""
    table = read_json(index)
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(str(index), "must hold a weight_map of tensor names to files")
    shards = sorted(set(names.values()))
    for shard in shards:
        if not _SHARD.fullmatch(shard):
            raise InputError(str(index), "refused: a shard must be a plain .safetensors name", shard)
        if siblings is not None and shard not in siblings:
            raise InputError(str(index), "names a shard that is missing", shard)
    return shards


def _fetch_all(source: _Source, siblings: Mapping[str, Any], names: Iterable[str]) -> Path:
    """Fetch `names` into the cache and return the one folder they lie in."""
    from huggingface_hub import try_to_load_from_cache

    names = list(names)
    missing = [n for n in names if not isinstance(_cached_file(try_to_load_from_cache, source, n), str)]
    needed, free = sum(siblings[name].size or 0 for name in missing), free_bytes(source.cache)
    if needed > free:
        got = f"needed {needed:,} bytes, free {free:,} bytes"
        raise EnvironmentFault(str(source.cache), f"too little disk to download {source.where}", got, "set HF_HOME")
    folders = {_fetch(source, siblings[name], name in missing) for name in names}
    if len(folders) != 1:
        raise EnvironmentFault(source.where, "the model changed while it was downloaded", fix="try again")
    return folders.pop()


def _cached_file(lookup: Any, source: _Source, name: str) -> object:
    return lookup(source.repo, name, cache_dir=source.cache, revision=source.revision)


def _fetch(source: _Source, sibling: Any, new: bool) -> Path:
    """Fetch one file and return its folder; one that is new is checked against the hash the hub tells."""
    from huggingface_hub import hf_hub_download

    name, where = sibling.rfilename, f"{source.where}: {sibling.rfilename}"
    try:
        path = Path(
            hf_hub_download(
                source.repo, name, revision=source.revision, cache_dir=source.cache, endpoint=source.endpoint
            )
        )
    except Exception as error:  # as above: the HTTP client's errors come through
        raise _hub_error(source, error, name) from error
    expected, got = _hashes(path, sibling) if new else (None, None)
    if expected != got:
        blob = path.resolve()
        for file in (path, blob):
            file.unlink(missing_ok=True)
        what = f"download is damaged: expected hash {str(expected)[:12]}; removed it"
        raise EnvironmentFault(where, what, str(got)[:12], "try again")
    return path.parent


def _hashes(path: Path, sibling: Any) -> tuple[str | None, str | None]:
    """Return the hash the hub tells for a file and the one it has: SHA-256, or git's blob id for a small file."""
    if sibling.lfs is not None:
        return sibling.lfs.sha256, sha256_file(path)
    if sibling.blob_id is None:
        return None, None
    with faults(path), path.open("rb") as file:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        shutil.copyfileobj(file, _Digest(digest))
    return sibling.blob_id, digest.hexdigest()


class _Digest:
    """A hash that can be written to."""

    def __init__(self, digest: Any) -> None:
        self.write = digest.update


def _hub_error(source: _Source, error: Exception, file: str = "") -> FineTwoError:
    """Return the one-line error for what the library raised; its own text may hold addresses and is not shown."""
    from huggingface_hub import errors

    where = f"{source.where}: {file}" if file else source.where
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return InputError(where, f"{source.host} asks for permission to read this model", fix="set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(where, f"{source.host} knows no such revision", source.revision)
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        return InputError(where, f"{source.host} knows no such model", status, f"{_known()}; or {SUPPLY}")
    if isinstance(error, errors.HFValidationError):
        return InputError(where, "not a possible name of a model", source.repo)
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
    if isinstance(cause, Exception):
        return _hub_error(source, cause, file)
    if isinstance(error, errors.EntryNotFoundError) or status == 404:
        return InputError(where, f"{source.host} has no such file", status)
    if status is not None:
        return EnvironmentFault(where, f"{source.host} failed", f"HTTP {status}", "try again later")
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return fault(error, Path(os.fsdecode(error.filename)))
    fix = f"check the network; {_known()}; or {SUPPLY}"
    return EnvironmentFault(where, f"{source.host} cannot be reached or broke off", type(error).__name__, fix)
