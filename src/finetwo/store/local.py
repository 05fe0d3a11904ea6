"""Local names of models: the embedded one, a folder, a run folder.

It knows which files make a model folder, and must not know a hub. Its one invariant: it answers without touching
the network, and it refuses weights that only exist as a pickle.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from finetwo.core.errors import InputError, shown
from finetwo.core.files import faults
from finetwo.store.run import is_model_folder, is_run_folder, model_folder_of_run

SHORT_NAMES: Mapping[str, str] = {
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "gpt2-xl": "openai-community/gpt2-xl",
    "distilgpt2": "distilbert/distilgpt2",
}
"""Published models by the names everybody uses."""

EMBEDDED = "tiny"
"""The name of the model that comes with the package."""

INDEX = "model.safetensors.index.json"
"""Which tensor lies in which shard."""
WEIGHTS = ("model.safetensors", INDEX, "adapter_model.safetensors")
"""Files that can hold the weights, the first one wins."""
CONFIGS = ("config.json", "adapter_config.json")
"""A model folder has one of these."""
LEGACY = ("pytorch_model.bin", "pytorch_model.bin.index.json", "adapter_model.bin")
"""Pickles, which can run code and are never opened."""
SUPPLY = "give a local folder with config.json, model.safetensors and the tokenizer files"
_LEGACY_FIX = "convert it to safetensors where you trust it, or choose a revision that has model.safetensors"


def embedded_folder() -> Path:
    """Return the folder of the embedded model; raise InputError where this installation lacks it."""
    folder = Path(__file__).resolve().parent.parent / "assets" / EMBEDDED
    if not is_model_folder(folder):
        raise InputError(EMBEDDED, "the embedded model is not part of this installation", fix="install FineTwo again")
    return folder


def local_folder(name: str) -> Path | None:
    """Return the folder `name` means if it means a local one; None for a name of the hub."""
    if not name or "\0" in name or any(len(os.fsencode(part)) > 255 for part in Path(name).parts):
        raise InputError("--model", "not a possible name of a model", name)
    path = Path(name).expanduser() if name.startswith("~") else Path(name)
    if path.is_dir():
        if name in SHORT_NAMES and not is_model_folder(path) and not is_run_folder(path):
            return None
        return _model_folder(path)
    if path.exists():
        raise InputError(name, "is a file, not a model folder", fix=f"give its folder: {shown(str(path.parent))}")
    looks_local = name.startswith((".", "/", "~")) or name.count(os.sep) > 1 or name.endswith(os.sep)
    if looks_local or (os.sep in name and path.parent.is_dir()):
        with faults(path):
            names = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=1)
        fix = f"did you mean {path.parent / near[0]}?" if near else SUPPLY
        raise InputError(str(path.absolute()), "no such model folder", fix=fix)
    return None


def _model_folder(path: Path) -> Path:
    """Return the folder with the model that `path`, a model or run folder, holds."""
    if is_model_folder(path):
        return check_weights(path)
    if is_run_folder(path):
        return check_weights(model_folder_of_run(path))
    if (path / "manifest.json").is_file() and (path / "state.json").is_file():
        raise InputError(str(path), "is a checkpoint, not a model", fix=f"give its run folder {path.parent}")
    raise InputError(str(path), f"holds no model: tried {' and '.join(CONFIGS)}", fix=SUPPLY)


def check_weights(folder: Path) -> Path:
    """Return `folder`; raise InputError where its only weights are a legacy pickle."""
    if not any((folder / name).exists() for name in WEIGHTS):
        for name in LEGACY:
            if (folder / name).exists():
                refuse_legacy(str(folder), name)
    return folder


def refuse_legacy(where: str, name: str) -> NoReturn:
    """Raise the InputError for weights `name` that only exist as a pickle."""
    raise InputError(where, "weights only in the legacy format, which can run code; refused", name, _LEGACY_FIX)
