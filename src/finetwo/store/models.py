"""From a name to a ready network: folder or adapter, base, tokenizer and extras together.

It knows names and folders and nothing of training. Its one invariant: an adapter is placed only on the base it was
trained on, as far as its files tell.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from finetwo.core.errors import InputError
from finetwo.model.network import Network
from finetwo.store.folder import Extras, base_digest, load_network, load_tokenizer, read_extras
from finetwo.store.hub import resolve
from finetwo.store.peft import CONFIG as ADAPTER_CONFIG
from finetwo.store.peft import load_adapter, read_adapter_config
from finetwo.text.tokenizer import Tokenizer


@dataclass
class Opened:
    """A model as it was found: network, tokenizer, extras, and the names it came by."""

    network: Network
    tokenizer: Tokenizer
    extras: Extras
    folder: Path
    name: str
    base: str
    """The name of the weights underneath: the model's own, or its adapter's base."""

    @property
    def is_adapter(self) -> bool:
        """Whether the model is an adapter on a base."""
        return self.network.lora is not None


def is_adapter_folder(folder: Path) -> bool:
    """Whether `folder` holds an adapter and not a whole model."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def base_name(folder: Path, extras: Extras, base: str | None) -> str:
    """The name of an adapter's base: as given, as FineTwo stored it, or as PEFT did."""
    stored = read_adapter_config(folder).get("base_model_name_or_path")
    name = base or extras.base or stored
    if not name:
        raise InputError(str(folder), "the adapter does not say what its base is", None, "name it with --base")
    return str(name)


def open_model(name: str, base: str | None = None, revision: str | None = None) -> Opened:
    """Resolve `name`, read it, and for an adapter its base (`base` overrides the stored name).

    Raises InputError when a file is missing, damaged or unsupported, or the adapter belongs to another base.
    """
    folder = resolve(name, revision)
    extras = read_extras(folder)
    if not is_adapter_folder(folder):
        if base is not None:
            raise InputError("--base", f"{name} is a whole model, not an adapter", base, "leave --base out")
        network = load_network(folder)
        return Opened(network, load_tokenizer(folder, network.config), extras, folder, name, name)
    underneath = base_name(folder, extras, base)
    base_folder = resolve(underneath)
    if is_adapter_folder(base_folder):
        raise InputError(
            "--base",
            "the base of an adapter must be a whole model",
            underneath,
            "merge it first: finetwo export --to merged",
        )
    network = load_network(base_folder)
    if extras.base_sha256 is not None:
        found = base_digest(network)
        if found != extras.base_sha256:
            raise InputError(
                str(folder),
                f"the adapter was trained on other weights than {underneath}: wanted sha256 {extras.base_sha256[:12]}",
                found[:12],
                "name its base with --base",
            )
    load_adapter(folder, network)
    has_tokenizer = any((folder / n).is_file() for n in ("tokenizer.json", "vocab.json"))
    tokenizer = load_tokenizer(folder if has_tokenizer else base_folder, network.config)
    if extras.template is None:
        extras.template = read_extras(base_folder).template
    return Opened(network, tokenizer, extras, folder, name, underneath)
