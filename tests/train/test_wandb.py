"""Weights & Biases for real, offline: what lies in the run folder, and that nobody was called."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from finetwo.core.errors import InputError
from finetwo.train.wandb import make, mode

pytest.importorskip("wandb")

SRC = Path(__file__).parents[2] / "src"

TRACK = """
import json, struct, sys
from pathlib import Path
from finetwo.train.listeners import make_listener

run = Path(sys.argv[1])
for resumed, steps in ((0, (1, 2, 3)), (2, (3, 4))):
    listener = make_listener("wandb", run)
    listener.hear({"event": "start", "total_steps": 4, "folder": str(run), "resumed": resumed})
    if not resumed:
        listener.hear({"event": "evaluation", "step": 0, "loss": 3.5, "macro_f1": 0.25, "best": True})
    for step in steps:
        listener.hear({"event": "step", "step": step, "loss": 1.0 / step, "lr": 0.5, "total_steps": 4})
    if resumed:
        listener.hear({"event": "sample", "step": 4, "prompt": "who?", "texts": ["the keeper"]})
    listener.close()

import wandb
wandb.teardown()  # as at the end of a process: what was sent to the writing process is on the disk then

def records(path):
    # The file is a log of blocks of 32 KiB; each record in it is a message.
    from wandb.proto import wandb_internal_pb2
    data, at, parts = Path(path).read_bytes(), 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record

found = []
for folder in sorted(run.glob("wandb/offline-run-*")):
    (path,) = folder.glob("*.wandb")
    one = {"history": [], "config": {}}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            one |= {"id": record.run.run_id, "name": record.run.display_name, "project": record.run.project}
            one |= {"host": record.run.host}
            one["config"] |= {u.key: json.loads(u.value_json) for u in record.run.config.update}
        if kind == "history":
            row = {("/".join(i.nested_key) or i.key): json.loads(i.value_json) for i in record.history.item}
            one["history"].append(row)
    found.append(one)
print(json.dumps(found))
"""


class Server:
    """Counts who connects, and answers nobody."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.calls = 0
        threading.Thread(target=self._count, daemon=True).start()

    def _count(self) -> None:
        while True:
            try:
                self.socket.accept()[0].close()
            except OSError:
                return
            self.calls += 1

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"


def test_offline_for_real(tmp_path: Path) -> None:
    """Curves, configuration and samples; one id for both starts; no call, no question, nothing outside the run."""
    run, home, server = tmp_path / "my-run", tmp_path / "home", Server()
    run.mkdir()
    home.mkdir()
    (run / "config.yaml").write_text("lr: 0.5\nlora:\n  rank: 8\n", encoding="utf-8")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("WANDB_", "XDG_", "PYTEST_"))}
    env = kept | {"PYTHONPATH": str(SRC), "HOME": str(home), "WANDB_BASE_URL": server.url, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", TRACK, str(run)],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    server.socket.close()
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the terminal is the run's own"
    first, second = json.loads(done.stdout)
    assert server.calls == 0
    assert list(home.rglob("*")) == []
    assert first["id"] == second["id"] == (run / "wandb" / "run-id").read_text().strip()
    assert (first["name"], first["project"], first["host"]) == ("my-run", "finetwo", "")
    assert first["config"]["lr"] == 0.5 and first["config"]["lora"] == {"rank": 8}
    assert curve(first, "train/loss") == [(1, 1.0), (2, 0.5), (3, pytest.approx(1 / 3))]
    assert curve(second, "train/loss") == [(3, pytest.approx(1 / 3)), (4, 0.25)], "the step goes on"
    assert curve(first, "validation/macro_f1") == [(0, 0.25)]
    assert [step for step, _ in curve(second, "samples/nrows")] == [4]
    (table,) = (run / "wandb").glob("offline-run-*/files/media/table/samples_4_*.table.json")
    assert json.loads(table.read_text())["data"] == [[4, "who?", "the keeper"]]


def curve(found: dict[str, Any], name: str) -> list[tuple[int, Any]]:
    return [(row["_step"], row[name]) for row in found["history"] if name in row]


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({}, "offline"),
        ({"WANDB_MODE": ""}, "offline"),
        ({"WANDB_MODE": "offline", "WANDB_API_KEY": "k"}, "offline"),
        ({"WANDB_MODE": "dryrun", "WANDB_API_KEY": "k"}, "offline"),
        ({"WANDB_MODE": "disabled", "WANDB_API_KEY": "k"}, "disabled"),
        ({"WANDB_MODE": "shared", "WANDB_API_KEY": "k"}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": ""}, "offline"),
        ({"WANDB_MODE": "online"}, "online"),
        ({"WANDB_MODE": "ONLINE "}, "online"),
    ],
)
def test_a_server_is_called_only_where_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], wanted: str
) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert mode() == wanted


def test_nobody_is_asked_to_log_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Online without a key would make the package ask at the keyboard, in the middle of a run."""
    monkeypatch.setenv("WANDB_MODE", "online")
    for name in ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    keys = tmp_path / "keys"
    monkeypatch.setenv("NETRC", str(keys))
    monkeypatch.setenv("HOME", str(tmp_path))
    refused = "--track wandb: WANDB_MODE=online, but nobody is logged in"
    for content in (None, "garbage\n", "machine example.org login u password p\n"):
        if content is not None:
            keys.write_text(content)
        with pytest.raises(InputError, match=refused):
            make(tmp_path)
    keys.write_text("machine api.wandb.ai login user password " + "k" * 40 + "\n")
    keys.chmod(0o600)
    make(tmp_path)
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    with pytest.raises(InputError, match=refused):
        make(tmp_path)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    make(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["keys"]
