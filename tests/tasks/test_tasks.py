"""The declarations of the tasks, and that each of them trains end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.standins.models import TEXT, tiny_config

import finetwo
from finetwo.core.errors import InputError
from finetwo.data.sequences import Segment
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.tasks.registry import all_tasks, find_task
from finetwo.tasks.task import Task
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

FIELDS = {"prompt": "Who counts the steps?", "input": "There are 365.", "completion": "The keeper's daughter."}


def test_tasks_by_name() -> None:
    assert [t.name for t in all_tasks()] == ["classify", "entail", "instruct", "pretrain", "style"]
    with pytest.raises(
        InputError,
        match=r"--task: unknown task \(got classfy\)\. Fix: use auto, classify, entail, instruct, pretrain, style",
    ):
        find_task("classfy")


@pytest.mark.parametrize("name", ["alpaca", "dolly", "plain"])
def test_instruct_reads_the_prompt_and_learns_the_answer_and_its_end(name: str) -> None:
    """Seed faults 0.3, 0.4 and 0.17: the serving prompt is the training prompt; the whole header is prompt."""
    template = Template.named(name)
    segments = find_task("instruct").write(FIELDS, template)
    assert segments == [
        Segment(template.prompt(FIELDS), learn=False, end=False),
        Segment(FIELDS["completion"], learn=True, end=True),
    ]


@pytest.mark.parametrize("name", ["style", "pretrain"])
def test_text_is_learned_whole(name: str) -> None:
    segments = find_task(name).write({"text": "The lamp."}, Template.named("plain"))
    assert segments == [Segment("The lamp.", learn=True, end=True)]


def test_only_pretrain_starts_fresh_and_only_instruct_has_a_prompt() -> None:
    assert {t.name for t in all_tasks() if t.fresh} == {"pretrain"}
    assert {t.name for t in all_tasks() if t.template} == {"instruct"}
    assert {t.name for t in all_tasks() if t.layout == "records"} == {"classify", "entail", "instruct"}
    assert {t.name for t in all_tasks() if t.head == "classes"} == {"classify", "entail"}


@pytest.mark.parametrize("task", all_tasks(), ids=lambda t: t.name)
@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
def test_every_task_trains_two_steps_end_to_end(
    tmp_path: Path, tiny_tokenizer: Tokenizer, task: Task, adapter: bool
) -> None:
    """Seed fault 0.8: one recipe called exit() before it compiled, and could never train."""
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=128, n_embd=16, n_layer=2, n_head=2)
    base = tmp_path / "base"
    save_model(base, Network.fresh(shape, 0), tiny_tokenizer, Extras())
    data: list[dict[str, str]]
    if task.kind == "text":
        data = [{"text": f"{i}. {TEXT}"} for i in range(30)]
    elif task.head == "classes":
        texts = {"text": "{}: {}"} if task.kind == "classify" else {"premise": "a lamp {1}", "hypothesis": "{0}"}
        told = ["so even", "it is odd"]  # the class is in the text, or two steps would learn it by luck alone
        data = [
            {k: v.format(told[i % 2], i) for k, v in texts.items()} | {"label": "odd" if i % 2 else "even"}
            for i in range(90)
        ]
    else:
        data = [{"instruction": f"{i}?", "input": "", "output": f"the lamp {i}"} for i in range(30)]
    settings: dict[str, Any] = {"max_steps": 2, "task": task.name, "max_length": 64, "lr": 1e-2, "batch_size": 2}
    if task.name == "instruct":
        settings["template"] = "plain"
    if task.head == "classes":
        settings |= {"batch_size": 32, "max_steps": 20}
    settings |= {"size": "2,16,2", "tokenizer": str(base)} if task.fresh else {"model": str(base)}
    if adapter:
        settings["lora"] = {"rank": 2}
    if adapter and task.fresh:
        with pytest.raises(InputError, match="--lora"):
            finetwo.train(data, out=str(tmp_path / "run"), **settings)
        return
    report = finetwo.train(data, out=str(tmp_path / "run"), **settings)
    assert report.steps == settings["max_steps"]
    assert report.first is not None
    assert report.last is not None
    assert report.last["loss"] < report.first["loss"]
    opened = finetwo.load(str(tmp_path / "run"))
    assert opened.task == task.name
    if task.head == "classes":
        assert opened.network.config.labels == ("even", "odd")
        with pytest.raises(InputError, match="use finetwo predict"):
            opened.generate("the lamp")
        return
    assert isinstance(opened.generate("the lamp", max_new_tokens=4), str)
