"""A receipt's job runs again: identical where everything is as it was, else refused or stopped at the first step."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.standins.hub import StandInHub, serving
from tests.standins.models import tiny_config
from tests.train.support import MICRO, At, overflowing, quick, records, snapshot, write_jsonl

from finetwo import NumericError, train
from finetwo.app.cli import main
from finetwo.core.errors import Stopped
from finetwo.model.network import Network
from finetwo.store.folder import Extras, save_model
from finetwo.store.models import open_model
from finetwo.text.tokenizer import Tokenizer
from finetwo.train import receipt as receipt_module

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer: Tokenizer) -> Path:
    """A model folder: 2 layers, width 32, context 64, fresh weights."""
    folder = tmp_path_factory.mktemp("reproduced") / "base"
    shape = tiny_config(vocab_size=tiny_tokenizer.vocab_size, n_positions=64, n_embd=32, n_layer=2, n_head=2)
    save_model(folder, Network.fresh(shape, 3), tiny_tokenizer, Extras())
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "qa.jsonl", records(30))


@pytest.fixture(scope="session")
def run(base: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with dropout, evaluations and samples at a temperature, none of which may disturb its losses."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "prompts.txt").write_text("the lamp\n", encoding="utf-8")
    asked = {"sample_prompts": str(folder / "prompts.txt"), "sample_every": "3", "sampling": {"temperature": 1.0}}
    train(str(data), model=str(base), out=str(folder / "run"), **(MICRO | asked))
    return folder / "run"


def again(capsys: Capture, *words: str) -> tuple[int, str, str]:
    """Run `finetwo reproduce`; return the exit code, what it answered and the error."""
    capsys.readouterr()
    code = main(["reproduce", *words])
    out, err = capsys.readouterr()
    return code, out, next((line for line in err.splitlines() if line.startswith("error: ")), "")


def changed(run: Path, folder: Path, change: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of a run's receipt with something changed, its log beside it."""
    folder.mkdir(exist_ok=True)
    content = json.loads((run / "receipt.json").read_text(encoding="utf-8"))
    change(content)
    (folder / "receipt.json").write_text(json.dumps(content), encoding="utf-8")
    shutil.copy(run / "metrics.jsonl", folder)
    return folder / "receipt.json"


def test_identical(run: Path, tmp_path: Path, capsys: Capture) -> None:
    before = snapshot(run)
    code, out, _ = again(capsys, str(run / "receipt.json"), "--out", str(tmp_path / "again"))
    steps = json.loads((run / "receipt.json").read_text())["losses"]["steps"]
    assert code == 0 and out.startswith(f"identical: {steps} steps, every loss and the final weights (sha256 ")
    assert snapshot(run) == before
    code, out, _ = again(capsys, str(run), "--out", str(tmp_path / "run-again"))
    assert code == 0


@pytest.mark.parametrize("kind", ["adapter", "classes", "prepared", "style"])
def test_other_jobs(kind: str, base: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    out, settings, given = tmp_path / "run", {"max_steps": 3}, str(data)
    if kind == "adapter":
        settings |= {"lora": {"rank": 2, "dropout": 0.1}}
    elif kind == "classes":
        rows = [{"text": r["prompt"], "label": "ab"[i % 2]} for i, r in enumerate(records(30))]
        given, settings["template"] = str(write_jsonl(tmp_path / "rows.jsonl", rows)), None
    elif kind == "prepared":
        given = str(tmp_path / "prepared")
        settings["template"] = None
        assert main(["prepare", str(data), "--out", given, "--model", str(base), "--template", "plain"]) == 0
    else:
        (tmp_path / "novel.txt").write_text("The lamp went out at nine.\n" * 200, encoding="utf-8")
        given, settings = str(tmp_path / "novel.txt"), settings | {"template": None, "max_length": 16}
    quick(given, base, out, **settings)
    code, said, error = again(capsys, str(out), "--out", str(tmp_path / "again"))
    assert code == 0 and said.startswith("identical: 3 steps"), error


def test_a_resumed_and_a_stopped_run(base: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    def go(*listeners: At) -> None:
        train(str(data), model=str(base), out=str(tmp_path / "run"), listeners=listeners, **MICRO)

    with pytest.raises(Stopped):
        go(At("step", 3, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    code, out, _ = again(capsys, str(tmp_path / "run"), "--out", str(tmp_path / "half"))
    assert code == 0 and out == "identical: 3 steps, every loss; the run of the receipt ended there unfinished\n"
    go()
    code, out, _ = again(capsys, str(tmp_path / "run"), "--out", str(tmp_path / "whole"))
    assert code == 0 and "every loss and the final weights" in out


def test_records_that_were_in_memory(base: Path, tmp_path: Path, capsys: Capture) -> None:
    quick(records(15), base, tmp_path / "run", max_steps=2)
    code, _, error = again(capsys, str(tmp_path / "run"))
    assert code == 2 and "--data: the data of this run was in memory; the receipt has only its hash" in error
    file = str(write_jsonl(tmp_path / "rows.jsonl", records(15)))
    code, out, _ = again(capsys, str(tmp_path / "run"), "--data", file)
    assert code == 0 and (tmp_path / "run-again" / "receipt.json").is_file(), out
    other = str(write_jsonl(tmp_path / "other.jsonl", records(15, seed=1)))
    code, _, error = again(capsys, str(tmp_path / "run"), "--data", other, "--out", str(tmp_path / "b"))
    assert code == 2 and "data: not what the receipt was made with" in error and not (tmp_path / "b").exists()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf-home"))
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with serving() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def test_data_of_a_hub(hub: StandInHub, base: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    hub.repos["datasets/someone/rows"] = {"data.jsonl": data.read_bytes()}
    quick("hub:someone/rows", base, tmp_path / "run", max_steps=2)
    code, out, error = again(capsys, str(tmp_path / "run"))
    assert code == 0 and out.startswith("identical: 2 steps"), error


def test_a_failure_is_a_result(base: Path, tmp_path: Path, capsys: Capture) -> None:
    folder, rows = overflowing(base, tmp_path)
    with pytest.raises(NumericError):
        quick(str(rows), folder, tmp_path / "run", max_steps=8, rows={"split": "train:31"})
    code, out, _ = again(capsys, str(tmp_path / "run"), "--out", str(tmp_path / "again"))
    assert code == 0 and "and then the same failure: train: step" in out


# --- what differs ---------------------------------------------------------------------------------------------------


def test_another_seed(run: Path, tmp_path: Path, capsys: Capture) -> None:
    path = changed(run, tmp_path / "r", lambda r: r["config"].update(seed=1))
    code, out, _ = again(capsys, str(path), "--out", str(tmp_path / "again"))
    assert code == 1 and out.startswith("differs first at step 1 of ")
    assert " then, " in out and "nothing that the receipt records of the environment differs" in out


def test_the_first_step_that_differs(run: Path, tmp_path: Path, capsys: Capture) -> None:
    def forge(content: dict[str, Any]) -> None:
        chain = receipt_module.Chain()
        for line in (run / "metrics.jsonl").read_text().splitlines():
            record = json.loads(line)
            if record["event"] == "step":
                chain.add(record["step"], record["loss"] + (record["step"] >= 4) * 1e-9)
        content["losses"] = chain.to_dict()
        content["packages"]["torch"] = "0.1"

    code, out, _ = again(capsys, str(changed(run, tmp_path / "r", forge)), "--out", str(tmp_path / "again"))
    assert code == 1 and out.startswith("differs first at step 4 of ")
    assert f"  packages.torch: 0.1 then, {torch.__version__} now" in out


def test_only_the_weights_differ(run: Path, tmp_path: Path, capsys: Capture) -> None:
    path = changed(run, tmp_path / "r", lambda r: r["weights"].update(sha256="0" * 64))
    code, out, _ = again(capsys, str(path), "--out", str(tmp_path / "again"))
    assert code == 1 and out.startswith("differs in the final weights only")


def test_other_code_is_named_and_tried(
    run: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receipt_module, "_code_digest", lambda: "f" * 64)
    capsys.readouterr()
    assert main(["reproduce", str(run), "--out", str(tmp_path / "again")]) == 0
    assert "not as it was: code.sha256: " in capsys.readouterr().err


def test_one_byte_of_the_data(run: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    other = tmp_path / data.name
    other.write_bytes(data.read_bytes().replace(b"0?", b"1?", 1))
    code, _, error = again(capsys, str(run), "--data", str(other), "--out", str(tmp_path / "again"))
    assert code == 2 and f"{other}: changed since the run: its SHA-256 was " in error
    assert not (tmp_path / "again").exists()
    code, _, error = again(capsys, str(run), "--data", str(tmp_path / "gone"), "--out", str(tmp_path / "again"))
    assert code == 2 and "the data of the receipt is not there" in error


def test_another_base_template_or_tokenizer(base: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    copy, template = tmp_path / "base", tmp_path / "mine.txt"
    shutil.copytree(base, copy)
    template.write_text("{prompt} =>", encoding="utf-8")
    quick(str(data), copy, tmp_path / "run", max_steps=2, template=str(template))
    template.write_text("{prompt} ->", encoding="utf-8")
    code, _, error = again(capsys, str(tmp_path / "run"))
    assert code == 2 and "template: not what the receipt was made with" in error
    template.write_text("{prompt} =>", encoding="utf-8")
    opened = open_model(str(copy))
    with torch.no_grad():
        opened.network.transformer.wte.weight[5, 5] += 1e-3
    save_model(copy, opened.network, opened.tokenizer, opened.extras)
    code, _, error = again(capsys, str(tmp_path / "run"))
    assert code == 2 and "base: not what the receipt was made with" in error and str(copy) in error
    assert not (tmp_path / "run-again").exists()


def test_what_is_refused(run: Path, tmp_path: Path, capsys: Capture) -> None:
    code, _, error = again(capsys, str(tmp_path / "none.json"))
    assert code == 2 and "none.json" in error
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "receipt.json").write_text('{"format": 1, "data": {}}')
    code, _, error = again(capsys, str(tmp_path / "bad"))
    assert code == 2 and "a damaged receipt: data.path is not what it must be" in error
    path = changed(run, tmp_path / "r", lambda r: r["config"].update(learning_rate=1))
    code, _, error = again(capsys, str(path), "--out", str(tmp_path / "again"))
    assert code == 2 and "learning_rate: unknown setting" in error
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").touch()
    code, _, error = again(capsys, str(run), "--out", str(tmp_path / "used"))
    assert code == 2 and "--out: exists and is not an empty folder" in error
    assert main(["reproduce"]) == 2


def test_an_adapter_that_was_gone_on_from(base: Path, data: Path, tmp_path: Path, capsys: Capture) -> None:
    quick(str(data), base, tmp_path / "first", max_steps=1, lora={"rank": 2})
    quick(str(data), tmp_path / "first", tmp_path / "run", max_steps=2, template=None)
    code, out, error = again(capsys, str(tmp_path / "run"))
    assert code == 0 and out.startswith("identical: 2 steps"), error
    file = next((tmp_path / "first").glob("*/adapter_model.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-3] ^= 1
    file.write_bytes(raw)
    code, _, error = again(capsys, str(tmp_path / "run"), "--out", str(tmp_path / "b"))
    assert code == 2 and "is not the adapter the run began with" in error
