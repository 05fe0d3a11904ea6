"""A checkpoint is whole or it is not there; whatever dies when, a good one is left."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetwo.core import files as core_files
from finetwo.core.errors import EnvironmentFault, InputError
from finetwo.core.files import write_json
from finetwo.store import checkpoint as module
from finetwo.store.checkpoint import list_checkpoints, newest_valid, open_checkpoint, step_of, write_checkpoint

SAVER = Path(__file__).parent / "checkpoint_saver.py"
SOURCE = str(Path(module.__file__).parents[2])
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCE, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}


def save(run: Path, step: int, keep: int = 2, value: float | None = None) -> Path:
    content = torch.full((8,), float(step) if value is None else value)
    return write_checkpoint(run, step, {"model": {"w": content}, "optimizer": {}}, {"step": step}, keep)


def steps(run: Path) -> list[int]:
    return [step_of(path) for path in list_checkpoints(run)]


# --- the good path


def test_save_and_open(tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    found = open_checkpoint(path)
    assert (found.step, found.state, found.path) == (7, {"step": 7}, tmp_path / "checkpoint-7")
    assert torch.equal(found.tensors("model")["w"], torch.full((8,), 7.0))
    assert found.tensors("optimizer") == {}
    with pytest.raises(InputError, match=r"holds no rng\.safetensors"):
        found.tensors("rng")
    assert sorted(os.listdir(path)) == ["manifest.json", "model.safetensors", "optimizer.safetensors", "state.json"]
    assert json.loads((path / "manifest.json").read_text())["format"] == 1
    assert newest_valid(tmp_path)[0] == found
    assert newest_valid(tmp_path / "nothing") == (None, [])


def test_same_content_same_bytes(tmp_path: Path) -> None:
    a, b = save(tmp_path / "a", 3), save(tmp_path / "b", 3)
    assert {p.name: p.read_bytes() for p in a.iterdir()} == {p.name: p.read_bytes() for p in b.iterdir()}


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(0, 60, 10):
        save(tmp_path, step, keep=2)
        assert step in steps(tmp_path)
    assert steps(tmp_path) == [50, 40]
    save(tmp_path, 60, keep=1)
    assert steps(tmp_path) == [60]
    save(tmp_path, 30, keep=2)
    assert steps(tmp_path) == [30], "a later step is a future given up by resuming earlier"
    for keep, step in ((0, 1), (1, -1)):
        with pytest.raises(ValueError):
            save(tmp_path, step, keep=keep)


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    save(tmp_path, 5, value=1.0)
    save(tmp_path, 5, value=2.0)
    assert os.listdir(tmp_path) == ["checkpoint-5"]
    assert open_checkpoint(tmp_path / "checkpoint-5").tensors("model")["w"][0] == 2.0
    (tmp_path / "checkpoint-5" / "state.json").unlink()
    save(tmp_path, 5, value=3.0)
    assert open_checkpoint(tmp_path / "checkpoint-5").tensors("model")["w"][0] == 3.0


@pytest.mark.parametrize("damaged", [True, False])
def test_what_stepped_aside_still_counts(damaged: bool, tmp_path: Path) -> None:
    save(tmp_path, 5, value=1.0).rename(tmp_path / "checkpoint-5.old")
    found, _ = newest_valid(tmp_path)
    assert found is not None
    assert found.path.name == "checkpoint-5.old"
    save(tmp_path / "x", 5, value=2.0).rename(tmp_path / "checkpoint-5")
    (tmp_path / "x").rmdir()
    if damaged:
        (tmp_path / "checkpoint-5" / "state.json").write_text("{}")
    found, skipped = newest_valid(tmp_path)
    assert found is not None
    assert (found.path.name, len(skipped)) == (("checkpoint-5.old", 1) if damaged else ("checkpoint-5", 0))
    save(tmp_path, 6, keep=2)
    assert sorted(os.listdir(tmp_path)) == ["checkpoint-5", *["checkpoint-5.old"] * damaged, "checkpoint-6"]
    save(tmp_path, 5, value=3.0)
    assert os.listdir(tmp_path) == ["checkpoint-5"]


# --- damage


def damages(path: Path) -> Iterator[str]:
    """Damage the files of checkpoint `path` in turn: every truncation, a bit of every byte, and more; undo each."""
    chance = random.Random(0)
    for file in sorted(path.iterdir()):
        good = file.read_bytes()
        for at in range(len(good)):
            file.write_bytes(good[:at])
            yield f"{file.name} cut to {at}"
            flipped = bytearray(good)
            flipped[at] ^= 1 << chance.randrange(8)
            file.write_bytes(flipped)
            yield f"{file.name} bit flipped at {at}"
        for name, bad in {"grown": good + b" ", "zeros": bytes(len(good)), "doubled": good * 2}.items():
            file.write_bytes(bad)
            yield f"{file.name} {name}"
        file.unlink()
        yield f"{file.name} missing"
        file.mkdir()
        yield f"{file.name} a folder"
        file.rmdir()
        outside = path.parent / "outside"
        outside.write_bytes(good)
        file.symlink_to(outside)
        yield f"{file.name} a link"
        file.unlink()
        outside.unlink()
        file.write_bytes(good)


def test_every_damage_is_named_and_never_loaded(tmp_path: Path) -> None:
    path, count = save(tmp_path, 7), 0
    for what in damages(path):
        count += 1
        found, skipped = newest_valid(tmp_path)
        assert found is None, what
        assert len(skipped) == 1
        assert what.split()[0] in skipped[0], f"{what}: {skipped}"
        assert len(skipped[0].splitlines()) == 1
    assert count > 800
    assert newest_valid(tmp_path)[0] is not None


def test_the_message_says_expected_and_got_and_falls_back(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2) / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    found, skipped = newest_valid(tmp_path)
    assert found is not None
    assert found.step == 1
    expected = json.loads((path.parent / "manifest.json").read_text())["files"][path.name]["sha256"][:12]
    assert f"{path}: checkpoint is damaged: expected sha256 {expected} (got " in skipped[0]


def test_swapped_and_extra_files(tmp_path: Path) -> None:
    save(tmp_path, 1)
    path = save(tmp_path, 2)
    (path / "extra").touch()
    with pytest.raises(InputError, match="extra: file is not in the checkpoint's manifest"):
        open_checkpoint(path)
    (path / "extra").unlink()
    (path / "model.safetensors").rename(path / "x")
    (path / "optimizer.safetensors").rename(path / "model.safetensors")
    (path / "x").rename(path / "optimizer.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: checkpoint is damaged"):
        open_checkpoint(path)
    shutil.rmtree(path)
    shutil.copytree(tmp_path / "checkpoint-1", path)
    with pytest.raises(InputError, match="belongs to step 1"):
        open_checkpoint(path)
    shutil.copytree(tmp_path / "checkpoint-1", tmp_path / "my-copy")
    assert open_checkpoint(tmp_path / "my-copy").step == 1
    with pytest.raises(InputError, match="no such checkpoint folder"):
        open_checkpoint(tmp_path / "checkpoint-99")


ITEM = {"size": 1, "sha256": "0" * 64}


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"format": 2}, r"checkpoint of a newer format; this FineTwo reads 1 \(got 2\). Fix: update FineTwo"),
        ({"format": 0}, "checkpoint of a older format"),
        ({"format": "1"}, "not a checkpoint's manifest"),
        ({"format": True}, "not a checkpoint's manifest"),
        ({"step": "7"}, "must hold exactly format, step and files"),
        ({"more": 1}, "must hold exactly format, step and files"),
        ({"files": []}, "must hold exactly format, step and files"),
        ({"files": {}}, r"does not list state\.json"),
        ({"files": {"/etc/passwd": ITEM}}, r"refused: a file name that leaves the checkpoint.*/etc/passwd"),
        ({"files": {"../x": ITEM}}, "refused"),
        ({"files": {"..": ITEM}}, "refused"),
        ({"files": {"a/b": ITEM}}, "refused"),
        ({"files": {"a\\b": ITEM}}, "refused"),
        ({"files": {"a\0": ITEM}}, "refused"),
        ({"files": {"": ITEM}}, "refused"),
        ({"files": {"manifest.json": ITEM}}, "refused"),
        ({"files": {"a": {"size": 1}}}, "must hold exactly size and sha256"),
        ({"files": {"a": {"size": "1", "sha256": "0" * 64}}}, "must hold exactly size and sha256"),
        ({"files": {"a": {"size": 1, "sha256": "xyz"}}}, "must hold exactly size and sha256"),
        ({"files": {"a": {**ITEM, "x": 1}}}, "must hold exactly size and sha256"),
    ],
)
def test_hostile_manifests(change: dict[str, object], text: str, tmp_path: Path) -> None:
    path = save(tmp_path, 7)
    manifest = {**json.loads((path / "manifest.json").read_text()), **change}
    del manifest["sha256"]
    write_json(path / "manifest.json", {**manifest, "sha256": module._own_hash(manifest)})
    with pytest.raises(InputError, match=text):
        open_checkpoint(path)


def test_links_in_a_run_are_not_followed(tmp_path: Path) -> None:
    save(tmp_path / "other", 9)
    save(tmp_path / "run", 1)
    (tmp_path / "run" / "checkpoint-9").symlink_to(tmp_path / "other" / "checkpoint-9")
    (tmp_path / "run" / "checkpoint-09").mkdir()
    (tmp_path / "run" / "checkpoint-10").touch()
    assert steps(tmp_path / "run") == [1]


# --- a disk that refuses


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EDQUOT])
def test_every_failing_sync_keeps_the_last_good_state(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    calls = [0]
    for at in range(1, 100):
        real = core_files._sync

        def sync(handle: int, at: int = at) -> None:
            calls[0] += 1
            if calls[0] == at:
                raise OSError(number, os.strerror(number))

        calls[0] = 0
        monkeypatch.setattr(core_files, "_sync", sync)
        try:
            save(tmp_path, 2)
        except EnvironmentFault as error:
            line = error.line()
            assert str(tmp_path / "checkpoint-2") in line
            assert "last good checkpoint: step " in line
            assert number == errno.EIO or "needed 82 bytes, free " in line or "needed" in line
        else:
            break
        finally:
            monkeypatch.setattr(core_files, "_sync", real)
        assert not [name for name in os.listdir(tmp_path) if name.startswith(".tmp")]
        assert newest_valid(tmp_path)[0] is not None
    assert 8 < at < 30
    assert steps(tmp_path) == [2, 1]


def test_other_errors_clean_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError):
        write_checkpoint(tmp_path, 1, {}, {"loss": float("nan")}, keep=1)
    monkeypatch.setattr(module, "fsync_dir", lambda _: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 1)
    assert os.listdir(tmp_path) == []


def test_what_does_not_read_back_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    real = module._put

    def put(temporary: Path, target: Path) -> None:
        real(temporary, target)
        (target / "state.json").write_text("{}")

    monkeypatch.setattr(module, "_put", put)
    with pytest.raises(EnvironmentFault, match=r"does not read back.*last good checkpoint: step 1"):
        save(tmp_path, 2, keep=1)
    assert newest_valid(tmp_path)[0] is not None


def test_a_failing_purge_is_told_and_survived(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(tmp_path, 1)
    monkeypatch.setattr(shutil, "rmtree", lambda _: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")))
    save(tmp_path, 2, keep=1)
    monkeypatch.undo()
    assert "could not be removed" in caplog.text
    assert steps(tmp_path) == [2]
    save(tmp_path, 3, keep=1)
    assert os.listdir(tmp_path) == ["checkpoint-3"]


def test_a_run_folder_deleted_meanwhile_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save(tmp_path / "gone", 1)
    assert "was gone" in caplog.text
    assert steps(tmp_path / "gone") == [1]


# --- sequences

OPERATIONS = st.one_of(
    st.tuples(st.just("save"), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(st.just("again"), st.integers(1, 3), st.integers(0, 0)),
    st.tuples(st.just("crash"), st.integers(0, 12), st.integers(0, 1)),
    st.tuples(st.just("damage"), st.integers(1, 5), st.integers(0, 2)),
    st.tuples(st.just("delete"), st.integers(1, 5), st.integers(0, 0)),
)


class Crash(BaseException):
    """The process died here."""


def apply(run: Path, name: str, a: int, b: int, patch: pytest.MonkeyPatch) -> None:
    """Do one operation; `damage` and `delete` spare the newest valid checkpoint, as a kind disk does."""
    found, _ = newest_valid(run)
    newest = 0 if found is None else found.step
    if name in ("save", "again"):
        save(run, newest + b, keep=a)
    elif name == "crash":
        left, remove = [a], module._remove

        def step(_: int) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Crash

        def remove_unless_dead(folder: Path) -> None:
            step(0)
            remove(folder)

        with patch.context() as inner, contextlib.suppress(Crash):
            inner.setattr(core_files, "_sync", step)
            inner.setattr(module, "_remove", remove_unless_dead)
            save(run, newest + b, keep=1)
    else:
        paths = [path for path in list_checkpoints(run) if found is None or path != found.path]
        if paths:
            victim = paths[a % len(paths)]
            if name == "delete":
                shutil.rmtree(victim)
            elif (file := victim / ["state.json", "manifest.json", "model.safetensors"][b]).exists():
                file.write_bytes(b"x")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(OPERATIONS, min_size=1, max_size=12))
def test_a_verified_checkpoint_always_exists(monkeypatch: pytest.MonkeyPatch, operations: list[tuple]) -> None:  # type: ignore[type-arg]
    monkeypatch.setattr(core_files, "_sync", lambda _: None)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        save(run, 0)
        last = 0
        for name, a, b in operations:
            apply(run, name, a, b, monkeypatch)
            found, _ = newest_valid(run)
            assert found is not None
            assert found.step >= last
            last = found.step
        save(run, last + 1, keep=1)
        assert os.listdir(run) == [f"checkpoint-{last + 1}"]


# --- processes that die


@pytest.mark.parametrize("trials", [25, pytest.param(400, marks=pytest.mark.slow)])
def test_killed_at_random_moments(trials: int, tmp_path: Path) -> None:
    seed = random.SystemRandom().randrange(10**6)
    command = [sys.executable, str(SAVER), "loop", str(tmp_path), str(seed), str(trials)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


CALLS = "write,pwrite64,ftruncate,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat"


def saver(run: Path, step: int, keep: int, times: int) -> list[str]:
    return [sys.executable, "-S", str(SAVER), "plain", str(run), str(step), str(keep), str(times)]


def traced(run: Path, inject: str, log: Path) -> subprocess.CompletedProcess[str]:
    """Save step 3 twice over a run holding 1 and 2, under strace, which does `inject`."""
    options = ["-f", "-qq", "-o", str(log), "-e", f"trace={CALLS}", "-e", "signal=none"]
    if inject:
        options += ["-e", f"inject={inject}"]
    command = ["strace", *options, *saver(run, 3, 1, 2)]
    return subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=60)


@pytest.fixture
def points(tmp_path: Path) -> list[tuple[str, int]]:
    """Every watched system call of the two saves, as name and which of that name; skips where strace cannot trace."""
    if shutil.which("strace") is None:
        pytest.skip("SKIPPED LOUDLY: strace is missing, so no system call was made to fail")
    start(tmp_path / "counted")
    done = traced(tmp_path / "counted", "", tmp_path / "log")
    if done.returncode:
        pytest.skip(f"SKIPPED LOUDLY: strace cannot trace here: {done.stderr[:200]}")
    counts: Counter[str] = Counter()
    found = []
    for line in (tmp_path / "log").read_text().splitlines():
        name = line.split(None, 1)[1].partition("(")[0]
        counts[name] += 1
        found.append((name, counts[name]))
    assert 40 < len(found) < 300
    assert {"write", "fsync", "rename"} <= {name for name, _ in found}
    return found


def start(run: Path) -> None:
    for step in (1, 2):
        save(run, step)


def chosen(points: list[tuple[str, int]], some: int) -> list[tuple[str, int]]:
    return random.Random(some).sample(points, min(some, len(points)))


@pytest.mark.parametrize("some", [10, pytest.param(10**6, marks=pytest.mark.slow)])
def test_killed_at_a_system_call(some: int, points: list[tuple[str, int]], tmp_path: Path) -> None:
    for name, at in chosen(points, some):
        run = tmp_path / f"run-{name}-{at}"
        start(run)
        done = traced(run, f"{name}:signal=SIGKILL:when={at}", tmp_path / "log")
        assert done.returncode != 0, f"not killed at {name} {at}"
        found, skipped = newest_valid(run)
        assert found is not None, f"nothing valid after a kill at {name} {at}"
        assert found.step in (2, 3)
        assert skipped == [], f"torn at {name} {at}: {skipped}"
        save(run, 4, keep=1)
        assert os.listdir(run) == ["checkpoint-4"]


@pytest.mark.parametrize("some", [4, pytest.param(10**6, marks=pytest.mark.slow)])
@pytest.mark.parametrize("number", ["ENOSPC", "EIO", "EDQUOT"])
def test_error_at_a_system_call(number: str, some: int, points: list[tuple[str, int]], tmp_path: Path) -> None:
    for name, at in chosen(points, some):
        run = tmp_path / f"run-{name}-{at}"
        start(run)
        done = traced(run, f"{name}:error={number}:when={at}", tmp_path / "log")
        assert "Traceback" not in done.stderr
        assert done.returncode in (0, 3), f"exit {done.returncode} after {number} at {name} {at}: {done.stderr}"
        if done.returncode:
            assert "checkpoint-3: " in done.stderr
            assert "last good checkpoint: step " in done.stderr
        found, _ = newest_valid(run)
        assert found is not None, f"nothing valid after {number} at {name} {at}"
        assert found.step in (2, 3)
        save(run, 4, keep=1)
        assert os.listdir(run) == ["checkpoint-4"]


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to tell what was synced")
def test_all_is_on_the_disk_before_it_is_named_and_named_before_old_ones_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    seen: list[str] = []
    rename, remove, verify = Path.rename, module._remove, module.open_checkpoint

    def told_rename(self: Path, target: Path) -> Path:
        seen.append(f"rename {target.relative_to(tmp_path)}")
        return rename(self, target)

    monkeypatch.setattr(
        core_files, "_sync", lambda handle: seen.append(f"sync {Path(f'/proc/self/fd/{handle}').readlink()}")
    )
    monkeypatch.setattr(Path, "rename", told_rename)
    monkeypatch.setattr(module, "_remove", lambda folder: (seen.append(f"remove {folder.name}"), remove(folder)))
    monkeypatch.setattr(module, "open_checkpoint", lambda path: (seen.append(f"verify {path.name}"), verify(path))[1])
    save(tmp_path, 2, keep=1)
    temporary = f".tmp-checkpoint-2-{os.getpid()}"
    named = seen.index("rename checkpoint-2")
    for name in ("model.safetensors", "optimizer.safetensors", "state.json", "manifest.json"):
        at = seen.index(f"rename {temporary}/{name}")
        assert seen[at - 1].startswith(f"sync {tmp_path / temporary}/.tmp-"), "a file's bytes before its name"
        assert at < named
    assert seen.index(f"rename {temporary}/manifest.json") == max(
        at for at, what in enumerate(seen[:named]) if what.startswith("rename")
    ), "the manifest comes last"
    assert seen[named - 1] == f"sync {tmp_path / temporary}", "then the folder"
    assert seen[named + 1] == f"sync {tmp_path}", "after the rename its parent"
    assert seen[named + 2 :][:2] == ["verify checkpoint-2", "remove checkpoint-1"]
