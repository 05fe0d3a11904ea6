"""Prompts are held against what training wrote: every layout passes as it is, and each thing that is changed shows."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.standins.models import TEXT, tiny_config
from tests.train.support import QUICK, records, write_jsonl

from finetwo import load, train
from finetwo.core.config import RowsConfig
from finetwo.core.errors import InputError
from finetwo.data.sequences import Segment
from finetwo.generate.pipeline import Model
from finetwo.insight.serving import Outcome, Served, ServingOptions, Way, check_serving
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.tasks import task as task_module
from finetwo.tasks.task import Fields, Task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer, train_vocabulary
from finetwo.train.recorded import recorded_of

OPTIONS = ServingOptions(max_new_tokens=5)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A base of 2 layers, width 32, context 256."""
    folder = tmp_path_factory.mktemp("serving") / "base"
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=256, n_embd=32, n_layer=2, n_head=2)
    save_model(folder, Network.fresh(shape, 3), tiny_tokenizer, Extras())
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("asked") / "qa.jsonl", records(20))


@pytest.fixture(scope="session")
def alpaca(tmp_path_factory: pytest.TempPathFactory, base: Path, data: Path) -> Path:
    """A run with the Alpaca template."""
    out = tmp_path_factory.mktemp("runs") / "alpaca"
    train(str(data), model=str(base), out=str(out), **(QUICK | {"template": "alpaca", "max_steps": 2}))
    return out


def python(model: Model) -> Way:
    def ask(prompts: Sequence[Any], max_new_tokens: int) -> list[Served]:
        if model.network.config.labels:
            return [Served(probabilities=found.probabilities) for found in model.predict(list(prompts))]
        from finetwo.core.config import SamplingConfig

        answers = model.answers(prompts, SamplingConfig(max_new_tokens=max_new_tokens))
        return [Served(a.prompt_ids, a.texts[0]) for a in answers]

    return ask


def check(run: Path, data: Path, options: ServingOptions = OPTIONS, **ways: Way) -> Outcome:
    """Check a run's model by the Python API, or in other ways."""
    model = load(str(run))
    folder = run if (run / "finetwo.json").is_file() else next(p for p in (run / "best", run / "final") if p.is_dir())
    return check_serving(model, recorded_of(folder), data, options, ways or {"python": python(model)}, lambda _: None)


def trained(data: Path, base: Path, out: Path, **settings: Any) -> Path:
    train(str(data), model=str(base), out=str(out), **(QUICK | {"max_steps": 2} | settings))
    return out


def test_a_run_is_asked_as_it_was_trained(alpaca: Path, data: Path) -> None:
    outcome = check(alpaca, data)
    assert outcome.passed and [(c.way, c.prompts) for c in outcome.checks] == [("template", 20), ("python", 16)]
    assert "the template alpaca, as the run" in outcome.source and outcome.lines()[-1] == "serving check: passed"
    assert json.loads(json.dumps(outcome.to_dict()))["passed"] is True


def test_prompts_with_an_input_are_written_by_the_other_text(base: Path, tmp_path: Path) -> None:
    rows = [
        {"instruction": r["prompt"], "input": "at nine" if i % 2 else "", "output": r["completion"]}
        for i, r in enumerate(records(12))
    ]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    run = trained(data, base, tmp_path / "run", template="alpaca")
    assert check(run, data).passed
    edit(run, with_input="{prompt} {input}:")
    outcome = check(run, data)
    assert [len(c.faults) for c in outcome.checks] == [6, 6]


def edit(run: Path, **texts: str) -> None:
    """Change the template of a run's model folders on purpose."""
    for path in run.glob("*/finetwo.json"):
        content = json.loads(path.read_text())
        content["template"] |= texts
        path.write_text(json.dumps(content))


def test_a_changed_template_is_caught(alpaca: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alpaca, run)
    edit(run, text=Template.named("alpaca").text.replace("### Response:\n", "### Response: "))
    outcome = check(run, data)
    assert not outcome.passed and outcome.lines()[-1] == "serving check: FAILED"
    assert [len(c.faults) for c in outcome.checks] == [20, 16]
    assert "qa.jsonl:1: record 1: from token" in outcome.checks[0].faults[0]
    assert "Response:\\n' is asked" not in outcome.checks[0].faults[0]


def test_a_changed_template_is_caught_without_a_receipt(alpaca: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alpaca, run)
    (run / "receipt.json").unlink()
    assert check(run, data).passed
    edit(run, text="{prompt}")
    assert not check(run, data).passed


def test_another_template_than_the_stored_is_caught(alpaca: Path, data: Path) -> None:
    outcome = check(alpaca, data, replace(OPTIONS, template="dolly"))
    assert not outcome.passed and outcome.source == "the template dolly, named by --template"
    assert check(alpaca, data, replace(OPTIONS, template="alpaca")).passed


def test_a_model_that_lost_its_template_is_caught(alpaca: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(alpaca, run)
    for path in run.glob("*/finetwo.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"template": None}))
    assert not check(run, data).passed


def test_another_tokenizer_is_caught(alpaca: Path, data: Path, tmp_path: Path, tiny_tokenizer: Tokenizer) -> None:
    run = tmp_path / "run"
    shutil.copytree(alpaca, run)
    other = Tokenizer(train_vocabulary(iter([TEXT.upper()] * 4), 300))
    for folder in (p.parent for p in run.glob("*/finetwo.json")):
        (folder / "tokenizer.json").unlink()
        other.save(folder)
    outcome = check(run, data)
    assert [c.way for c in outcome.checks] == ["tokenizer"] and not outcome.passed


def test_a_way_that_answers_otherwise_is_caught(alpaca: Path, data: Path) -> None:
    model = load(str(alpaca))

    def longer(prompts: Sequence[Any], max_new_tokens: int) -> list[Served]:
        return [replace(s, text=s.text + "!") for s in python(model)(prompts, max_new_tokens)]

    def shifted(prompts: Sequence[Any], max_new_tokens: int) -> list[Served]:
        return [replace(s, ids=s.ids[1:]) for s in python(model)(prompts, max_new_tokens)]

    outcome = check(alpaca, data, good=python(model), longer=longer, shifted=shifted)
    assert {c.way: len(c.faults) for c in outcome.checks} == {"template": 0, "good": 0, "longer": 16, "shifted": 16}
    assert "the network answers '" in outcome.checks[2].line() and "from token 1 on" in outcome.checks[3].line()


def test_every_answer_of_a_conversation_is_asked_for(base: Path, tmp_path: Path) -> None:
    rows = records(24)
    talks = [
        {
            "messages": [
                {"role": "system", "content": "be short"},
                *(
                    {"role": role, "content": r[part]}
                    for r in rows[i : i + 2]
                    for role, part in (("user", "prompt"), ("assistant", "completion"))
                ),
            ]
        }
        for i in range(0, 24, 2)
    ]
    data = write_jsonl(tmp_path / "talks.jsonl", talks)  # type: ignore[arg-type]
    run = trained(data, base, tmp_path / "run", template=None)
    outcome = check(run, data)
    assert outcome.passed and outcome.checks[0].prompts == 24 and "template chat" in outcome.source
    edit(run, text="User: {prompt}\nBot: ")
    assert [len(c.faults) for c in check(run, data).checks] == [24, 16]


def test_prompts_without_room_are_counted(alpaca: Path, data: Path, tmp_path: Path) -> None:
    long = [{"prompt": "wind " * 40, "completion": "word"}] * 2
    rows = write_jsonl(tmp_path / "long.jsonl", [*records(3), *long])
    outcome = check(alpaca, rows, replace(OPTIONS, max_new_tokens=128))
    assert outcome.passed and outcome.left_out >= 2 and f"not answered: {outcome.left_out}" in outcome.lines()[-2]


def test_a_task_that_learns_its_prompts(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def both(fields: Fields, template: Template | None) -> list[Segment]:
        assert template is not None
        return [Segment(template.prompt(fields), learn=True), Segment(fields["completion"], learn=True, end=True)]

    monkeypatch.setitem(task_module._TASKS, "both", Task("both", "instruct", "records", both, "both", template="plain"))
    run = trained(data, base, tmp_path / "run", task="both")
    assert check(run, data).passed
    edit(run, text="{prompt}?\n")
    assert not check(run, data).passed


def test_a_classifier_gives_training_s_probabilities(base: Path, tmp_path: Path) -> None:
    rows = [{"text": r["prompt"], "label": "ab"[i % 2]} for i, r in enumerate(records(30))]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    run = trained(data, base, tmp_path / "run", template=None, lr=1e-2, max_steps=4)
    outcome = check(run, data)
    assert outcome.passed and [(c.way, c.prompts) for c in outcome.checks] == [("python", 16)]
    model = load(str(run))
    cooler = python(replace(model, temperature=model.temperature * 1.01))
    assert not check(run, data, cooler=cooler).passed


def test_pairs(base: Path, tmp_path: Path) -> None:
    texts = records(30)
    rows = [{"sentence1": r["prompt"], "sentence2": r["completion"], "label": "ab"[i % 2]} for i, r in enumerate(texts)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    assert check(trained(data, base, tmp_path / "run", template=None), data).passed


def test_what_cannot_be_checked(alpaca: Path, base: Path, data: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    with pytest.raises(InputError, match="holds no prompts that could be served"):
        check(alpaca, text)
    with pytest.raises(InputError, match="nothing tells how training wrote its prompts"):
        check(base, data)
    with pytest.raises(InputError, match="this part of the data has no record"):
        check(alpaca, data, replace(OPTIONS, part="test"))
    split = replace(OPTIONS, part="test", rows=RowsConfig(split="train:15,test:5"))
    assert check(alpaca, data, split).checks[0].prompts == 5


def test_a_model_without_its_run(alpaca: Path, data: Path, tmp_path: Path) -> None:
    shutil.copytree(next(p for p in (alpaca / "best", alpaca / "final") if p.is_dir()), tmp_path / "alone")
    outcome = check(tmp_path / "alone", data)
    assert outcome.passed and "of the model itself" in outcome.source
    assert not check(tmp_path / "alone", data, replace(OPTIONS, template="chat")).passed
