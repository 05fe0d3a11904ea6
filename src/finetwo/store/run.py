"""The run folder: who may write there, and what lies where.

It knows names, the lock and the log of metrics, and must not know how training works. Its one invariant: while it
is open, this process alone writes there, and nothing that was there before is lost.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError, shown
from finetwo.core.files import (
    TEMPORARY,
    existing_parent,
    fault,
    faults,
    free_bytes,
    fsync_dir,
    replacing,
    write_json,
)
from finetwo.core.locks import FolderLock
from finetwo.store.checkpoint import list_checkpoints, remove_stale

LOCK = "run.lock"
MARKER = "finetwo-run.json"
CACHE = "tokens"
_NO_WORK = {LOCK, MARKER, CACHE, "config.yaml", "metrics.jsonl", "environment.json"}
_log = logging.getLogger("finetwo")


def is_run_folder(path: Path) -> bool:
    """Return whether `path` is a run folder: it holds our marker, or a configuration beside results of ours."""
    if (path / MARKER).is_file():
        return True
    has_config = (path / "config.yaml").is_file()
    return has_config and ((path / "metrics.jsonl").is_file() or bool(list_checkpoints(path)))


def is_model_folder(path: Path) -> bool:
    """Return whether `path` holds the configuration of a model or of an adapter."""
    return (path / "config.json").is_file() or (path / "adapter_config.json").is_file()


def model_folder_of_run(path: Path) -> Path:
    """Return the model a run made: `best/`, else `final/`; raise InputError where there is none yet."""
    for name in ("best", "final"):
        if is_model_folder(path / name):
            return path / name
    raise InputError(str(path), "this run has no model yet, neither best/ nor final/", fix="let the run finish")


class RunFolder:
    """A run folder held by this process; make it with `RunFolder.open`, end it with `close` or a with block."""

    def __init__(self, path: Path, lock: FolderLock, fresh: bool, made: Sequence[Path] = ()) -> None:
        self.path, self.fresh, self._made = path, fresh, made or (path,)
        self._lock: FolderLock | None = lock
        self.final, self.best = path / "final", path / "best"
        self.config, self.metrics = path / "config.yaml", path / "metrics.jsonl"

    @classmethod
    def open(cls, path: Path, needed_bytes: int = 0, inputs: Sequence[Path] = ()) -> RunFolder:
        """Take the run folder `path`, made if missing, and clear what dead writers left in it.

        `needed_bytes` is what the run will write; `inputs` are files and folders it reads. Raises InputError where
        the name cannot be, is a file, is a folder that is no run, lies in or is an input, or is held by another
        process; EnvironmentFault for a missing permission or too little room. Then nothing has been written.
        """
        path = Path(path)
        _check_name(path)
        _check_place(path, inputs)
        free = free_bytes(path)
        if free < needed_bytes:
            got = f"needed {needed_bytes:,} bytes, free {free:,} bytes"
            raise EnvironmentFault(str(path), "too little disk for the run and its checkpoints", got, "free some space")
        made = _make(path)
        try:
            _check_writable(path)
            lock = FolderLock(path / LOCK)
        except FineTwoError:
            _unmake(made)
            raise
        fresh = not is_run_folder(path)
        try:
            remove_stale(path)
            if fresh:
                write_json(path / MARKER, {"format": 1})
        except BaseException:
            lock.release()
            if fresh:
                _unmake(made)
            raise
        return cls(path, lock, fresh, made)

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint of `step`, whether or not it exists."""
        return self.path / f"checkpoint-{step}"

    def append_metrics(self, record: Mapping[str, object]) -> None:
        """Append one line of strict JSON to metrics.jsonl in one write; numbers that are not finite become null."""
        line = json.dumps(_finite(record), sort_keys=False, allow_nan=False).encode("ascii") + b"\n"
        with faults(self.metrics, len(line)):
            handle = os.open(self.metrics, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
            try:
                while line:
                    line = line[os.write(handle, line) :]
            finally:
                os.close(handle)

    def trim_metrics(self, step: int, undone: Collection[str] = ()) -> None:
        """Keep of metrics.jsonl the lines up to `step` (-1: none), atomically: what follows will be written again.

        Of `step` itself the events `undone` go too: they are still to come. A line without an integer "step" is kept
        unless `step` is -1; a torn last line goes.
        """
        if not self.metrics.exists():
            return
        with faults(self.metrics), self.metrics.open("rb") as old, replacing(self.metrics) as new:
            for line in old:
                if line.endswith(b"\n") and _belongs(line, step, undone):
                    new.write(line)

    def set_aside(self, say: Callable[[str], None]) -> None:
        """Move an earlier run's files into `previous-<n>/` inside the folder, so that a new start loses nothing."""
        everything = sorted(p.name for p in self.path.iterdir() if p.name not in (LOCK, MARKER, CACHE))
        names = [name for name in everything if not name.startswith("previous-")]
        if not any(n.startswith(("checkpoint-", "metrics")) or n in ("final", "best") for n in names):
            return
        number = 1 + len(everything) - len(names)
        target = self.path / f"previous-{number}"
        with faults(target):
            target.mkdir()
            for name in names:
                (self.path / name).rename(target / name)
            fsync_dir(self.path)
        say(f"the earlier run was moved to {target}")

    def close(self) -> None:
        """Give the lock back; a folder new with this run in which no step left anything is removed again."""
        if self._lock is None:
            return
        if self.fresh and _untouched(self.path):
            shutil.rmtree(self.path / CACHE, ignore_errors=True)
            for name in _NO_WORK - {LOCK}:
                with suppress(OSError):
                    (self.path / name).unlink()
            self._lock.release()
            _unmake(self._made)
        else:
            self._lock.release()
        self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


# --- checks -----------------------------------------------------------------------------------------------------


def _check_name(path: Path) -> None:
    """Refuse a name with control characters or a part too long for the file system."""
    where = shown(repr(str(path)), 100)
    if any(ord(c) < 32 or ord(c) == 127 for c in str(path)):
        raise InputError(where, "an output folder's name must not hold control characters", fix="choose a plain name")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    if longest > 255:
        raise InputError(where, "name is too long", f"{longest} bytes", "at most 255 bytes between two slashes")


def _check_place(path: Path, inputs: Sequence[Path]) -> None:
    """Refuse a file, a foreign folder, and a place inside an input."""
    if path.is_symlink() and not path.exists():
        raise InputError(str(path), "output is a link to nothing", fix="remove it or choose another --out")
    if path.exists() and not path.is_dir():
        raise InputError(str(path), "output is a file, not a folder", fix="choose another --out")
    above = existing_parent(path)
    if not above.is_dir():
        raise InputError(str(path), f"{above} is a file, not a folder", fix="choose another --out")
    resolved = path.resolve()
    for item in inputs:
        whole = item.resolve()
        if resolved == whole or (whole.is_dir() and whole in resolved.parents):
            raise InputError(str(path), "output lies inside the input", str(item), "choose an --out elsewhere")
    if path.is_dir() and not is_run_folder(path):
        with faults(path):
            names = {entry.name for entry in path.iterdir()} - {LOCK}
        foreign = [name for name in names if not name.startswith(TEMPORARY)]
        if foreign:
            fix = "give --out a new name, or the folder of a run to go on with"
            raise InputError(str(path), "folder is not empty and not a run", min(foreign), fix)


def _check_writable(path: Path) -> None:
    if not os.access(path, os.W_OK | os.X_OK):
        raise fault(PermissionError(13, os.strerror(13)), path)


def _make(path: Path) -> list[Path]:
    """Make `path` and its missing parents, durably; return those made, the innermost first."""
    made: list[Path] = []
    missing = [place for place in (path, *path.parents) if not place.exists()]
    for place in reversed(missing):
        try:
            place.mkdir(exist_ok=True)
            made.insert(0, place)
            fsync_dir(place.parent)
        except OSError as error:
            _unmake(made)
            raise fault(error, place) from error
    return made


def _unmake(made: Sequence[Path]) -> None:
    """Remove the folders just made, as far as they are empty."""
    with suppress(OSError):
        for place in made:
            place.rmdir()


def _untouched(path: Path) -> bool:
    """Return whether the folder holds nothing but what is written before the first step."""
    try:
        names = {entry.name for entry in path.iterdir()}
        return names <= _NO_WORK and ("metrics.jsonl" not in names or not (path / "metrics.jsonl").stat().st_size)
    except OSError:
        return False


def _belongs(line: bytes, step: int, undone: Collection[str]) -> bool:
    try:
        record = json.loads(line)
    except ValueError:
        return False
    at = record.get("step", step) if isinstance(record, dict) else None
    if at == step and record.get("event") in undone and "step" in record:
        return False
    return step >= 0 and isinstance(at, int) and at <= step


def _finite(value: object) -> object:
    """Return `value` with every float that JSON cannot say replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return value
