"""The faults of the systems this one replaces: which tests hold each of them, and the tests that have no other home.

The numbers are those of the list of seed faults.
"""

from __future__ import annotations

import re
import socket
import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.standins.models import random_network, tiny_config

import finetwo
from finetwo.app import cli
from finetwo.generate import sampling
from finetwo.generate.pipeline import Model
from finetwo.model.lora import linears
from finetwo.model.network import Network
from finetwo.model.stored import weight_bytes
from finetwo.model.storing import store_blocks
from finetwo.store.change import Change, probe_tokens
from finetwo.store.folder import Extras, save_model
from finetwo.store.yaml import read_settings
from finetwo.text.template import Template
from finetwo.text.tokenizer import Tokenizer

TESTS = Path(__file__).parent
ROOT = TESTS.parent
HELD = {
    "0.1": "train/test_prepare.py: test_more_than_a_hundred_records_are_kept",
    "0.2": "train/test_prepare.py: test_mask_is_the_answer_and_its_end",
    "0.3": "tasks/test_tasks.py: test_instruct_reads_the_prompt_and_learns_the_answer_and_its_end",
    "0.4": "tasks/test_tasks.py: test_instruct_reads_the_prompt_and_learns_the_answer_and_its_end",
    "0.5": "data/test_batch.py: test_padding_is_on_the_right_and_carries_nothing",
    "0.6": "model/test_head.py: test_the_separator_is_read_like_any_token",
    "0.7": "test_seed_faults.py: test_the_entailment_recipe_is_what_was_published",
    "0.8": "test_recipes.py: test_a_recipe_takes_two_steps",
    "0.9": "generate/test_engine.py: test_the_window_is_the_context_length",
    "0.10": "generate/test_sampling.py: test_top_p_keeps_the_crossing_token test_warpers_equal_hugging_face",
    "0.11": "train/test_loop.py: test_reported_loss_is_sum_over_count",
    "0.12": "app/test_cli.py: test_real_booleans",
    "0.13": "train/test_resume.py: test_no_record_is_missing_or_double_over_many_deaths",
    "0.14": "train/test_prepare.py: test_documents_are_split_before_they_are_cut",
    "0.15": "model/test_lora.py: test_a_wrong_target_lists_the_right_ones",
    "0.16": "train/test_loop.py: test_global_step_and_epoch_in_the_log",
    "0.17": "train/test_prepare.py: test_template_travels_with_the_model",
    "0.18": "train/test_prepare.py: test_mask_is_the_answer_and_its_end",
    "0.19": "train/test_loop.py: test_packing_equals_padding",
    "0.20": "test_seed_faults.py: test_a_run_needs_few_packages_and_no_network",
    "0.21": "model/test_lora.py: test_scale test_the_published_shape_has_the_published_counts test_default_targets",
    "0.22": "train/test_loop.py: test_accumulated_micro_batches_equal_one_batch",
    "0.23": "train/test_loop.py: test_reported_loss_is_sum_over_count",
    "0.24": "test_seed_faults.py: test_quantisation_is_there_and_is_measured",
    "0.25": "test_seed_faults.py: test_the_answer_alone_comes_back",
    "0.26": "train/test_signals.py: test_deterministic_run_trains",
    "0.27": "test_seed_faults.py: test_there_is_one_installed_command",
    "0.28": "model/test_network.py: test_forward_on_the_meta_device",
}
"""The tests of each fault: their file, and their names in it."""


@pytest.mark.parametrize("number", HELD)
def test_each_fault_is_held_by_tests_that_are_there(number: str) -> None:
    file, _, names = HELD[number].partition(": ")
    there = re.findall(r"^def (test_\w+)\(", (TESTS / file).read_text(encoding="utf-8"), flags=re.M)
    assert names and set(names.split()) <= set(there)


def test_the_entailment_recipe_is_what_was_published() -> None:
    """0.7: GLUE and LoRA in the text, another data set of three classes and no LoRA in the code."""
    found: dict[str, Any] = {s.name: s.value for s in read_settings(ROOT / "recipes" / "rte.yaml")}
    assert found["data"] == "hub:nyu-mll/glue/rte" and found["task"] == "entail"
    assert found["rows.labels"] == "entailment,not_entailment"
    assert found["lora.rank"] == "16"


def test_a_run_needs_few_packages_and_no_network(
    tmp_path: Path, tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.20: a day lost to an environment. Few dependencies, each with an upper bound; a run opens no connection."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert len(project["dependencies"]) < 12
    assert all(">=" in needed and ",<" in needed for needed in project["dependencies"])
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64, n_embd=16, n_layer=2, n_head=2)
    save_model(tmp_path / "base", Network.fresh(shape, 0), tiny_tokenizer, Extras())

    def refuse(*_: object) -> None:
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    data = [{"prompt": f"{i}?", "completion": f"{i}!"} for i in range(20)]
    model = str(tmp_path / "base")
    report = finetwo.train(data, model=model, max_steps=1, template="plain", out=str(tmp_path / "run"))
    assert report.steps == 1


@pytest.mark.parametrize(("kind", "bytes_a_weight", "worse"), [("nf4", 0.53, 0.05), ("int8", 1.03, 0.005)])
def test_quantisation_is_there_and_is_measured(kind: str, bytes_a_weight: float, worse: float) -> None:
    """0.24: ticked as to come, and never measured. Size and perplexity here; speed and memory by the benchmark."""
    model = finetwo.load("tiny")
    matrices = sum(linear.weight.numel() for linear in linears(model.network).values())
    probe = probe_tokens(model.tokenizer, model.network.config.n_positions)
    with torch.no_grad():
        before, size = model.network(probe), weight_bytes(model.network)
        assert store_blocks(model.network, kind) == 4 * model.network.config.n_layer
        after = Change.between(probe, before, model.network(probe), classes=False)
    assert size - weight_bytes(model.network) > (4 - bytes_a_weight) * matrices
    assert after.perplexity is not None
    assert 0 < abs(after.perplexity[1] / after.perplexity[0] - 1) < worse
    page = (ROOT / "docs" / "quantised.md").read_text(encoding="utf-8")
    assert "benchmarks/quantised.py" in page and f"| `{kind}` |" in page.partition("processor time of a step")[2]
    assert (ROOT / "benchmarks" / "quantised.py").is_file()


def test_the_answer_alone_comes_back(tiny_tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """0.25: the answer came back behind the prompt's header, with the end-of-text mark in it."""
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=256)
    model = Model(random_network(shape), tiny_tokenizer, Template.named("alpaca"))
    said = iter([*tiny_tokenizer.encode("The lamp is out."), tiny_tokenizer.eot, *tiny_tokenizer.encode("more")])

    def choose(_: object, logits: torch.Tensor, slots: list[int]) -> list[int]:
        return [next(said) for _ in slots]

    monkeypatch.setattr(sampling.Sampler, "choose", choose)
    assert model.generate("Who put it out?", max_new_tokens=40) == "The lamp is out."
    assert next(said, None) is not None, "it goes on behind the end"


def test_there_is_one_installed_command() -> None:
    """0.27: scripts to be run from the right folder with a path set by hand."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["scripts"] == {"finetwo": "finetwo.app.cli:entry"}
    (command,) = entry_points(group="console_scripts", name="finetwo")
    assert command.load() is cli.entry
