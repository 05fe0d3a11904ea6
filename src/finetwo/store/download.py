"""Files of a hub's repository, brought into its cache: whole, checked, and the only place that speaks to a hub.

It knows repositories, revisions and hashes, and must not know what a file is for. Its one invariant: a file it brought
has the hash that the hub told, and whatever goes wrong on the way is one line that holds no address and no token.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal
from urllib.parse import urlsplit

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError
from finetwo.core.files import fault, faults, free_bytes, sha256_file

Kind = Literal["model", "dataset"]
"""What a repository holds; a hub keeps the names of the two apart."""

_NOUNS = {"model": "model", "dataset": "data set"}
_OFFLINE = {"model": "TRANSFORMERS_OFFLINE", "dataset": "HF_DATASETS_OFFLINE"}
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)


def is_repository_name(name: str) -> bool:
    """Whether `name` can be an owner/name of a hub."""
    return bool(_REPO.fullmatch(name)) and ".." not in name


@dataclass(frozen=True)
class Source:
    """One repository of a hub: its name and revision, and the cache and server it is looked for in."""

    kind: Kind
    repo: str
    revision: str | None
    cache: Path
    endpoint: str
    remedy: str
    """What a person can do who cannot get it."""

    @classmethod
    def of(cls, kind: Kind, repo: str, revision: str | None, remedy: str) -> Source:
        """The repository as the environment of now says where it is (HF_HOME, HF_HUB_CACHE, HF_ENDPOINT)."""
        return cls(kind, repo, revision, _cache_folder(), _endpoint(), remedy)

    @property
    def where(self) -> str:
        """The name to show."""
        return self.repo if self.revision is None else f"{self.repo}@{self.revision}"

    @property
    def host(self) -> str:
        """The server's name."""
        return urlsplit(self.endpoint).hostname or self.endpoint

    @property
    def noun(self) -> str:
        """What it is, in words."""
        return _NOUNS[self.kind]

    @property
    def folder(self) -> Path:
        """Where the cache keeps this repository."""
        return self.cache / f"{self.kind}s--{self.repo.replace('/', '--')}"


@dataclass(frozen=True)
class Listing:
    """The files of one commit by name, each with `size`, `blob_id` and `lfs` as far as the hub tells."""

    commit: str
    files: Mapping[str, Any]


def _cache_folder() -> Path:
    """Return the hub's cache as its own library finds it, but from the environment of now, not of its import."""
    if cache := os.environ.get("HF_HUB_CACHE"):
        return Path(cache).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "huggingface" / "hub"


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def is_offline(kind: Kind) -> bool:
    """Whether the environment forbids the network for this kind of repository."""
    value = os.environ.get("HF_HUB_OFFLINE") or os.environ.get(_OFFLINE[kind]) or ""
    return value.upper() in ("1", "ON", "YES", "TRUE")


def list_files(source: Source) -> Listing:
    """Ask the hub for the files of `source`; InputError where it knows no such thing, else EnvironmentFault."""
    from huggingface_hub import HfApi

    try:
        api = HfApi(endpoint=source.endpoint)
        ask: Any = api.model_info if source.kind == "model" else api.dataset_info
        info = ask(source.repo, revision=source.revision, files_metadata=True, timeout=20)
    except Exception as error:  # the library lets through errors of its HTTP client, which it changes
        raise _hub_error(source, error) from error
    return Listing(info.sha or "", {file.rfilename: file for file in info.siblings or ()})


def cached_file(source: Source, name: str) -> Path | None:
    """Return where the cache has the file `name` of `source`, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(
        source.repo, name, cache_dir=source.cache, revision=source.revision, repo_type=source.kind
    )
    return Path(found) if isinstance(found, str) else None


def fetch_all(source: Source, files: Mapping[str, Any], names: Iterable[str]) -> Path:
    """Fetch `names` into the cache and return the one folder that they are named from."""
    names = list(names)
    missing = [name for name in names if cached_file(source, name) is None]
    needed, free = sum(files[name].size or 0 for name in missing), free_bytes(source.cache)
    if needed > free:
        got = f"needed {needed:,} bytes, free {free:,} bytes"
        raise EnvironmentFault(str(source.cache), f"too little disk to download {source.where}", got, "set HF_HOME")
    folders = {_fetch(source, files[name], name in missing) for name in names}
    if len(folders) != 1:
        raise changed(source)
    return folders.pop()


def changed(source: Source) -> EnvironmentFault:
    """The error for a repository that is another commit than a moment ago."""
    return EnvironmentFault(source.where, f"the {source.noun} changed while it was downloaded", fix="try again")


def _fetch(source: Source, file: Any, new: bool) -> Path:
    """Fetch one file and return the folder it is named from; a new one is checked against the hash the hub tells."""
    from huggingface_hub import hf_hub_download

    name, where = file.rfilename, f"{source.where}: {file.rfilename}"
    try:
        path = Path(
            hf_hub_download(
                source.repo,
                name,
                revision=source.revision,
                repo_type=source.kind,
                cache_dir=source.cache,
                endpoint=source.endpoint,
            )
        )
    except Exception as error:  # as above: the HTTP client's errors come through
        raise _hub_error(source, error, name) from error
    expected, got = _hashes(path, file) if new else (None, None)
    if expected != got:
        blob = path.resolve()
        for damaged in (path, blob):
            damaged.unlink(missing_ok=True)
        what = f"download is damaged: expected hash {str(expected)[:12]}; removed it"
        raise EnvironmentFault(where, what, str(got)[:12], "try again")
    return path.parents[len(PurePosixPath(name).parts) - 1]


def _hashes(path: Path, file: Any) -> tuple[str | None, str | None]:
    """Return the hash the hub tells for a file and the one it has: SHA-256, or git's blob id for a small file."""
    if file.lfs is not None:
        return file.lfs.sha256, sha256_file(path)
    if file.blob_id is None:
        return None, None
    with faults(path), path.open("rb") as content:
        digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
        shutil.copyfileobj(content, _Digest(digest))
    return file.blob_id, digest.hexdigest()


class _Digest:
    """A hash that can be written to."""

    def __init__(self, digest: Any) -> None:
        self.write = digest.update


def _hub_error(source: Source, error: Exception, file: str = "") -> FineTwoError:
    """Return the one-line error for what the library raised; its own text may hold addresses and is not shown."""
    from huggingface_hub import errors

    where = f"{source.where}: {file}" if file else source.where
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.GatedRepoError) or status == 403:
        return InputError(where, f"{source.host} asks for permission to read this {source.noun}", fix="set HF_TOKEN")
    if isinstance(error, errors.RevisionNotFoundError):
        return InputError(
            where, f"{source.host} knows no such revision", source.revision, "give a branch, tag or commit"
        )
    if isinstance(error, errors.RepositoryNotFoundError) or status == 401:
        fix = f"check the name, and HF_TOKEN if it is private; {source.remedy}"
        return InputError(where, f"{source.host} knows no such {source.noun}", status, fix)
    if isinstance(error, errors.HFValidationError):
        return InputError(where, f"not a possible name of a {source.noun}", source.repo, "it is OWNER/NAME")
    cause = error.__cause__ if isinstance(error, errors.LocalEntryNotFoundError) else None
    if isinstance(cause, Exception):
        return _hub_error(source, cause, file)
    if isinstance(error, errors.EntryNotFoundError) or status == 404:
        return InputError(where, f"{source.host} has no such file", status, source.remedy)
    if status is not None:
        return EnvironmentFault(where, f"{source.host} failed", f"HTTP {status}", "try again later")
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        return fault(error, Path(os.fsdecode(error.filename)))
    fix = f"check the network; {source.remedy}"
    return EnvironmentFault(where, f"{source.host} cannot be reached or broke off", type(error).__name__, fix)
