"""Checkpoints that are wholly there or not at all.

It knows files, sizes and hashes, and must not know what training puts in them. Its one invariant: from the first
checkpoint on, a run folder holds at every instant one whose manifest verifies, whatever dies when.

Order of a save: temporary folder beside the target; every file written and fsynced; manifest last; the folder
fsynced; rename; the parent fsynced; opened again and verified; only then old ones go.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError, shown
from finetwo.core.files import TEMPORARY, fault, faults, fsync_dir, json_bytes, read_json, sha256_file, write_json
from finetwo.store.tensors import Written, read_tensors, size_of, write_tensors

FORMAT = 1
"""Layout of a checkpoint folder; a change of it is a new number."""
MANIFEST = "manifest.json"
STATE = "state.json"

_FOLDER = re.compile(r"checkpoint-(0|[1-9][0-9]{0,17})(\.old)?")
_PART = f"{TEMPORARY}checkpoint-"
_log = logging.getLogger("finetwo")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose manifest verified when it was opened."""

    path: Path
    step: int
    state: dict[str, Any]
    files: Mapping[str, Written]

    def tensors(self, stem: str) -> dict[str, Tensor]:
        """Return the tensors of file `stem`.safetensors by name; raise InputError where there is no such file."""
        name = f"{stem}.safetensors"
        if name not in self.files:
            raise InputError(str(self.path), f"holds no {name}", ", ".join(sorted(self.files)))
        return read_tensors(self.path / name)


# --- reading ----------------------------------------------------------------------------------------------------


def list_checkpoints(run: Path) -> list[Path]:
    """Return the checkpoint folders of `run`, newest step first, unverified; links are left out.

    A folder `checkpoint-<step>.old` is what a save of the same step was about to replace when it died.
    """
    found = []
    if not run.is_dir():
        return []
    with faults(run), os.scandir(run) as entries:
        for entry in entries:
            match = _FOLDER.fullmatch(entry.name)
            if match and entry.is_dir(follow_symlinks=False):
                found.append((int(match[1]), match[2] is None, run / entry.name))
    return [path for _, _, path in sorted(found, reverse=True)]


def step_of(path: Path) -> int:
    """Return the step in a checkpoint folder's name; raise ValueError where it is no such name."""
    match = _FOLDER.fullmatch(path.name)
    if match is None:
        raise ValueError(f"not a checkpoint's name: {path.name}")
    return int(match[1])


def newest_valid(run: Path) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint of `run` that verifies, and one line for each newer one that did not."""
    skipped: list[str] = []
    for path in list_checkpoints(run):
        try:
            return open_checkpoint(path), skipped
        except FineTwoError as error:
            skipped.append(error.line())
    return None, skipped


def open_checkpoint(path: Path) -> Checkpoint:
    """Verify every file of the checkpoint at `path` against its manifest, and return it.

    Raises InputError naming the file: missing, extra, a link, of another size or SHA-256, of another format.
    """
    path = Path(path)
    if not path.is_dir():
        raise InputError(str(path), "no such checkpoint folder")
    if not (path / MANIFEST).exists():
        raise InputError(str(path / MANIFEST), "checkpoint is incomplete: its manifest is missing")
    step, files = _read_manifest(path)
    match = _FOLDER.fullmatch(path.name)
    if match and int(match[1]) != step:
        raise InputError(str(path / MANIFEST), f"belongs to step {step}, not to this folder")
    with faults(path):
        present = {entry.name for entry in path.iterdir()} - {MANIFEST}
    for name in sorted(present - set(files)):
        raise InputError(str(path / name), "file is not in the checkpoint's manifest", fix="remove it")
    for name, expected in sorted(files.items()):
        _verify(path / name, expected)
    state = read_json(path / STATE)
    if not isinstance(state, dict):
        raise InputError(str(path / STATE), "must be a JSON object", type(state).__name__)
    return Checkpoint(path, step, state, files)


def _read_manifest(path: Path) -> tuple[int, dict[str, Written]]:
    """Return step and files of the manifest in `path`, its form and its names checked."""
    where = path / MANIFEST
    _require_plain(where)
    raw = read_json(where, max_bytes=16 * 1024 * 1024)
    number = raw.get("format") if isinstance(raw, dict) else None
    if type(number) is not int:
        raise InputError(str(where), "not a checkpoint's manifest")
    if number != FORMAT:
        kind, fix = ("newer", "update FineTwo") if number > FORMAT else ("older", "use the version that wrote it")
        raise InputError(str(where), f"checkpoint of a {kind} format; this FineTwo reads {FORMAT}", number, fix)
    told = raw.pop("sha256", None)
    if told != _own_hash(raw) or where.read_bytes() != json_bytes({**raw, "sha256": told}):
        raise InputError(str(where), "checkpoint is damaged: the manifest does not match its own sha256")
    if set(raw) != {"format", "step", "files"} or type(raw["step"]) is not int or not isinstance(raw["files"], dict):
        raise InputError(str(where), "must hold exactly format, step and files", sorted(raw))
    files = {name: _manifest_item(where, name, item) for name, item in raw["files"].items()}
    if STATE not in files:
        raise InputError(str(where), f"does not list {STATE}")
    return raw["step"], files


def _own_hash(manifest: Mapping[str, object]) -> str:
    """Return the SHA-256 of a manifest without its own, so that damage to it is told from damage to the files."""
    return hashlib.sha256(json_bytes(manifest)).hexdigest()


def _manifest_item(where: Path, name: str, item: object) -> Written:
    plain = name and name not in (".", "..", MANIFEST) and not any(c in "/\\:" or not c.isprintable() for c in name)
    if not plain:
        raise InputError(str(where), "refused: a file name that leaves the checkpoint or hides", name)
    match item:
        case {"size": int(size), "sha256": str(digest), **rest} if not rest and re.fullmatch("[0-9a-f]{64}", digest):
            return Written(size, digest)
    raise InputError(f"{where}: {shown(name, 100)}", "must hold exactly size and sha256", item)


def _require_plain(path: Path) -> int:
    """Return the size of `path`, which must be a regular file itself and no link to one."""
    try:
        status = path.lstat()
    except FileNotFoundError as error:
        raise InputError(str(path), "checkpoint is damaged: file missing") from error
    except OSError as error:
        raise fault(error, path) from error
    if stat.S_ISLNK(status.st_mode):
        raise InputError(str(path), "refused: a link inside a checkpoint")
    if not stat.S_ISREG(status.st_mode):
        raise InputError(str(path), "checkpoint is damaged: not a regular file")
    return status.st_size


def _verify(path: Path, expected: Written) -> None:
    size = _require_plain(path)
    if size != expected.size:
        what = f"checkpoint is damaged: expected {expected.size:,} bytes"
        raise InputError(str(path), what, f"{size:,} bytes")
    digest = sha256_file(path)
    if digest != expected.sha256:
        raise InputError(str(path), f"checkpoint is damaged: expected sha256 {expected.sha256[:12]}", digest[:12])


# --- writing ----------------------------------------------------------------------------------------------------


def write_checkpoint(
    run: Path,
    step: int,
    tensors: Mapping[str, Mapping[str, Tensor]],
    state: Mapping[str, object],
    keep: int,
) -> Path:
    """Write `checkpoint-<step>` into `run`, verify it, then remove old ones; return its folder.

    `tensors` maps file stems to tensors, `state` must be JSON (no NaN, no infinity). The newest `keep` (>= 1) up to
    `step` stay; those of later steps belong to a future given up by resuming earlier, and go as well. The caller holds
    the run folder's lock. Raises EnvironmentFault (path, bytes needed and free, last good step) where the disk refuses;
    what was there before stays.
    """
    if keep < 1 or step < 0:
        raise ValueError(f"keep {keep} must be >= 1 and step {step} >= 0")
    run, encoded = Path(run), json_bytes(dict(state))
    needed = sum(size_of(part) for part in tensors.values()) + len(encoded)
    temporary, target = run / f"{_PART}{step}-{os.getpid()}", run / f"checkpoint-{step}"
    try:
        _prepare(run, temporary)
        _fill(temporary, step, tensors, state)
        _put(temporary, target)
    except (OSError, FineTwoError) as error:
        _remove(temporary)
        cause = error if isinstance(error, OSError) else error.__cause__
        if not isinstance(cause, OSError):
            raise
        raise fault(cause, target, needed, _last_good(run)) from error
    except BaseException:
        _remove(temporary)
        raise
    try:
        open_checkpoint(target)
    except FineTwoError as error:
        what = f"what was written does not read back: {error.line()}; {_last_good(run)}"
        raise EnvironmentFault(str(target), what, fix="check the disk") from error
    _purge(run, step, keep)
    return target


def _prepare(run: Path, temporary: Path) -> None:
    """Clear what dead saves left, and make the temporary folder (and the run folder, if someone deleted it)."""
    if not run.is_dir():
        _log.warning("%s: the run folder was gone; making it again", run)
        run.mkdir(parents=True)
    remove_stale(run, _PART)
    temporary.mkdir()


def _fill(folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, object]) -> None:
    files = {}
    for stem in sorted(tensors):
        files[f"{stem}.safetensors"] = write_tensors(folder / f"{stem}.safetensors", tensors[stem])
    write_json(folder / STATE, dict(state))
    files[STATE] = Written((folder / STATE).stat().st_size, sha256_file(folder / STATE))
    listed = {name: {"size": file.size, "sha256": file.sha256} for name, file in files.items()}
    manifest = {"format": FORMAT, "step": step, "files": listed}
    write_json(folder / MANIFEST, {**manifest, "sha256": _own_hash(manifest)})
    fsync_dir(folder)


def _put(temporary: Path, target: Path) -> None:
    """Rename `temporary` to `target`; a checkpoint of the same step steps aside as `.old`, which still counts."""
    old = target.with_name(f"{target.name}.old")
    if target.exists():
        if old.exists() and _valid(target):
            _remove(old)
        elif old.exists():  # the good one is the old one: let go of the damaged one
            _remove(target)
        if target.exists():
            target.rename(old)
            fsync_dir(target.parent)
    temporary.rename(target)
    fsync_dir(target.parent)


def _valid(path: Path) -> bool:
    try:
        open_checkpoint(path)
    except FineTwoError:
        return False
    return True


def _last_good(run: Path) -> str:
    last, _ = newest_valid(run)
    return "there is no good checkpoint yet" if last is None else f"last good checkpoint: step {last.step}"


# --- removing ---------------------------------------------------------------------------------------------------


def _purge(run: Path, written: int, keep: int) -> None:
    """Remove all but the newest `keep` up to the step just written and verified."""
    paths = list_checkpoints(run)
    steps = sorted({step_of(path) for path in paths if step_of(path) <= written}, reverse=True)
    stay = set(steps[:keep])
    for path in paths:
        step, spare = step_of(path), path.name.endswith(".old")
        if step not in stay or (spare and (step == written or _valid(run / f"checkpoint-{step}"))):
            _remove(path)


def _remove(folder: Path) -> None:
    """Remove `folder` so that no half of it is ever seen under its name; a failure is told, not raised."""
    if not folder.exists():
        return
    doomed = folder
    try:
        if not folder.name.startswith(TEMPORARY):
            doomed = folder.with_name(f"{_PART}gone-{folder.name}-{os.getpid()}")
            folder.rename(doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        _log.warning("%s: could not be removed: %s", folder, error.strerror or error)


def remove_stale(run: Path, prefix: str = TEMPORARY) -> None:
    """Remove temporary files and folders that dead writers left in `run`; only for the holder of its lock."""
    with faults(run):
        paths = [path for path in run.iterdir() if path.name.startswith(prefix)]
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            _remove(path)
        else:
            with suppress(OSError):
                path.unlink()
