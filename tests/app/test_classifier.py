"""`finetwo.Classifier` among the tools of scikit-learn, with every shape of X and y that people have."""

from __future__ import annotations

import gc
import io
import json
from contextlib import redirect_stderr, redirect_stdout
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier
from sklearn.calibration import CalibratedClassifierCV
from sklearn.model_selection import GridSearchCV, cross_val_predict, cross_val_score, train_test_split
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.validation import check_is_fitted
from tests.standins.models import tiny_config

import finetwo
from finetwo.app.classifier import Classifier
from finetwo.app.cli import main
from finetwo.core.errors import InputError
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.text.tokenizer import Tokenizer

WORDS = "harbour keeper daughter steps nine wind wall door"
X = [f"the {w} {'went out' if i % 2 else 'nobody answered'} {i}" for i, w in enumerate(WORDS.split() * 5)]
Y = ["out" if i % 2 else "no" for i in range(len(X))]
PAIRS = [(f"the lamp {i}", "it is odd" if i % 2 else "so even") for i in range(24)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> str:
    """A model folder small enough to train in a second."""
    folder = tmp_path_factory.mktemp("models") / "base"
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    save_model(folder, Network.fresh(shape, 3), tiny_tokenizer, Extras())
    return str(folder)


def quick(base: str, **settings: Any) -> Classifier:
    return Classifier(**({"model": base, "epochs": 2, "batch_size": 8, "lr": 1e-2} | settings))


@pytest.fixture(scope="module")
def fitted(base: str) -> Classifier:
    return quick(base, epochs=12).fit(X, Y)


# --- what it learns ---------------------------------------------------------------------------------------------------


def test_it_learns(fitted: Classifier) -> None:
    assert fitted.classes_.tolist() == ["no", "out"]
    assert fitted.score(X, Y) > 0.9
    shares = fitted.predict_proba(X)
    assert shares.shape == (40, 2) and shares.sum(axis=1) == pytest.approx(np.ones(40))
    assert (fitted.classes_[shares.argmax(axis=1)] == fitted.predict(X)).all()
    assert fitted.report_.best is not None and fitted.report_.best["accuracy"] >= 0.8
    assert fitted.predict(X[:3]).tolist() == fitted.predict(X).tolist()[:3]
    assert fitted.predict_proba([]).shape == (0, 2)


def test_equal_seeds_give_equal_answers(base: str) -> None:
    one, same, other = (quick(base, epochs=1, seed=s).fit(X, Y).predict_proba(X) for s in (3, 3, 4))
    assert (one == same).all() and (one != other).any()


def test_it_is_one_of_the_public_names() -> None:
    assert finetwo.Classifier is Classifier
    assert repr(Classifier(epochs=1)) == "Classifier(epochs=1)"


# --- every shape of X and y -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "texts",
    [tuple(X), np.array(X), np.array(X, dtype=object), pd.Series(X, index=range(100, 140)), pd.DataFrame({"t": X})],
    ids=["tuple", "array", "object array", "Series", "DataFrame of one column"],
)
def test_texts_in_any_shape(fitted: Classifier, base: str, texts: Any) -> None:
    assert fitted.predict(texts).tolist() == fitted.predict(X).tolist()
    assert quick(base, epochs=0.1).fit(texts, Y).classes_.tolist() == ["no", "out"]


@pytest.mark.parametrize(
    ("y", "wanted"),
    [
        ([i % 3 for i in range(40)], [0, 1, 2]),
        ([i % 2 == 0 for i in range(40)], [False, True]),
        (list(np.arange(40) % 2 == 0), [False, True]),
        ([float(i % 2) for i in range(40)], [0.0, 1.0]),
        ([(-1) ** i for i in range(40)], [-1, 1]),
        ([-1] + [1] * 20 + [0] * 19, [-1, 0, 1]),
        ([("b", "a", "a,b")[i % 3] for i in range(40)], ["a", "a,b", "b"]),
        ([10 if i % 2 else 9 for i in range(40)], [9, 10]),
    ],
    ids=["int", "bool", "numpy bool", "float", "-1 and 1", "rare -1", "comma", "9 and 10"],
)
@pytest.mark.parametrize("shape", [list, np.array, pd.Series])
def test_classes_come_back_as_they_were_given(base: str, y: list[Any], wanted: list[Any], shape: Any) -> None:
    model = quick(base, epochs=0.1).fit(X, shape(y))
    assert model.classes_.tolist() == wanted == sorted(wanted)
    assert model.classes_.dtype == np.asarray(y).dtype or model.classes_.dtype.kind == "U"
    assert set(model.predict(X).tolist()) <= set(wanted)
    assert model.predict_proba(X).shape == (40, len(wanted))
    assert 0 <= model.score(X, shape(y)) <= 1


@pytest.mark.parametrize(("out", "no"), [(10, 9), (-1, 1)])
def test_columns_of_predict_proba_stand_in_the_order_of_classes(base: str, out: int, no: int) -> None:
    """As texts 10 comes before 9, as numbers after it; 1 is met before -1: the column of a class must be its own."""
    y = [out if name == "out" else no for name in Y]
    model = quick(base, epochs=12).fit(X, y)
    assert model.score(X, y) > 0.9
    column = model.classes_.tolist().index(out)
    assert np.mean((model.predict_proba(X)[:, column] > 0.5) == (np.array(y) == out)) > 0.9


@pytest.mark.parametrize(
    "pairs",
    [
        PAIRS,
        [list(p) for p in PAIRS],
        np.array(PAIRS),
        pd.DataFrame(PAIRS, columns=["a", "b"]),
        [{"first": a, "second": b} for a, b in PAIRS],
    ],
    ids=["tuples", "lists", "array", "DataFrame", "dictionaries"],
)
def test_pairs_in_any_shape(base: str, pairs: Any) -> None:
    model = quick(base, epochs=0.1).fit(pairs, [i % 2 for i in range(24)])
    assert model.report_.model.task == "entail"
    assert model.predict_proba(pairs).shape == (24, 2)
    with pytest.raises(InputError, match=r"^X\[0\]: this model reads pairs of texts \(got the lamp\)"):
        model.predict(["the lamp"])


# --- scikit-learn's tools ---------------------------------------------------------------------------------------------


def test_clone_and_parameters(fitted: Classifier, base: str) -> None:
    model = quick(base, lora={"rank": 2}, settings={"class_weights": "balanced"})
    copy = clone(model)
    assert copy.get_params() == model.get_params() and copy is not model
    assert copy.set_params(epochs=7, lora=None).epochs == 7
    assert not hasattr(clone(fitted), "classes_")
    assert is_classifier(model)
    check_is_fitted(fitted)
    with pytest.raises(Exception, match="not fitted"):
        check_is_fitted(model)
    with pytest.raises(InputError, match=r"set_params\(rank\): no such parameter.*use model, epochs"):
        model.set_params(rank=2)


def test_cross_validation(base: str) -> None:
    scores = cross_val_score(quick(base, epochs=12), X, Y, cv=2)
    assert scores.shape == (2,) and scores.mean() > 0.8
    shares = cross_val_predict(quick(base, epochs=0.1), pd.Series(X), Y, cv=2, method="predict_proba")
    assert shares.shape == (40, 2)
    roc = cross_val_score(quick(base, epochs=12), np.array(X), Y, cv=2, scoring="roc_auc")
    assert roc.mean() > 0.8
    assert cross_val_score(quick(base, epochs=0.1), pd.DataFrame(PAIRS), [i % 2 for i in range(24)], cv=2).shape == (2,)


def test_grid_search_and_pipeline(base: str) -> None:
    chain = Pipeline([("strip", FunctionTransformer(_stripped)), ("model", quick(base))])
    search = GridSearchCV(chain, {"model__epochs": [0.1, 12], "model__lora": [None]}, cv=2)
    train, test, y_train, y_test = train_test_split(X, Y, test_size=0.25, stratify=Y, random_state=0)
    search.fit(train, y_train)
    assert search.best_params_["model__epochs"] == 12
    assert search.score(test, y_test) > 0.8
    assert search.predict_proba(test).shape == (10, 2)
    assert search.classes_.tolist() == ["no", "out"]


def _stripped(texts: Any) -> list[str]:
    return [t.strip() for t in texts]


def test_calibration_of_scikit_learn(base: str) -> None:
    wrapped = CalibratedClassifierCV(quick(base), cv=2).fit(np.array(X), Y)
    assert wrapped.predict_proba(np.array(X[:4])).shape == (4, 2)


def test_a_copy_outlives_the_estimator_it_was_taken_of(base: str, tmp_path: Path) -> None:
    model = quick(base, epochs=0.1).fit(X, Y)
    wanted, folder = model.predict_proba(X), model.report_.folder
    copy = deepcopy(model)
    del model
    gc.collect()
    assert (copy.predict_proba(X) == wanted).all()
    copy.save(tmp_path / "saved")
    assert folder.is_dir()
    del copy
    gc.collect()
    assert not folder.exists()


def test_lora_and_further_settings(base: str) -> None:
    settings = {"pooling": "mean", "rows": {"split": "train:0.8,validation:0.2"}, "head_dropout": 0.1}
    model = quick(base, lora={"rank": 2}, settings=settings).fit(X, Y)
    assert model.report_.model.network.lora is not None
    assert model.report_.model.network.config.pooling == "mean"
    assert set(model.predict(X)) <= {"no", "out"}


# --- to disk ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lora", [None, {"rank": 2}], ids=["full", "lora"])
def test_saved_for_predict(base: str, tmp_path: Path, lora: Any) -> None:
    model = quick(base, epochs=12, lora=lora).fit(X, Y)
    model.save(tmp_path / "model")
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        assert main(["predict", str(tmp_path / "model"), *X[:3], "--json"]) == 0
    found = [json.loads(line) for line in out.getvalue().splitlines()]
    for ours, share, name in zip(found, model.predict_proba(X[:3]), model.predict(X[:3]), strict=True):
        assert ours["prediction"] == name
        assert [ours["p(no)"], ours["p(out)"]] == pytest.approx(share, abs=1e-6)
    with pytest.raises(InputError, match="exists already"):
        model.save(tmp_path / "model")


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("texts", "y", "said"),
    [
        (X, Y[:-1], "fit: X has 40 items (got y has 39)"),
        ([], [], "fit: X has 0 items"),
        ("a text", ["a"], "X: must be a list or an array (got str)"),
        (X, "no", "y: must be a list or an array (got str)"),
        (X, ["a"] * 40, "one class only"),
        (X, [None, *Y[1:]], "y[0]: no class"),
        (X, [float("nan"), *[1.0, 2.0] * 19, 1.0], "y[0]: no class"),
        (X, [0.5, *[1.0, 2.0] * 19, 1.0], "y[0]: the field 'y' (label) is no class (got a number: 0.5)"),
        (["", *X[1:]], Y, "empty text"),
        ([None, *X[1:]], Y, "X[0]: must be a text"),
        ([*X[:-1], 5], Y, "X[39]: must be a text (got 5)"),
        ([("a", "b"), *X[1:]], Y, "X[1]: this model reads pairs of texts"),
        ([("a", "b", "c")] * 40, Y, "X[0]: this model reads pairs of texts"),
    ],
    ids=str,
)
def test_mistakes(base: str, texts: Any, y: Any, said: str) -> None:
    with pytest.raises(InputError) as caught:
        quick(base).fit(texts, y)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_setting_that_is_not_one_of_the_settings(base: str) -> None:
    for name, value in (("epochs", 3), ("task", "style"), ("out", "here")):
        with pytest.raises(InputError, match=rf"^settings: {name} is not among them"):
            quick(base, settings={name: value}).fit(X, Y)
    with pytest.raises(InputError, match="unknown setting"):
        quick(base, settings={"poling": "mean"}).fit(X, Y)


def test_before_fit_and_empty_texts(fitted: Classifier, tmp_path: Path) -> None:
    for call in (lambda: Classifier().predict(X), lambda: Classifier().save(tmp_path / "x")):
        with pytest.raises(InputError, match=r"Classifier: is not fitted yet\. Fix: call fit\(X, y\) first"):
            call()
    with pytest.raises(InputError, match="document 2: the field 'text' is missing or empty"):
        fitted.predict(["a", " "])
    with pytest.raises(InputError, match=r"X\[1\]: must be a text \(got nan\)"):
        fitted.predict(pd.Series(["a", np.nan], dtype=object))
