"""Data sets of a hub become local folders that the ordinary readers read; the hub is a stand-in on this machine."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.standins.hub import COMMIT, StandInHub, serving

from finetwo.core.config import RowsConfig
from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError
from finetwo.data.source import find_files, read_all
from finetwo.store.hub_data import HubName, data_path

CARD = """---
license: mit
configs:
- config_name: split
  data_files:
  - split: train
    path: split/train-*
  - split: validation
    path: split/validation.jsonl
  - split: unsupervised
    path: split/more.jsonl
- config_name: unsplit
  data_files: "unsplit/*.csv"
---
# A set made for these tests
"""


def lines(*texts: str) -> bytes:
    return "".join(json.dumps({"text": text, "label": "a"}) + "\n" for text in texts).encode()


def files() -> dict[str, bytes]:
    return {
        "README.md": CARD.encode(),
        ".gitattributes": b"*.parquet filter=lfs",
        "split/train-00000-of-00002.jsonl": lines("one", "two"),
        "split/train-00001-of-00002.jsonl": lines("three"),
        "split/validation.jsonl": lines("four"),
        "split/more.jsonl": lines("never fetched"),
        "unsplit/all.csv": b"text,label\nfive,a\n",
        "big.bin": b"\x80\x02never fetched",
    }


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandInHub]:
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "HF_HUB_CACHE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with serving() as running:
        running.repos["datasets/some/set"] = files()
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def texts(path: Path) -> dict[str, list[object]]:
    found = find_files(path)
    return {split: [row.fields["text"] for row in read_all(part, RowsConfig())] for split, part in found.items()}


# --- names


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("hub:a/b", HubName("a/b")),
        ("hub:nyu-mll/glue/rte", HubName("nyu-mll/glue", "rte")),
        ("hub:a/b@v1", HubName("a/b", None, "v1")),
        ("hub:a/b/20220301.en@refs/convert/parquet", HubName("a/b", "20220301.en", "refs/convert/parquet")),
    ],
)
def test_names(text: str, parts: HubName) -> None:
    assert HubName.parse(text) == parts


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("hub:", "write hub:OWNER/NAME"),
        ("hub:a", "write hub:OWNER/NAME"),
        ("hub:a/", "write hub:OWNER/NAME"),
        ("hub:a/b/", "write hub:OWNER/NAME"),
        ("hub:a/b/c/d", "write hub:OWNER/NAME"),
        ("hub:a/..", "write hub:OWNER/NAME"),
        ("hub:../../x", "write hub:OWNER/NAME"),
        ("hub:a/b@", "write hub:OWNER/NAME"),
        ("hub:a/b/..", "write hub:OWNER/NAME"),
        ("hub:a/b@../main", "write hub:OWNER/NAME"),
        ("hub:a/b@x\ny", "write hub:OWNER/NAME"),
        ("hub:emotion", "hub:dair-ai/emotion"),
        ("hub:glue/rte", "hub:nyu-mll/glue/rte"),
    ],
)
def test_bad_names(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        HubName.parse(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_path_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a local path touched the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    assert data_path("data/train.jsonl") == Path("data/train.jsonl")
    assert data_path(tmp_path) == tmp_path
    assert data_path("./hub:a/b") == Path("./hub:a/b")


# --- what comes


def test_a_configuration_is_read_like_a_folder(hub: StandInHub, tmp_path: Path) -> None:
    said: list[str] = []
    folder = data_path("hub:some/set/split", said.append)
    assert texts(folder) == {"train": ["one", "two", "three"], "validation": ["four"]}
    assert folder.name == COMMIT
    assert folder.is_relative_to(tmp_path / "home" / "hub" / "datasets--some--set")
    served = ["README.md", "train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl", "validation.jsonl"]
    assert sorted(hub.served()) == served
    assert "splits that are not used: unsupervised" in said[0]
    assert said[-1] == f"data: hub:some/set/split, commit {COMMIT[:12]}: train 2 files, validation 1 file"
    assert data_path("hub:some/set/split") == folder
    assert sorted(hub.served()) == served, "a second time comes from the cache"
    assert texts(data_path("hub:some/set/unsplit@v1")) == {"train": ["five"]}


def test_a_configuration_must_be_named_where_there_are_several(hub: StandInHub) -> None:
    with pytest.raises(InputError, match=r"has several configurations: split, unsplit. Fix: hub:some/set/split"):
        data_path("hub:some/set")
    with pytest.raises(InputError, match=r"no such configuration; there are split, unsplit \(got splt\)"):
        data_path("hub:some/set/splt@v1")
    assert "validation.jsonl" not in hub.served()


def test_a_program_is_never_run(hub: StandInHub, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    program = f"open({str(canary)!r}, 'w').write('x')".encode()
    hub.repos["datasets/some/set"] = {"set.py": program, "train.jsonl": lines("x")}
    with pytest.raises(InputError, match=r"is a program, and programs of a hub are never run \(got set\.py\)"):
        data_path("hub:some/set")
    hub.repos["datasets/some/set"] = {"load.py": program, "data.zip": b"PK"}
    with pytest.raises(InputError, match=r"hub:some/set@refs/convert/parquet"):
        data_path("hub:some/set")
    assert hub.served() == []
    assert not canary.exists()
    hub.repos["datasets/some/set"] = {"rte/train/0000.jsonl": lines("x"), "rte/test/0000.jsonl": lines("y")}
    folder = data_path("hub:some/set/rte@refs/convert/parquet")
    assert texts(folder) == {"train": ["x"], "test": ["y"]}


def test_nothing_to_read(hub: StandInHub) -> None:
    del hub.repos["datasets/some/set"]["split/validation.jsonl"]
    with pytest.raises(InputError, match=r"names files that are not there.*split/validation\.jsonl"):
        data_path("hub:some/set/split")
    hub.repos["datasets/some/set"] = {"pictures.tar": b"x"}
    with pytest.raises(InputError, match="holds no data that can be read"):
        data_path("hub:some/set")


# --- what goes wrong


@pytest.mark.parametrize(
    ("faults", "kind", "text"),
    [
        ({"api": 500}, EnvironmentFault, "HTTP 500"),
        ({"api": 401}, InputError, "knows no such data set"),
        ({"api": 403}, InputError, "asks for permission to read this data set. Fix: set HF_TOKEN"),
        ({"validation.jsonl": 404}, InputError, "split/validation.jsonl: 127.0.0.1 has no such file"),
        ({"validation.jsonl": 500}, EnvironmentFault, "validation.jsonl"),
        ({"train-00001-of-00002.jsonl": "wrong"}, EnvironmentFault, "download is damaged"),
        ({"README.md": "wrong"}, EnvironmentFault, "download is damaged"),
        ({"train-00000-of-00002.jsonl": "dead"}, EnvironmentFault, "broke off"),
    ],
)
def test_faults_of_a_hub(faults: dict[str, int | str], kind: type[FineTwoError], text: str, hub: StandInHub) -> None:
    hub.faults.update({name if name == "api" else _path(name): fault for name, fault in faults.items()})
    with pytest.raises(kind) as caught:
        data_path("hub:some/set/split")
    assert text in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    hub.faults.clear()
    assert len(texts(data_path("hub:some/set/split"))["train"]) == 3, "the same name works once the hub does"


def _path(name: str) -> str:
    return name if name == "README.md" else f"split/{name}"


def test_half_a_file_is_completed(hub: StandInHub) -> None:
    hub.repos["datasets/some/set"]["split/validation.jsonl"] = lines(*map(str, range(5000)))
    hub.faults["split/validation.jsonl"] = "drop"
    assert len(texts(data_path("hub:some/set/split"))["validation"]) == 5000


def test_unknown_names(hub: StandInHub) -> None:
    with pytest.raises(InputError, match=r"nobody/nothing: 127\.0\.0\.1 knows no such data set.*check the name"):
        data_path("hub:nobody/nothing")
    with pytest.raises(InputError, match="knows no such revision"):
        data_path("hub:some/set/split@v9")


def test_offline_and_without_network(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    with pytest.raises(InputError, match=r"hub:some/set/split: not in the cache .*offline mode is on"):
        data_path("hub:some/set/split")
    monkeypatch.delenv("HF_DATASETS_OFFLINE")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setenv("HF_ENDPOINT", nowhere)
        with pytest.raises(EnvironmentFault, match=r"cannot be reached.*check the network"):
            data_path("hub:some/set/split")
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        folder = data_path("hub:some/set/split")
        monkeypatch.setenv("HF_ENDPOINT", nowhere)
        with caplog.at_level(logging.WARNING, "finetwo"):
            assert data_path("hub:some/set/split") == folder
    assert "using the copy in the cache" in caplog.text
    asked = len(hub.log)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert data_path("hub:some/set/split") == folder
    assert data_path(f"hub:some/set/split@{COMMIT}") == folder
    assert len(hub.log) == asked
    next(folder.iterdir()).resolve().unlink()
    with pytest.raises(InputError, match="not in the cache"):
        data_path("hub:some/set/split")


def test_names_that_lead_elsewhere_are_not_fetched(hub: StandInHub, tmp_path: Path) -> None:
    hub.repos["datasets/some/set"] = {"../../evil/train.jsonl": lines("x"), "/etc/train.jsonl": lines("x")}
    with pytest.raises(InputError, match="holds no data that can be read"):
        data_path("hub:some/set")
    assert hub.served() == []


def test_parquet_with_class_names(hub: StandInHub, tmp_path: Path) -> None:
    """As most published sets are: parts of Parquet, classes as numbers with names."""
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    repository = hub.repos["datasets/some/set"] = {"README.md": b"# no head"}
    for index in range(2):
        part = {"text": [f"{index}{letter}" for letter in "abc"], "label": [1, 0, -1]}
        datasets.Dataset.from_dict(part, features=features).to_parquet(tmp_path / "part.parquet")
        repository[f"data/train-0000{index}-of-00002.parquet"] = (tmp_path / "part.parquet").read_bytes()
    hub.faults["data/train-00001-of-00002.parquet"] = "wrong"
    with pytest.raises(EnvironmentFault, match="download is damaged: expected hash"):
        data_path("hub:some/set")
    hub.faults.clear()
    folder = data_path("hub:some/set")
    rows = read_all(find_files(folder)["train"], RowsConfig())
    assert [row.fields["text"] for row in rows] == ["0a", "0b", "0c", "1a", "1b", "1c"]
    assert [row.fields["label"] for row in rows] == ["yes", "no", None] * 2
    assert rows[0].where == f"{folder}/train-00000-of-00002.parquet: record 1"
