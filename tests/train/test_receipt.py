"""The receipt of a run: what it holds, that it is the same however the run went, and what reading it refuses."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.train.support import MICRO, At, digest, overflowing, quick, records, step_losses

from finetwo import NumericError, load, train
from finetwo.core.errors import InputError, Stopped
from finetwo.store.folder import base_digest
from finetwo.text.template import Template
from finetwo.train.receipt import BLOCK, Chain, marks_of
from finetwo.train.recorded import differences, read_receipt, recorded_of


def receipt(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((run / "receipt.json").read_text(encoding="utf-8"))
    return content


def chained(losses: list[float]) -> str:
    """The chain over losses, by the rule that the receipt states."""
    found = b""
    for step, loss in enumerate(losses, 1):
        found = hashlib.sha256(found + f"{step} {loss!r}\n".encode()).digest()
    return found.hex()


def test_what_it_holds(base: Path, data: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    quick(str(data), base, run, max_steps=4, seed=5, template="dolly")
    found = receipt(run)
    sha = hashlib.sha256(data.read_bytes()).hexdigest()
    assert found["data"]["files"] == [{"name": data.name, "bytes": data.stat().st_size, "sha256": sha}]
    assert found["data"]["counts"]["read"] == 30 and found["data"]["path"] == str(data)
    assert found["template"] == {
        "digest": Template.named("dolly").digest,
        "content": Template.named("dolly").to_dict(),
    }
    model = load(str(base))
    assert found["tokenizer"] == model.tokenizer.digest and found["base"]["sha256"] == base_digest(model.network)
    assert (found["seed"], found["total_steps"], found["config"]["lr"], found["finished"]) == (5, 4, 5e-4, True)
    assert found["packages"]["torch"] == torch.__version__ and found["hardware"]["threads"] == torch.get_num_threads()
    assert len(found["code"]["sha256"]) == 64 and found["failure"] is None and found["resumed_at"] == 0
    assert found["losses"]["steps"] == 4 and found["losses"]["sha256"] == chained(step_losses(run))
    assert found["weights"] == {"file": "final/model.safetensors", "sha256": digest(run / "final")}


def test_it_holds_no_secret(base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "WANDB_API_KEY", "SOME_PASSWORD"):
        monkeypatch.setenv(name, f"hush-{name}")
    quick(str(data), base, tmp_path / "run", max_steps=1)
    text = (tmp_path / "run" / "receipt.json").read_text(encoding="utf-8")
    assert "hush" not in text and os.uname().nodename not in text.replace(str(tmp_path), "")
    assert not any(r["prompt"] in text or r["completion"] in text for r in records(30) if len(r["completion"]) > 12)


def test_a_stopped_and_resumed_run_has_the_same_chain(base: Path, data: Path, tmp_path: Path) -> None:
    def stop() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def go(out: Path, *listeners: At) -> None:
        train(str(data), model=str(base), out=str(out), listeners=listeners, **MICRO)

    go(tmp_path / "whole")
    with pytest.raises(Stopped):
        go(tmp_path / "broken", At("step", 3, stop))
    halfway = receipt(tmp_path / "broken")
    assert halfway["finished"] is False and halfway["weights"] is None and halfway["losses"]["steps"] == 3
    assert halfway["failure"]["type"] == "Stopped"
    go(tmp_path / "broken")
    whole, broken = receipt(tmp_path / "whole"), receipt(tmp_path / "broken")
    assert (broken["losses"], broken["weights"]) == (whole["losses"], whole["weights"])
    assert broken["finished"] and broken["resumed_at"] == 3 and broken["failure"] is None


def test_a_run_with_nothing_to_do_keeps_its_receipt(base: Path, data: Path, tmp_path: Path) -> None:
    kept = []
    for _ in range(2):
        quick(str(data), base, tmp_path / "run", max_steps=2)
        kept.append((tmp_path / "run" / "receipt.json").read_bytes())
    assert kept[0] == kept[1]


def test_a_numeric_failure_is_told(base: Path, tmp_path: Path) -> None:
    folder, rows = overflowing(base, tmp_path)
    with pytest.raises(NumericError):
        quick(str(rows), folder, tmp_path / "run", max_steps=8, rows={"split": "train:31"})
    found = receipt(tmp_path / "run")
    assert found["finished"] is False and found["failure"]["type"] == "NumericError" and found["weights"] is None
    assert "loss nan" in found["failure"]["line"] and found["losses"]["steps"] >= 1


def test_adapters_classes_streams_and_memory(base: Path, data: Path, tmp_path: Path) -> None:
    quick(str(data), base, tmp_path / "adapter", max_steps=1, lora={"rank": 2})
    assert receipt(tmp_path / "adapter")["weights"]["file"] == "final/adapter_model.safetensors"
    quick(str(data), tmp_path / "adapter", tmp_path / "on", max_steps=1)
    weights = next((tmp_path / "adapter").glob("*/adapter_model.safetensors"))
    assert receipt(tmp_path / "on")["base"]["adapter"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    quick(records(15), base, tmp_path / "memory", max_steps=1)
    assert receipt(tmp_path / "memory")["data"]["files"] == [] and receipt(tmp_path / "memory")["data"]["path"] is None
    text = tmp_path / "text.txt"
    text.write_text("The lamp went out.\n" * 40, encoding="utf-8")
    fresh = {"task": "pretrain", "size": "1,8,1", "tokenizer": str(base), "max_length": 16}
    train(str(text), out=str(tmp_path / "text"), max_steps=1, save_every="0", sample_every="0", **fresh)
    assert receipt(tmp_path / "text")["base"]["sha256"] == "fresh"
    assert receipt(tmp_path / "text")["template"] == {"digest": None, "content": None}


# --- the chain ------------------------------------------------------------------------------------------------------


def test_the_chain_has_a_link_every_hundred_steps_and_a_mark_for_each() -> None:
    chain, losses = Chain(), [1.0 / (i + 1) for i in range(2 * BLOCK + 7)]
    digests = [chain.add(i, loss) for i, loss in enumerate(losses, 1)]
    found = chain.to_dict()
    assert [link["step"] for link in found["links"]] == [BLOCK, 2 * BLOCK, 2 * BLOCK + 7]
    assert [link["sha256"] for link in found["links"]] == [digests[BLOCK - 1], digests[2 * BLOCK - 1], digests[-1]]
    assert found["sha256"] == chained(losses) and found["steps"] == len(losses)
    assert marks_of(found) == [d[:8] for d in digests]
    other = Chain()
    for i, loss in enumerate(losses, 1):
        other.add(i, loss + (1e-15 if i == 150 else 0.0))
    at = [i for i, (a, b) in enumerate(zip(marks_of(found), marks_of(other.to_dict()), strict=True), 1) if a != b]
    assert at == list(range(150, len(losses) + 1))


# --- reading --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = tmp_path_factory.mktemp("receipts") / "run"
    quick(str(data), base, run, max_steps=2)
    return receipt(run)


DAMAGE: dict[str, Callable[[dict[str, Any]], object]] = {
    "data": lambda r: r.update(data=[]),
    "data.digest": lambda r: r["data"].pop("digest"),
    "data.files": lambda r: r["data"].update(files=["data.jsonl"]),
    "base.sha256": lambda r: r["base"].update(sha256=5),
    "template.content": lambda r: r["template"].update(content="{prompt}"),
    "config": lambda r: r.pop("config"),
    "total_steps": lambda r: r.update(total_steps="2"),
    "seed": lambda r: r.update(seed=True),
    "finished": lambda r: r.update(finished=1),
    "failure": lambda r: r.update(failure={"type": "NumericError"}),
    "weights": lambda r: r.update(weights={"file": "final/model.safetensors"}),
    "losses.links": lambda r: r["losses"]["links"].append(7),
    "losses.steps": lambda r: r["losses"].update(steps=3),
}


@pytest.mark.parametrize("part", DAMAGE)
def test_a_damaged_receipt_is_refused_by_the_part(good: dict[str, Any], part: str, tmp_path: Path) -> None:
    content = json.loads(json.dumps(good))
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(content), encoding="utf-8")
    assert read_receipt(tmp_path) == content
    DAMAGE[part](content)
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_receipt(path)
    assert f"a damaged receipt: {part} is not what it must be" in caught.value.line()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "file is empty"),
        ("{", "receipt.json"),
        ("[]", "is not a receipt of a format known here (got list)"),
        ('{"format": 2}', "is not a receipt of a format known here (got 2)"),
        ('{"format": 1}', "a damaged receipt: data is not"),
    ],
)
def test_what_is_no_receipt(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "receipt.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_receipt(tmp_path)
    assert said in caught.value.line() and "\n" not in caught.value.line()


def test_differences(good: dict[str, Any]) -> None:
    other = json.loads(json.dumps(good))
    assert differences(good, other) == []
    other["packages"]["torch"] = "0.1"
    other["code"]["sha256"] = "0" * 64
    found = differences(good, other)
    assert found[0] == f"code.sha256: {good['code']['sha256'][:12]} then, {'0' * 12} now"
    assert found[1] == f"packages.torch: {torch.__version__} then, 0.1 now"


def test_what_a_run_recorded_of_its_prompts(base: Path, data: Path, tmp_path: Path) -> None:
    quick(str(data), base, tmp_path / "run", max_steps=1, template="dolly")
    found = recorded_of(tmp_path / "run" / "final")
    assert found is not None and found.template == Template.named("dolly")
    (tmp_path / "run" / "receipt.json").unlink()
    assert recorded_of(tmp_path / "run" / "final") == found
    assert recorded_of(base) is None
