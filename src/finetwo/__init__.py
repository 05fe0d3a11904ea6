"""FineTwo: fine-tune the GPT-2 family end to end, on a laptop or a GPU.

The names below are loaded when they are first used, so that `import finetwo` costs next to nothing.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from finetwo.core.version import __version__

if TYPE_CHECKING:
    from finetwo.app.api import load, train
    from finetwo.app.classifier import Classifier
    from finetwo.core.config import LoraConfig, RowsConfig, SamplingConfig, TrainConfig
    from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError, NumericError, Stopped
    from finetwo.generate.pipeline import Model
    from finetwo.model.config import GPT2Config
    from finetwo.train.report import Report

_HOMES = {
    "load": "finetwo.app.api",
    "Classifier": "finetwo.app.classifier",
    "train": "finetwo.app.api",
    "Model": "finetwo.generate.pipeline",
    "Report": "finetwo.train.report",
    "GPT2Config": "finetwo.model.config",
    **dict.fromkeys(("LoraConfig", "RowsConfig", "SamplingConfig", "TrainConfig"), "finetwo.core.config"),
    **dict.fromkeys(
        ("EnvironmentFault", "FineTwoError", "InputError", "NumericError", "Stopped"), "finetwo.core.errors"
    ),
}
__all__ = [
    "Classifier",
    "EnvironmentFault",
    "FineTwoError",
    "GPT2Config",
    "InputError",
    "LoraConfig",
    "Model",
    "NumericError",
    "Report",
    "RowsConfig",
    "SamplingConfig",
    "Stopped",
    "TrainConfig",
    "__version__",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'finetwo' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """Keeps a public name when a subpackage of that name is imported: `finetwo.train` is the function, always."""

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _HOMES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
