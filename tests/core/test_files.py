"""Files are wholly old or wholly new, JSON is strict, locks are the kernel's."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetwo.core import files
from finetwo.core.errors import EnvironmentFault, FineTwoError, InputError
from finetwo.core.files import (
    fault,
    free_bytes,
    fsync_dir,
    read_json,
    replace_file,
    replacing,
    require_file,
    sha256_file,
    write_json,
)
from finetwo.core.locks import FolderLock
from finetwo.core.strict_json import parse_json

SOURCE = str(Path(files.__file__).parents[2])


# --- writing


def test_replace_is_atomic_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a"
    replace_file(target, b"old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    replace_file(target, b"new")
    replace_file(tmp_path / "b", b"x")
    assert target.read_bytes() == b"new"
    assert sorted(os.listdir(tmp_path)) == ["a", "b"]


def test_everything_is_synced_before_and_after_the_rename(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(handle: int) -> None:
        seen.append("dir" if Path(f"/dev/fd/{handle}").is_dir() else "file")
        real_sync(handle)

    def rename(self: Path, target: Path) -> Path:
        seen.append("rename")
        return real_rename(self, target)

    monkeypatch.setattr(files, "_sync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    replace_file(tmp_path / "a", b"x")
    assert seen == ["file", "rename", "dir"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_full_disk_names_the_numbers() -> None:
    told = pytest.raises(EnvironmentFault, match=r"/dev/full: no space left.*needed 70,000 bytes, free [\d,]+")
    with told, files.faults(Path("/dev/full"), 70_000), Path("/dev/full").open("wb") as file:
        file.write(bytes(70_000))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_failing_write_leaves_the_old_file(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a"
    replace_file(target, b"old")

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(files, "_sync", fail)
    with pytest.raises(EnvironmentFault) as caught:
        replace_file(target, b"new")
    assert caught.value.exit_code == 3
    assert str(target) in str(caught.value)
    assert target.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a"]


def test_permission_names_uid_and_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    error = fault(PermissionError(errno.EACCES, "Permission denied"), tmp_path / "x" / "y")
    tmp_path.chmod(0o755)
    assert isinstance(error, EnvironmentFault)
    assert f"uid {os.getuid()}, {tmp_path} mode 0555" in str(error)


def test_bad_names_are_input(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    with pytest.raises(InputError, match=r"no such file.*did you mean .*config\.yaml"):
        require_file(tmp_path / "confg.yaml")
    with pytest.raises(InputError, match="not a regular file"):
        require_file(tmp_path)
    with pytest.raises(InputError, match="device or pipe"):
        require_file(Path("/dev/zero"))
    with pytest.raises(InputError, match="possible file name"):
        require_file(Path("a\0b"))
    with pytest.raises(InputError, match="name too long"):
        require_file(tmp_path / ("x" * 300))
    with pytest.raises(InputError):
        replace_file(tmp_path / "missing" / "a", b"")


def test_free_bytes_and_sync_of_folders(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "yet") > 0
    fsync_dir(tmp_path)


# --- JSON


def test_equal_values_give_equal_bytes(tmp_path: Path) -> None:
    write_json(tmp_path / "a", {"b": [1, 2.5, None], "a": "\u00e9\ud83d"})
    write_json(tmp_path / "b", {"a": "\u00e9\ud83d", "b": [1, 2.5, None]})
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")
    assert read_json(tmp_path / "a") == {"a": "\u00e9\ud83d", "b": [1, 2.5, None]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a", {"a": float("nan")})
    assert sha256_file(tmp_path / "a") == sha256_file(tmp_path / "b")


@pytest.mark.parametrize(
    ("text", "where", "what"),
    [
        ('{"a": 1,\n "b": 2, "a": 3}', "f:2:10", 'duplicate key "a"'),
        ('{"a\\"}": [1, {"x": 1, "x": 2}]}', "f:1:23", 'duplicate key "x"'),
        ('{"a": [1,\nNaN]}', "f:2:1", "NaN is not JSON"),
        ('{"Infinity": -Infinity}', "f:1:14", "-Infinity is not JSON"),
        ("[1, 1e999]", "f:1:5", "number 1e999 is too large"),
        ("[1, 2", "f:1:6", "not valid JSON"),
        ('{"a": 1}\n{"b": 2}', "f:2:1", "not valid JSON: Extra data"),
        ("", "f:1:1", "not valid JSON"),
        ("[" * 65 + "]" * 65, "f", "nested deeper than 64 levels"),
        ("[" * 100_000, "f", "nested deeper than 64 levels"),
        ('{"a":' * 100_000, "f", "nested deeper than 64 levels"),
        ("9" * 10_000, "f", "too long"),
        ("'a'", "f:1:1", "not valid JSON"),
    ],
)
def test_refused_json(text: str, where: str, what: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_json(text, "f")
    assert caught.value.where == where
    assert what in caught.value.what


def test_refused_json_files(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for data, what in [
        (b"", "empty"),
        (b" \n", "empty"),
        (b'{"a": "\xff"}', "UTF-8 at byte 7"),
        (b" " * 200, "larger"),
    ]:
        path.write_bytes(data)
        with pytest.raises(InputError, match=what):
            read_json(path, max_bytes=100)
    with pytest.raises(InputError, match="no such file"):
        read_json(tmp_path / "b.json")
    assert parse_json("[" * 64 + "]" * 64, "f") is not None


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(VALUES)
def test_json_round_trip(value: object) -> None:
    assert parse_json(json.dumps(value), "f") == value


@given(st.text(alphabet='{}[]",:\\ \n-0123456789eENaIinfty', max_size=60))
def test_no_text_escapes_as_another_error(text: str) -> None:
    try:
        parse_json(text, "f")
    except FineTwoError as error:
        assert error.where.startswith("f")


# --- locks

HOLDER = textwrap.dedent(
    """
    import sys, time
    from pathlib import Path
    from finetwo.core.locks import FolderLock
    lock = FolderLock(Path(sys.argv[1]))
    print("held", flush=True)
    time.sleep(60)
    """
)


def start_holder(path: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-S", "-c", HOLDER, str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={"PYTHONPATH": SOURCE})
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_the_loser_learns_who_holds_it_and_death_frees_it(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    for _ in range(5):
        holder = start_holder(path)
        with pytest.raises(InputError, match=rf"pid {holder.pid} on \S+ since \d{{4}}-.*Fix:"):
            FolderLock(path)
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        assert path.exists(), "a stale file is no lock"
        FolderLock(path).release()
        assert not path.exists()


def test_lock_in_one_process(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run.lock")
    with pytest.raises(InputError, match="another run is writing here"):
        FolderLock(tmp_path / "run.lock")
    lock.release()
    lock.release()
    (tmp_path / "run.lock").write_text("garbage")
    again = FolderLock(tmp_path / "run.lock")
    (tmp_path / "run.lock").unlink()
    other = FolderLock(tmp_path / "run.lock")
    again.release()
    assert (tmp_path / "run.lock").exists(), "not ours to remove"
    other.release()


def test_a_forked_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "run.lock")
    ready, go = os.pipe()
    child = os.fork()
    if child == 0:  # pragma: no cover
        os.close(go)
        os.read(ready, 1)
        os._exit(0)
    os.close(ready)
    lock.release()
    FolderLock(tmp_path / "run.lock").release()
    os.close(go)
    os.waitpid(child, 0)


def test_no_locks_on_this_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(EnvironmentFault, match="no file locks"):
        FolderLock(tmp_path / "run.lock")
