"""BLEU and ROUGE-L: streamed, and equal to what their packages give for the whole set."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from finetwo.core.errors import InputError
from finetwo.insight.metric import Answered, Metric
from finetwo.insight.overlap import Bleu, rouge_l

REFERENCES = [
    "The lamp in the harbour went out at nine.",
    "She counted the steps, all 365 of them, to the top.",
    "Nobody answered; the wind had taken every word.",
    "Zoë's café sells crème brûlée.",
    "It is raining cats and dogs over the old town tonight.",
]
ANSWERS = [
    "The lamp in the harbour went out at ten.",
    "She counted 365 steps to the very top of them all.",
    "The wind had taken every word, and nobody answered.",
    "",
    "It is raining cats and dogs over the old town tonight.",
]


def fed(metric: Metric, answers: list[str], references: list[str]) -> Metric:
    for answer, reference in zip(answers, references, strict=True):
        metric.add(Answered("", "", reference, answer, "stop"))
    return metric


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_bleu_is_that_of_the_whole_corpus(count: int) -> None:
    answers, references = ANSWERS[:count], REFERENCES[:count]
    metric = fed(Bleu(0), answers, references)
    whole = BLEU()
    assert metric.result()["bleu"] == pytest.approx(whole.corpus_score(answers, [references]).score, abs=1e-9)
    assert str(whole.get_signature()) in metric.protocol
    assert f"{count} records" in metric.protocol


def test_bleu_of_answers_that_share_nothing_is_zero() -> None:
    assert fed(Bleu(0), ["x y z", "u"], ["a b c", "d"]).result() == {"bleu": 0.0}
    assert fed(Bleu(0), ["", ""], ["a b c", "d"]).result() == {"bleu": 0.0}
    assert Bleu(0).result() == {"bleu": None}
    assert "no records" in Bleu(0).protocol


def test_the_interval_of_bleu_is_over_corpora() -> None:
    metric = fed(Bleu(0), ANSWERS * 8, REFERENCES * 8)
    low, high = metric.intervals()["bleu"]
    score = metric.result()["bleu"]
    assert score is not None
    assert 0 < low < score < high < 100
    assert fed(Bleu(0), REFERENCES, REFERENCES).intervals() == {"bleu": pytest.approx((100.0, 100.0))}
    assert fed(Bleu(0), ANSWERS[:1], REFERENCES[:1]).intervals() == {}


def test_rouge_l_is_the_mean_of_the_package() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    each = [scorer.score(r, a)["rougeL"].fmeasure for a, r in zip(ANSWERS, REFERENCES, strict=True)]
    metric = fed(rouge_l(0), ANSWERS, REFERENCES)
    assert metric.result()["rouge_l"] == pytest.approx(sum(each) / len(each))
    assert min(each) == 0.0
    assert max(each) == 1.0
    assert "stemmer" in metric.protocol
    assert fed(rouge_l(0), ["running cats"], ["run cat"]).result() == {"rouge_l": 1.0}  # stemmed


def test_the_stemmer_brings_no_packages_along(tmp_path: Path) -> None:
    """nltk loads SciPy, pandas and scikit-learn where it finds them: more than the model takes, for nothing."""
    for name in ("scipy", "pandas", "sklearn", "matplotlib"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("")
    program = (
        "import sys\nfrom finetwo.insight.overlap import rouge_l\nrouge_l(0)\n"
        "print(sorted({'scipy', 'pandas', 'sklearn', 'matplotlib'} & set(sys.modules)))\nimport scipy, sklearn"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@pytest.mark.parametrize(("module", "make", "name"), [("sacrebleu", Bleu, "bleu"), ("rouge_score", rouge_l, "rouge_l")])
def test_a_missing_package_is_one_line(
    module: str, make: type[Bleu], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for loaded in [m for m in sys.modules if m.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"--metrics {name}: needs the package .*finetwo\[eval\]"):
        make(0)
