"""The one place where names become local folders: `tiny`, a folder, a run, or a model of a hub.

It knows names and which files a model has, and must not know what is in them. Its one invariant: a local name never
touches the network, and a folder it returns from the hub is one commit, whole and checked.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.core.files import read_json
from finetwo.store.download import Source, cached_file, changed, fetch_all, is_offline, is_repository_name, list_files
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
    if not is_repository_name(repo):
        near = difflib.get_close_matches(name, [EMBEDDED, *SHORT_NAMES], n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise InputError("--model", "unknown model", name, f"{hint}{_known()}, owner/name of the hub; or {SUPPLY}")
    return _from_hub(Source.of("model", repo, revision, f"{_known()}; or {SUPPLY}"))


def _known() -> str:
    return f"known are {', '.join([EMBEDDED, *SHORT_NAMES])}"


# --- the hub ----------------------------------------------------------------------------------------------------


def _from_hub(source: Source) -> Path:
    """Return the folder of `source`: from the hub, or from the cache when offline or the network fails."""
    if is_offline(source.kind):
        folder = _cached(source)
        if folder is None:
            fix = f"unset HF_HUB_OFFLINE; {source.remedy}"
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


def _cached(source: Source) -> Path | None:
    """Return the cached folder of `source` if it is whole."""
    for name in CONFIGS:
        found = cached_file(source, name)
        if found is not None:
            folder = found.parent
            shards = _shards(folder / INDEX, None) if (folder / INDEX).exists() else []
            whole = any((folder / weights).exists() for weights in WEIGHTS)
            return folder if whole and all((folder / shard).exists() for shard in shards) else None
    return None


def _download(source: Source) -> Path:
    """Bring the files of `source` that a model needs into the cache, and return their folder."""
    files = list_files(source).files
    wanted = [name for name in (*CONFIGS, *_OTHERS, "finetwo.json") if name in files]
    weights = [name for name in WEIGHTS if name in files]
    if not set(wanted) & set(CONFIGS):
        raise InputError(source.where, f"holds no model: tried {' and '.join(CONFIGS)}")
    if not weights:
        for name in LEGACY:
            if name in files:
                refuse_legacy(source.where, name)
        raise InputError(source.where, f"holds no weights: tried {', '.join(WEIGHTS)}")
    folder = fetch_all(source, files, wanted)
    if weights[0] == INDEX:
        fetch_all(source, files, [INDEX])
        weights = [INDEX, *_shards(folder / INDEX, files)]
    elif INDEX in weights:
        weights.remove(INDEX)
    if fetch_all(source, files, weights) != folder:
        raise changed(source)
    return folder


def _shards(index: Path, files: Mapping[str, Any] | None) -> list[str]:
    """Return the shard files that an index names; raise InputError for a path or a name the hub lacks."""
    table = read_json(index)
    names = table.get("weight_map") if isinstance(table, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise InputError(str(index), "must hold a weight_map of tensor names to files")
    shards = sorted(set(names.values()))
    for shard in shards:
        if not _SHARD.fullmatch(shard):
            raise InputError(str(index), "refused: a shard must be a plain .safetensors name", shard)
        if files is not None and shard not in files:
            raise InputError(str(index), "names a shard that is missing", shard)
    return shards
