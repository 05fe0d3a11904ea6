"""Finds a user's data files: one file, a pattern, a folder of splits or documents, a folder that `datasets` saved.

It knows names and must not know what is in a data file. Its one invariant: a split is whole or refused: no two files
that claim it, and no part of it missing.
"""

from __future__ import annotations

import fnmatch
import glob
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.core.files import read_json
from finetwo.data.opening import CONVERT, PACKED, TABLES, fault, missing

SPLITS = ("train", "validation", "test")
"""The names of the splits, in their fixed order."""
MIN_DOCUMENTS = 10
"""From this many documents on, they are shared out by content."""
FORMATS = {
    ".json": "json",
    **dict.fromkeys((".jsonl", ".ndjson"), "jsonl"),
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".txt", ".text", ".md"), "txt"),
}
"""The format that the ending of a name stands for."""

_SPLIT_STEMS = {"train": "train", "test": "test", **dict.fromkeys(("validation", "valid", "val", "dev"), "validation")}
_REFUSED = (".pkl", ".pickle", ".pt", ".npy", ".npz", ".bin", ".zip", ".tar")
_PART = re.compile(r"(?P<split>\w+)-(?P<number>\d{5})-of-(?P<count>\d{5})(-[0-9a-f]+)?", re.ASCII)
_SAVED, _SAVED_SPLITS = "state.json", "dataset_dict.json"
_LOOKED_FOR = (
    "train.*, validation.* (or valid, val, dev) and test.*, each .json .jsonl .csv .tsv .txt (also .gz .xz) .parquet"
)


def suffix_of(path: Path) -> str:
    """The ending that tells the format, without .gz or .xz."""
    return Path(path.stem if path.suffix.lower() in PACKED else path.name).suffix.lower()


def split_of(word: str) -> str | None:
    """The split that `word` stands for, if any: train, validation (valid, val, dev) or test."""
    return _SPLIT_STEMS.get(word.lower())


def is_data_file(name: str) -> bool:
    """Whether a file of this name can hold records."""
    suffix = suffix_of(Path(name))
    return (suffix in FORMATS and suffix != ".md") or Path(name).suffix.lower() in TABLES


def find_files(path: Path) -> dict[str, list[Path]]:
    """Return the data files at `path`, by split.

    A file is {"train": [file]}. A folder with train.*, validation.* (valid, val, dev) or test.* gives those, also in
    the parts of a hub (data/train-00000-of-00003.parquet), as folders of files, or as `datasets` saves them; a folder
    of .txt documents gives {"all": [...]} in name order. A pattern with * or ? gives all its matches as "train".

    Raises:
        InputError: nothing there, nothing suitable (says what was looked for), two files for one split, or a part of
            one that is missing.
        EnvironmentFault: no permission to list the folder.
    """
    try:
        if path.is_dir():
            return _in_folder(path)
        os.stat(path)
    except FileNotFoundError as error:
        if not glob.has_magic(str(path)):
            raise missing(path) from error
        matches = [Path(name) for name in sorted(glob.glob(str(path)))]  # noqa: PTH207 - Path.glob refuses absolute ones
        if not matches:
            raise InputError(str(path), f"no file matches (current folder: {Path.cwd()})", fix="check it") from error
        return {"train": matches}
    except (OSError, ValueError) as error:
        raise fault(path, error) from error
    return {"train": [path]}


def held_out(
    files: dict[str, list[Path]], rows: RowsConfig, origin: str, on_note: Callable[[str], None]
) -> dict[str, list[Path]]:
    """Return `files` with whole documents moved to validation: those --rows.hold_out names, or one of a few.

    A folder of three to nine documents, of which no split is asked for, gives its shortest one if that is no more than
    a fifth of the text: by content such a folder could not be shared out.

    Raises:
        InputError: a pattern that matches no file or all of them, or where the splits are given already.
    """
    name = next((n for n in ("all", "train") if n in files), "train")
    texts = files.get(name, [])
    if rows.hold_out is not None:
        chosen = [path for path in texts if fnmatch.fnmatchcase(path.name, rows.hold_out)]
        if "validation" in files or rows.split is not None:
            fix = "use one of them"
            raise InputError("--rows.hold_out", "the splits are given otherwise already", rows.hold_out, fix)
        if not chosen or len(chosen) == len(texts):
            seen = ", ".join(path.name for path in texts[:8])
            what = f"matches {'every' if chosen else 'no'} file of {origin}"
            raise InputError("--rows.hold_out", what, rows.hold_out, f"the files are {seen}")
    else:
        few = name == "all" and rows.split is None and rows.limit is None and 3 <= len(texts) < MIN_DOCUMENTS
        shortest = min(texts, key=lambda path: path.stat().st_size) if few else None
        if shortest is None or shortest.stat().st_size * 5 > sum(path.stat().st_size for path in texts):
            return files
        chosen = [shortest]
    on_note(f"{origin}: held out for validation: {', '.join(path.name for path in chosen)} (--rows.hold_out chooses)")
    rest = [path for path in texts if path not in chosen]
    return {"train": rest, "validation": chosen} | {n: paths for n, paths in files.items() if n not in (name,)}


def _in_folder(folder: Path) -> dict[str, list[Path]]:
    if (folder / _SAVED_SPLITS).is_file():
        return _saved_splits(folder)
    if (folder / _SAVED).is_file() and (saved := _saved(folder)):
        return {"train": saved}
    names = _files(folder)
    data = [item for item in names if is_data_file(item.name)]
    found = _by_split(data, folder) or _by_subfolder(folder)
    if not found and (folder / "data").is_dir():
        inside = [item for item in _files(folder / "data") if is_data_file(item.name)]
        found = _by_split(inside, folder / "data") or _by_subfolder(folder / "data")
    if found:
        return {split: found[split] for split in SPLITS if split in found}
    if data and all(suffix_of(item) == ".txt" for item in data):
        return {"all": data}
    raise _nothing(folder, names, data)


def _files(folder: Path) -> list[Path]:
    return sorted(item for item in folder.iterdir() if not item.name.startswith(".") and not item.is_dir())


def _nothing(folder: Path, names: Sequence[Path], data: Sequence[Path]) -> InputError:
    """The error for a folder without a split, with what was looked for and seen."""
    refused = [item.name for item in names if suffix_of(item) in _REFUSED]
    fix = f"give the file: {data[0]}" if len(data) == 1 else "name the files so, or give one file"
    if refused and not data:
        fix = f"convert {refused[0]} to JSONL, one JSON object a line: {CONVERT}"
    inside = [] if names else sorted(item.name for item in folder.iterdir() if item.is_dir())
    if inside:  # by author, say
        fix = f"give one of the folders, or a pattern in quotes: '{folder / '*' / '*.txt'}'"
    seen = ", ".join([item.name for item in names[:5]] or inside[:5]) or "no files"
    what = f"no data found in the folder; looked for {_LOOKED_FOR}, or only .txt"
    return InputError(str(folder), what, seen, fix)


def _by_split(data: Sequence[Path], folder: Path) -> dict[str, list[Path]]:
    """The files that are named for a split: one file each, or all of its parts."""
    found: dict[str, list[Path]] = {}
    for item in data:
        stem = item.name.split(".")[0]
        part = _PART.fullmatch(stem)
        split = split_of(part["split"] if part else stem)
        if split:
            found.setdefault(split, []).append(item)
    for split, items in found.items():
        parts = [_PART.fullmatch(item.name.split(".")[0]) for item in items]
        if any(part is None for part in parts) or len({(p["split"], p["count"]) for p in parts if p}) > 1:
            if len(items) > 1:
                both = " and ".join(item.name for item in items[:2])
                raise InputError(str(folder), f"two files for {split}: {both}", fix="keep one, or give one file")
            continue
        _check_parts([int(p["number"]) for p in parts if p], int(parts[0]["count"]) if parts[0] else 0, items)
    return found


def _by_subfolder(folder: Path) -> dict[str, list[Path]]:
    """The data files in folders that are named for a split, in name order."""
    found: dict[str, list[Path]] = {}
    for inside in sorted(item for item in folder.iterdir() if split_of(item.name) and item.is_dir()):
        split = split_of(inside.name) or ""
        if split in found:
            both = f"{found[split][0].parent.name} and {inside.name}"
            raise InputError(str(folder), f"two folders for {split}: {both}", fix="keep one, or give one file")
        data = [item for item in _files(inside) if is_data_file(item.name)]
        if data:
            found[split] = data
    return found


def _check_parts(numbers: list[int], count: int, items: Sequence[Path]) -> None:
    """Refuse a split of which a part is missing or there twice."""
    lost = sorted(set(range(count)) - set(numbers))
    if lost or len(numbers) != count:
        what = f"part {lost[0]:05} of {count:05} is missing" if lost else "a part is there twice"
        fix = "download the data set again"
        raise InputError(str(items[0].parent), what, ", ".join(i.name for i in items[:3]), fix)


def _saved_splits(folder: Path) -> dict[str, list[Path]]:
    """The files of a folder of several splits that `datasets` saved (`DatasetDict.save_to_disk`)."""
    table = read_json(folder / _SAVED_SPLITS)
    names = table.get("splits") if isinstance(table, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(str(folder / _SAVED_SPLITS), "must hold a list of splits", fix="save the data set again")
    found: dict[str, list[Path]] = {}
    for name in names:
        split = split_of(name)
        if split in found:
            raise InputError(str(folder), f"two splits for {split}: {', '.join(names)}", fix="give one of the folders")
        if split:
            found[split] = _saved(folder / name)
    if not found:
        raise InputError(str(folder), "no split called train, validation or test", ", ".join(names), "give one folder")
    return {split: found[split] for split in SPLITS if split in found}


def _saved(folder: Path) -> list[Path]:
    """The files of a folder that `datasets` saved (`Dataset.save_to_disk`), [] where its list is something else's."""
    table = read_json(folder / _SAVED)
    listed = table.get("_data_files") if isinstance(table, dict) else None
    if listed is None:
        return []
    names = [item.get("filename") if isinstance(item, dict) else None for item in listed]
    if not all(isinstance(name, str) and name and Path(name).name == name for name in names):
        raise InputError(str(folder / _SAVED), "refused: a data file must be a plain name", names[0], "save it again")
    for name in names:
        if not (folder / str(name)).is_file():
            fix = "save or copy the data set again"
            raise InputError(str(folder), f"{_SAVED} names a data file that is missing", name, fix)
    return [folder / str(name) for name in names]
