"""Names become local folders in one place; the hub is a stand-in on this machine."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tests.standins.hub import COMMIT, StandInHub, serving

from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError
from finetwo.store import local as local_module
from finetwo.store.hub import resolve
from finetwo.store.tensors import read_tensors, write_tensors


def model_files(folder: Path) -> dict[str, bytes]:
    """Return the files of a small model as a hub has them, some of no use to us among them."""
    write_tensors(folder / "w.safetensors", {"wte.weight": torch.arange(5000.0)})
    return {
        "config.json": b'{"model_type": "gpt2"}',
        "tokenizer.json": b'{"version": "1.0"}',
        "model.safetensors": (folder / "w.safetensors").read_bytes(),
        "pytorch_model.bin": b"\x80\x02never fetched",
        "README.md": b"# never fetched",
        "tf_model.h5": b"never fetched",
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    files = model_files(tmp_path)
    with serving() as running:
        running.repos["openai-community/gpt2"] = files
        running.repos["some/model"] = dict(files)
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a local name touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for name in names:
        (path / name).write_text("{}")
    return path


# --- local names


@pytest.mark.usefixtures("no_network")
def test_local_folder_and_run_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model = folder_with(tmp_path / "mine", "config.json", "model.safetensors")
    assert resolve(str(model)) == model
    assert resolve("mine") == Path("mine")
    assert resolve("./mine/") == Path("mine")
    run = folder_with(tmp_path / "runs" / "a", "finetwo-run.json")
    with pytest.raises(InputError, match="no model yet"):
        resolve(str(run))
    folder_with(run / "final", "config.json", "model.safetensors")
    assert resolve("runs/a") == Path("runs/a/final")
    folder_with(run / "best", "adapter_config.json", "adapter_model.safetensors")
    assert resolve("runs/a") == Path("runs/a/best")


@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("./mime", "no such model folder. Fix: did you mean mine"),
        ("runs/nothing", "no such model folder"),
        ("/nowhere/at/all", "no such model folder"),
        ("~/nowhere-at-all", "no such model folder"),
        ("a/b/c", "no such model folder"),
        ("gtp2", "unknown model (got gtp2). Fix: did you mean gpt2? known are tiny, gpt2"),
        ("llama", "unknown model"),
        ("", "not a possible name"),
        ("a\0b", "not a possible name"),
        ("x" * 300, "not a possible name"),
        ("../x", "no such model folder"),
        ("a/..", "unknown model"),
        ("file.txt", "is a file, not a model folder"),
        ("empty", "holds no model: tried config.json and adapter_config.json"),
        ("old", "legacy format, which can run code; refused (got pytorch_model.bin). Fix: convert it to safetensors"),
        ("check", "is a checkpoint, not a model"),
    ],
)
def test_bad_local_names(name: str, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder_with(tmp_path / "mine", "config.json")
    folder_with(tmp_path / "runs")
    folder_with(tmp_path / "empty")
    folder_with(tmp_path / "old", "config.json", "pytorch_model.bin")
    folder_with(tmp_path / "check", "manifest.json", "state.json")
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(InputError) as caught:
        resolve(name)
    assert text in str(caught.value).replace("\n", " ")


def test_embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = tmp_path / "finetwo" / "store" / "local.py"
    monkeypatch.setattr(local_module, "__file__", str(module))
    with pytest.raises(InputError, match="not part of this installation"):
        resolve("tiny")
    model = folder_with(tmp_path / "finetwo" / "assets" / "tiny", "config.json")
    assert resolve("tiny") == model
    with pytest.raises(InputError, match="only for a model of the hub"):
        resolve("tiny", "main")


# --- the hub


def test_download_takes_only_what_a_model_needs(hub: StandInHub, tmp_path: Path) -> None:
    folder = resolve("gpt2")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert folder.name == COMMIT
    assert folder.is_relative_to(tmp_path / "home" / "hub")
    assert torch.equal(read_tensors(folder / "model.safetensors")["wte.weight"], torch.arange(5000.0))
    assert sorted(hub.served()) == ["config.json", "model.safetensors", "tokenizer.json"]
    assert resolve("openai-community/gpt2") == folder
    assert len(hub.served()) == 3, "a second time comes from the cache"


def test_revision(hub: StandInHub) -> None:
    assert resolve("some/model", "v1").name == COMMIT
    with pytest.raises(InputError, match="knows no such revision"):
        resolve("some/model", "v9")


def test_offline_uses_the_cache(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"offline mode is on.*known are tiny, gpt2.*local folder"):
        resolve("gpt2")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    folder = resolve("gpt2")
    asked = len(hub.log)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert resolve("gpt2") == folder
    assert len(hub.log) == asked


def test_network_down(hub: StandInHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    url = hub.url
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(EnvironmentFault, match="cannot be reached"):
            resolve("gpt2")
        monkeypatch.setenv("HF_ENDPOINT", url)
        folder = resolve("gpt2")
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with caplog.at_level(logging.WARNING, "finetwo"):
            assert resolve("gpt2") == folder
    assert "using the copy in the cache" in caplog.text


@pytest.mark.parametrize(
    ("faults", "kind", "text"),
    [
        ({"api": 500}, EnvironmentFault, "HTTP 500"),
        ({"api": 401}, InputError, "knows no such model"),
        ({"api": 403}, InputError, "asks for permission"),
        ({"tokenizer.json": 404}, InputError, "tokenizer.json: 127.0.0.1 has no such file"),
        ({"model.safetensors": 500}, EnvironmentFault, "model.safetensors"),
        ({"model.safetensors": "wrong"}, EnvironmentFault, "download is damaged"),
        ({"config.json": "wrong"}, EnvironmentFault, "download is damaged"),
        ({"model.safetensors": "dead"}, EnvironmentFault, "broke off"),
    ],
)
def test_faults_of_a_hub(
    faults: dict[str, int | str],
    kind: type[FineTwoError],
    text: str,
    hub: StandInHub,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.faults.update(faults)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(kind) as caught:
        resolve("gpt2")
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    monkeypatch.undo()  # the same name works once the hub does


def test_after_a_damaged_download_the_next_try_works(hub: StandInHub) -> None:
    hub.faults["model.safetensors"] = "wrong"
    with pytest.raises(EnvironmentFault):
        resolve("gpt2")
    hub.faults.clear()
    assert read_tensors(resolve("gpt2") / "model.safetensors")["wte.weight"].shape == (5000,)


def test_dropped_connection_is_resumed(hub: StandInHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    hub.faults["model.safetensors"] = "drop"
    folder = resolve("gpt2")
    assert torch.equal(read_tensors(folder / "model.safetensors")["wte.weight"], torch.arange(5000.0))


def test_unknown_model(hub: StandInHub) -> None:
    with pytest.raises(InputError, match=r"nobody/nothing: 127\.0\.0\.1 knows no such model.*known are tiny"):
        resolve("nobody/nothing")


def test_legacy_weights_are_refused_before_any_download(hub: StandInHub) -> None:
    del hub.repos["some/model"]["model.safetensors"]
    with pytest.raises(InputError, match=r"legacy format.*pytorch_model\.bin.*convert it to safetensors"):
        resolve("some/model")
    assert hub.served() == []
    del hub.repos["some/model"]["pytorch_model.bin"]
    with pytest.raises(InputError, match="holds no weights"):
        resolve("some/model")


def test_shards(hub: StandInHub) -> None:
    files = hub.repos["some/model"]
    files["model-00001-of-00002.safetensors"] = files.pop("model.safetensors")
    files["model-00002-of-00002.safetensors"] = files["model-00001-of-00002.safetensors"]
    table = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    files["model.safetensors.index.json"] = json.dumps(table).encode()
    folder = resolve("some/model")
    assert (folder / "model-00002-of-00002.safetensors").exists()
    assert "pytorch_model.bin" not in hub.served()


@pytest.mark.parametrize("shard", ["../../x.safetensors", "/etc/passwd", "a.bin", "missing.safetensors", 7])
def test_bad_shards(shard: object, hub: StandInHub) -> None:
    files = hub.repos["some/model"]
    del files["model.safetensors"]
    files["model.safetensors.index.json"] = json.dumps({"weight_map": {"a": shard}}).encode()
    with pytest.raises(InputError, match=r"shard|weight_map"):
        resolve("some/model")


def test_token_goes_to_the_hub_and_nowhere_else(
    hub: StandInHub,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    hub.faults["api"] = 500
    with caplog.at_level(logging.DEBUG), pytest.raises(EnvironmentFault) as caught:
        resolve("gpt2")
    assert hub.tokens
    out, err = capfd.readouterr()
    assert "verysecret" not in out + err + caplog.text + str(caught.value)
