"""The run folder: refused where it should be, alone while open, gone if nothing came of it."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.core.strict_json import parse_json
from finetwo.store import run as run_module
from finetwo.store.run import RunFolder, is_run_folder, model_folder_of_run


def test_fresh_folder_is_made_with_parents_and_goes_again_if_nothing_came(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "a b é 😀"
    with RunFolder.open(path, 1000) as run:
        assert is_run_folder(path)
        assert (run.final, run.best, run.checkpoint(5)) == (path / "final", path / "best", path / "checkpoint-5")
        run.config.write_text("seed: 0\n")
        run.metrics.touch()
    assert os.listdir(tmp_path) == []


def test_what_came_of_it_stays(tmp_path: Path) -> None:
    for name in ("metrics", "final", "other"):
        path = tmp_path / name
        with RunFolder.open(path) as run:
            if name == "metrics":
                run.append_metrics({"step": 0})
            elif name == "final":
                run.final.mkdir()
            else:
                (path / "notes.md").touch()
        assert is_run_folder(path)
        assert not (path / "run.lock").exists()
    empty = tmp_path / "empty"
    empty.mkdir()
    with RunFolder.open(tmp_path / "metrics") as run:  # an old run is never removed
        run.metrics.unlink()
    assert (tmp_path / "metrics").exists()


def test_dead_writers_are_cleared_away(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.mkdir()
    (path / "run.lock").write_text("stale")
    (path / ".tmp-1-2").write_text("half")
    (path / ".tmp-checkpoint-5-1").mkdir()
    (path / ".tmp-checkpoint-5-1" / "x").touch()
    with RunFolder.open(path) as run:
        run.append_metrics({"step": 0})
        assert sorted(os.listdir(path)) == ["finetwo-run.json", "metrics.jsonl", "run.lock"]


def test_one_writer(tmp_path: Path) -> None:
    message = rf"another run is writing here \(got pid {os.getpid()} on"
    with RunFolder.open(tmp_path / "a"), pytest.raises(InputError, match=message):
        RunFolder.open(tmp_path / "a")
    RunFolder.open(tmp_path / "a").close()


def test_refused_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.jsonl").write_text("{}")
    (tmp_path / "file").write_text("x")
    (tmp_path / "dangling").symlink_to(tmp_path / "gone")
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "config.yaml").write_text("theirs")
    before = sorted(tmp_path.rglob("*"))
    cases = {
        "data": r"not empty and not a run \(got train\.jsonl\)\. Fix: give --out a new name",
        "foreign": "not empty and not a run",
        "data/out": "output lies inside the input",
        "file": "output is a file",
        "file/out": "file is a file, not a folder",
        "dangling": "a link to nothing",
        "a\nb": r"'a\\n?.*control characters",
        "a\0b": "control characters",
        "x" * 300: r"name is too long \(got 300 bytes\)",
        "é" * 200: r"name is too long \(got 400 bytes\)",
    }
    for name, text in cases.items():
        inputs = [data] if name == "data/out" else []
        with pytest.raises(InputError, match=text) as caught:
            RunFolder.open(Path(name), inputs=inputs)
        assert caught.value.exit_code == 2
        assert len(str(caught.value).splitlines()) == 1
    with pytest.raises(InputError, match="inside the input"):
        RunFolder.open(data, inputs=[data])
    assert sorted(tmp_path.rglob("*")) == before


def test_unusual_names_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("-x", "~", os.fsdecode(b"\xff\xfe"), "x" * 255):
        with RunFolder.open(Path(name)) as run:
            run.append_metrics({"step": 1})
        assert is_run_folder(Path(name))


def test_too_little_disk_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"too little disk.*needed 1,000,000,000,000,000 bytes, free [\d,]+"):
        RunFolder.open(tmp_path / "a", 10**15)
    assert os.listdir(tmp_path) == []


def test_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tmp_path.chmod(0o555)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere, so the answer is planted
    with pytest.raises(EnvironmentFault, match=rf"permission denied.*uid {os.getuid()}, .* mode 0[57]55"):
        RunFolder.open(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(EnvironmentFault, match=rf"read-only file system.*uid {os.getuid()}, {tmp_path} mode 0555"):
        RunFolder.open(tmp_path / "a" / "b")
    tmp_path.chmod(0o755)
    assert os.listdir(tmp_path) == []


def read_metrics(run: RunFolder) -> list[Any]:
    return [parse_json(line, "metrics") for line in run.metrics.read_text(encoding="utf-8").splitlines()]


def test_metrics_are_strict_and_trimmed(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path / "a") as run:
        run.trim_metrics(5)
        assert not run.metrics.exists()
        run.append_metrics({"event": "start"})
        for step in range(6):
            run.append_metrics({"step": step, "loss": float("nan"), "more": {"x": [float("inf"), 1.5]}})
        with run.metrics.open("ab") as file:
            file.write(b'{"step": 3, "lo')
        run.trim_metrics(3)
        records = read_metrics(run)
        assert [r.get("step") for r in records] == [None, 0, 1, 2, 3]
        assert records[1] == {"step": 0, "loss": None, "more": {"x": [None, 1.5]}}
        run.append_metrics({"step": 4})
        assert [r.get("step") for r in read_metrics(run)] == [None, 0, 1, 2, 3, 4]
        run.trim_metrics(-1)
        assert run.metrics.read_bytes() == b""


def test_metrics_on_a_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with RunFolder.open(tmp_path / "a") as run:
        run.metrics.symlink_to("/dev/full")
        with pytest.raises(EnvironmentFault, match=r"no space left.*needed 12 bytes"):
            run.append_metrics({"step": 1})
        run.metrics.unlink()


def test_a_fault_while_opening_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise EnvironmentFault("x", "planted")

    monkeypatch.setattr(run_module, "write_json", fail)
    with pytest.raises(EnvironmentFault, match="planted"):
        RunFolder.open(tmp_path / "runs" / "a")
    assert os.listdir(tmp_path) == []


def test_model_of_a_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model yet, neither best/ nor final/"):
        model_folder_of_run(tmp_path)
    for name in ("final", "best"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").touch()
        assert model_folder_of_run(tmp_path) == tmp_path / name
