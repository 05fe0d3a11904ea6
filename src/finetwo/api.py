"""The Python API: the same names as the command line, in two functions."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from difflib import get_close_matches
from typing import Any

from finetwo.core.config import TrainConfig
from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model
from finetwo.store.models import open_model
from finetwo.train.job import pick_device
from finetwo.train.job import train as run_job
from finetwo.train.report import Report


def load(name: str = "tiny", *, base: str | None = None, revision: str | None = None, device: str = "auto") -> Model:
    """Load a model by name: `tiny`, a hub name, a folder, a run folder, or an adapter (on its `base`).

    Raises InputError when it is not there, damaged or not of the GPT-2 architecture; EnvironmentFault without network.
    """
    opened = open_model(str(name), base, revision)
    opened.network.to(pick_device(device, "device"))
    return Model(opened.network.eval(), opened.tokenizer, opened.extras.template, opened.extras.task, opened.name)


def configure(settings: dict[str, Any], config: TrainConfig | None = None) -> TrainConfig:
    """A TrainConfig from keyword settings; groups as dictionaries (lora={"rank": 8}) or dotted ("lora.rank")."""
    result = config or TrainConfig()
    for name, value in settings.items():
        result = _set(result, name.split("."), value, name)
    return result


def _set(target: Any, path: list[str], value: Any, name: str) -> Any:
    known = [f.name for f in fields(target)]
    if path[0] not in known:
        near = get_close_matches(path[0], known, n=1)
        raise InputError(
            name, "unknown setting", None, f"did you mean {near[0]}?" if near else f"use {', '.join(known)}"
        )
    current = getattr(target, path[0])
    if len(path) > 1:
        value = _set(current, path[1:], value, name)
    elif is_dataclass(current) and isinstance(value, dict):
        for key, inner in value.items():
            current = _set(current, key.split("."), inner, f"{name}.{key}")
        value = current
    return replace(target, **{path[0]: value})


def train(data: object, **settings: Any) -> Report:
    """Tune a model on `data` (a path, a list of dictionaries or a DataFrame) and return the report.

    Settings are those of `finetwo train`, by the same names: train(data, model="gpt2", lora={"rank": 8}, epochs=3).
    Raises InputError, EnvironmentFault or NumericError as the command line would report them.
    """
    say = settings.pop("say", lambda _: None)
    listeners = settings.pop("listeners", ())
    return run_job(configure(settings), data, say, listeners)
