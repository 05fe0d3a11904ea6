"""The Python API: the same names as the command line, in two functions."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from numbers import Integral, Real
from pathlib import PurePath
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from finetwo.app.arguments import options_of, split_list
from finetwo.app.foreign import remedy
from finetwo.core.config import COMMA_TEXTS, TrainConfig
from finetwo.core.errors import InputError
from finetwo.generate.pipeline import Model
from finetwo.model.fused import make_ready
from finetwo.model.quantised import check_kind
from finetwo.store.models import open_model
from finetwo.train.job import train as run_job
from finetwo.train.report import Report
from finetwo.train.start import pick_device


def load(
    name: str = "tiny",
    *,
    base: str | None = None,
    revision: str | None = None,
    device: str = "auto",
    quantize: str | None = None,
) -> Model:
    """Load a model by name: `tiny`, a hub name, a folder, a run folder, or an adapter (on its `base`).

    `quantize`, int8 or int4, keeps its weights as codes for inference, an adapter merged: smaller, faster, less exact.

    Raises InputError when it is not there, damaged or not of the GPT-2 architecture; EnvironmentFault without network.
    """
    kind = None if quantize is None else check_kind("quantize", quantize)
    opened = open_model(str(name), base, revision)
    opened.network.to(pick_device(device, "device"))
    make_ready(opened.network, kind)
    extras = opened.extras
    return Model(
        opened.network.eval(),
        opened.tokenizer,
        extras.template,
        extras.task,
        opened.name,
        opened.base,
        extras.temperature,
        extras.max_length,
    )


def configure(settings: dict[str, Any], config: TrainConfig | None = None) -> TrainConfig:
    """A TrainConfig from keyword settings; groups as dictionaries (lora={"rank": 8}) or dotted ("lora.rank")."""
    result = config or TrainConfig()
    for name, value in settings.items():
        result = _set(result, name.split("."), value, name)
    return result


def _set(target: Any, path: list[str], value: Any, name: str) -> Any:
    known = [f.name for f in fields(target)]
    if path[0] not in known:
        fix = remedy(name, list(options_of(TrainConfig)), dashes="")
        raise InputError(name, "unknown setting", None, fix or f"use {', '.join(known)}")
    current = getattr(target, path[0])
    if len(path) > 1 and is_dataclass(current):
        value = _set(current, path[1:], value, name)
    elif is_dataclass(current) and isinstance(value, dict):
        for key, inner in value.items():
            current = _set(current, str(key).split("."), inner, f"{name}.{key}")
        value = current
    elif len(path) > 1:
        raise InputError(name, f"{path[0]} is one setting, not a group", None, f"give {path[0]}")
    else:
        value = _typed(get_type_hints(type(target))[path[0]], value, name)
    return replace(target, **{path[0]: value})


def _typed(hint: Any, value: Any, name: str) -> Any:
    """Return `value` as the type of its setting; InputError says what is wanted."""
    kinds = get_args(hint) if isinstance(hint, UnionType) else (hint,)
    kind = kinds[0]
    if value is None and type(None) in kinds:
        return None
    if get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
        raise InputError(name, "must be one of " + ", ".join(get_args(kind)), value)
    is_number = isinstance(value, Real) and not isinstance(value, bool)
    if kind is int and isinstance(value, Integral) and is_number:
        return int(value)
    if kind is float and is_number:
        return float(value)
    if kind is str and (is_number or isinstance(value, str | PurePath)):
        return str(value)
    texts = list(value) if isinstance(value, list | tuple) and all(isinstance(v, str) for v in value) else None
    if kind is str and texts is not None and name in COMMA_TEXTS:
        return ",".join(texts)
    if get_origin(kind) is list and (texts is not None or isinstance(value, str)):
        return split_list(value) if texts is None else texts
    if isinstance(kind, type) and (kind is bool or is_dataclass(kind)) and isinstance(value, kind):
        return value
    other = "a list of texts" if get_origin(kind) else "a dictionary"
    wanted = {int: "an integer", float: "a number", bool: "True or False", str: "text"}.get(kind, other)
    raise InputError(name, f"must be {wanted}", value)


def train(data: object, **settings: Any) -> Report:
    """Tune a model on `data` (a path, a list of dictionaries or a DataFrame) and return the report.

    Settings are those of `finetwo train`, by the same names: train(data, model="gpt2", lora={"rank": 8}, epochs=3).
    `model` may also be a `Model` in memory, with or without an adapter, which is then trained in place.
    Raises InputError, EnvironmentFault or NumericError as the command line would report them.
    """
    say = settings.pop("say", lambda _: None)
    listeners = settings.pop("listeners", ())
    model = settings.get("model")
    if not isinstance(model, Model):
        return run_job(configure(settings), data, say, listeners)
    return run_job(configure(settings | {"model": model.name}), data, say, listeners, model)
