"""A tuned model opened together with what it was tuned from.

It knows names and no figures. Its one invariant: the base is the one that the adapter, the run or the user names.
"""

from __future__ import annotations

from finetwo.app.api import load
from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model
from finetwo.insight.strength import Base, base_of
from finetwo.store.hub import resolve
from finetwo.store.models import is_adapter_folder


def load_tuned(name: str, base: str | None, device: str) -> tuple[Model, Base]:
    """Return the language model `name` and its base.

    Raises:
        InputError: a model that is not there, a classifier, or one whose base nobody names.
    """
    model = load_side(name, base, device)
    if model.network.config.labels:
        raise InputError(name, "is a classifier, it has no text to be measured on", None, "take a language model")
    return model, base_of(name, model, base)


def load_side(name: str, base: str | None, device: str) -> Model:
    """Return the model `name`; `base` is used where it is an adapter."""
    return load(name, base=base if base is not None and is_adapter_folder(resolve(name)) else None, device=device)
