"""A classifier in the shape of scikit-learn's estimators: `Classifier().fit(X, y).predict_proba(X)`.

It knows lists of texts and the training job, and no files of the user's. Its one invariant: the constructor only
remembers; `fit` does the work, and a fitted estimator gives equal answers to equal questions.
"""

from __future__ import annotations

import inspect
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetwo.app.api import train
from finetwo.core.config import to_dict
from finetwo.core.errors import InputError
from finetwo.data.selecting import class_name
from finetwo.generate.predict import Predictor, document_of, open_predictor
from finetwo.train.start import pick_device

_MARKS = ("-1", "-")
"""Classes that a data file may mean as none; here each was given as one."""


class Classifier:
    """Tunes a model to tell the classes of texts, or of pairs of texts.

    X is a list (array, Series) of texts, or of pairs (two columns of a DataFrame); y holds one class for each, texts or
    whole numbers. After `fit`: `classes_` (the classes, sorted), `report_` (the training report).
    """

    _estimator_type = "classifier"

    def __init__(
        self,
        model: str = "tiny",
        *,
        epochs: float = 3.0,
        batch_size: int = 32,
        lr: float | None = None,
        lora: Mapping[str, Any] | None = None,
        seed: int = 0,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        """`settings` takes every other setting of `finetwo train` by name, e.g. {"class_weights": "balanced"}."""
        self.model, self.epochs, self.batch_size, self.lr = model, epochs, batch_size, lr
        self.lora, self.seed, self.settings = lora, seed, settings

    # --- what scikit-learn's tools ask of an estimator ------------------------------------------------------------

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def set_params(self, **params: Any) -> Classifier:
        """Change constructor arguments; InputError for an unknown name."""
        known = self.get_params()
        for name, value in params.items():
            if name not in known:
                raise InputError(f"set_params({name})", "no such parameter", None, f"use {', '.join(known)}")
            setattr(self, name, value)
        return self

    def __sklearn_tags__(self) -> Any:
        from sklearn.utils import ClassifierTags, InputTags, Tags, TargetTags

        return Tags(
            estimator_type="classifier",
            target_tags=TargetTags(required=True),
            classifier_tags=ClassifierTags(),
            input_tags=InputTags(one_d_array=True, two_d_array=True, string=True),
        )

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "classes_")

    def __repr__(self) -> str:
        defaults = {n: p.default for n, p in inspect.signature(type(self)).parameters.items()}
        changed = (f"{n}={v!r}" for n, v in self.get_params().items() if v != defaults[n])
        return f"Classifier({', '.join(changed)})"

    # --- the work -------------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any) -> Classifier:
        """Tune the model on texts `X` (n,) or pairs (n, 2) and classes `y` (n,); return the estimator.

        A tenth of the records, chosen by content, is held out to pick the best step and to calibrate.

        Raises:
            InputError: X and y do not fit, a text is empty, or there is one class only.
        """
        records, by_name = self._records(X, y)
        workplace = _Workplace()
        settings = self._settings() | {"out": str(workplace.path / "run")}
        settings["task"] = "entail" if "first" in records[0] else "classify"
        if not by_name.keys().isdisjoint(_MARKS) and not any("," in name for name in by_name) and len(by_name) > 1:
            settings["rows"] = {"labels": ",".join(by_name)} | settings["rows"]  # so that -1 is a class like any other
        self.report_ = train(records, **settings)
        self._workplace = workplace  # removed with this object
        self._folder = self.report_.folder / ("best" if (self.report_.folder / "best").is_dir() else "final")
        self._predictor = open_predictor(str(self._folder), device=str(pick_device(settings.get("device", "auto"))))
        self.classes_ = np.unique(np.asarray(list(by_name.values())))
        order = {name: i for i, name in enumerate(self._predictor.labels)}
        self._columns = [order[class_name(value, "y")] for value in self.classes_]
        return self

    def _settings(self) -> dict[str, Any]:
        """What the training job is asked for, where and what for aside; InputError for a setting given twice."""
        given = dict(self.settings or {})
        twice = next((name for name in given if name in (*self.get_params(), "task", "data", "out")), None)
        if twice is not None:
            fix = "leave it out: the task follows from X" if twice in ("task", "data", "out") else "give it by itself"
            raise InputError("settings", f"{twice} is not among them", given[twice], fix)
        own = {"model": self.model, "epochs": self.epochs, "batch_size": self.batch_size, "seed": self.seed}
        if self.lr is not None:
            own["lr"] = self.lr
        if self.lora is not None:
            own["lora"] = dict(self.lora)
        rows = given.get("rows", {})
        rows = dict(rows) if isinstance(rows, Mapping) else to_dict(rows)
        return own | given | {"rows": {"on_empty": "error"} | rows}

    def _records(self, X: Any, y: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """The training records, and the classes as they were given by their names."""
        items, given = _items(X, "X"), _items(y, "y")
        if len(items) != len(given) or not items:
            got = f"y has {len(given):,}"
            raise InputError("fit", f"X has {len(items):,} items", got, "give one class for each text")
        names = [class_name(value, f"y[{i}]", "y") for i, value in enumerate(given)]
        if "" in names:
            i = names.index("")
            raise InputError(f"y[{i}]", "no class", given[i], "leave the text out, or give it a class")
        pairs = isinstance(items[0], list | tuple) or (isinstance(items[0], Mapping) and "text" not in items[0])
        records = [
            {**document_of(item, pairs, f"X[{i}]"), "label": name}
            for i, (item, name) in enumerate(zip(items, names, strict=True))
        ]
        return records, dict(zip(names, given, strict=True))

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return calibrated probabilities (n, classes), columns in the order of `classes_`."""
        predictor = self._fitted()
        documents = (document_of(item, predictor.pairs, f"X[{i}]") for i, item in enumerate(_items(X, "X")))
        rows = [list(found.probabilities.values()) for found in predictor.predict(documents)]
        return np.asarray(rows, dtype=np.float64).reshape(-1, len(predictor.labels))[:, self._columns]

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the likeliest class of each text (n,), as it was given to `fit`."""
        best = self.predict_proba(X).argmax(axis=1)
        chosen: NDArray[Any] = self.classes_[best]
        return chosen

    def score(self, X: Any, y: Any) -> float:
        """Return the accuracy on `X` and `y`."""
        return float(np.mean(self.predict(X) == np.asarray(_items(y, "y"))))

    def save(self, folder: Path | str) -> None:
        """Write the tuned model to a new folder, for `finetwo predict` and for other tools."""
        self._fitted()
        target = Path(folder)
        if target.exists():
            raise InputError("folder", "exists already", str(target), "give a new folder")
        shutil.copytree(self._folder, target)

    def _fitted(self) -> Predictor:
        if not hasattr(self, "_predictor"):
            raise InputError("Classifier", "is not fitted yet", None, "call fit(X, y) first")
        return self._predictor


class _Workplace:
    """A temporary folder that goes when nobody needs it any more; copies of an estimator share it."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="finetwo-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)

    def __deepcopy__(self, memo: object) -> _Workplace:
        return self


def _items(values: Any, name: str) -> list[Any]:
    """The values of a list, array, Series or DataFrame one by one."""
    if hasattr(values, "to_numpy"):
        values = values.to_numpy()
    if isinstance(values, np.ndarray):
        if values.ndim == 2 and values.shape[1] == 1:  # a table of one column
            values = values[:, 0]
        return [tuple(row) if isinstance(row, list) else row for row in values.tolist()]
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InputError(name, "must be a list or an array", type(values).__name__, "give one item for each text")
    return list(values)
