"""An adapter at another strength, and the base beneath a tuned model.

It knows networks and names and no texts. Its one invariant: at strength 0 the network is its base, bit for bit, and
after use it is what it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model
from finetwo.model.lora import LoraAdapter, linears
from finetwo.model.network import Network
from finetwo.store.hub import resolve
from finetwo.store.models import open_model
from finetwo.store.run import is_run_folder
from finetwo.store.yaml import read_settings


@contextmanager
def at_strength(network: Network, strength: float) -> Iterator[Network]:
    """Give the network with its adapters' change times `strength`; at 0 they are taken out, which leaves the base."""
    held = [(m, m.adapter, m.adapter.scale) for m in linears(network).values() if isinstance(m.adapter, LoraAdapter)]
    try:
        for module, adapter, scale in held:
            if strength == 0:
                module.adapter = None
            else:
                adapter.scale = scale * strength
        yield network
    finally:
        for module, adapter, scale in held:
            module.adapter, adapter.scale = adapter, scale


@dataclass(frozen=True)
class Base:
    """What a model was tuned from."""

    name: str
    network: Network | None
    """Its own network; None: the tuned one without its adapter."""

    @contextmanager
    def under(self, tuned: Network) -> Iterator[Network]:
        """Give the base of `tuned` to be used."""
        if self.network is not None:
            yield self.network
            return
        with at_strength(tuned, 0.0) as network:
            yield network


def base_of(name: str, model: Model, asked: str | None) -> Base:
    """Return the base of the model `name`: under its adapter, as asked for, or as its run says.

    Raises:
        InputError: nothing says what the base is, it is not there, or it has other tokens or a shorter context.
    """
    tuned = model.network
    if tuned.lora is not None:
        return Base(str(model.base or asked), None)
    found = asked or _of_run(name)
    if found is None:
        raise InputError(name, "does not say what it was tuned from", None, "name its base with --base")
    try:
        opened = open_model(found)
    except InputError as error:
        if asked is not None:
            raise
        fix = "name its base with --base"
        raise InputError(name, f"its base cannot be opened: {error.where}: {error.what}", found, fix) from error
    network = opened.network.to(tuned.head_weight.device).eval()
    if network.config.labels:
        raise InputError(found, "is a classifier, no text comes from it", None, "name the base with --base")
    for what, mine, its in (
        ("other tokens", model.tokenizer.digest, opened.tokenizer.digest),
        ("another vocabulary", f"{tuned.config.vocab_size:,}", f"{network.config.vocab_size:,}"),
        ("another context", f"{tuned.config.n_positions:,}", f"{network.config.n_positions:,}"),
    ):
        if mine != its:
            got = f"{its[:12]} instead of {mine[:12]}"
            raise InputError(found, f"has {what} than {name}", got, "give the model it was tuned from with --base")
    return Base(found, network)


def _of_run(name: str) -> str | None:
    """The model that a run started from; None of what is no run, or of one that started from fresh weights."""
    folder = Path(name) if is_run_folder(Path(name)) else resolve(name).parent
    path = folder / "config.yaml"
    if not is_run_folder(folder) or not path.is_file():
        return None
    settings = {s.name: s.value for s in read_settings(path)}
    model = settings.get("model")
    return model if isinstance(model, str) and settings.get("task") != "pretrain" else None
