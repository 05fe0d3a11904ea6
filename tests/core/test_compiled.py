"""Compiling for this machine: what is kept, where, and every way in which it is refused."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from finetwo.core.compiled import Refused, cache_folder, load

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler here")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CC", raising=False)


def source(folder: Path, value: int) -> list[Path]:
    main, header = folder / "part.c", folder / "part.h"
    main.write_text('#include "part.h"\nint answer(void) { return VALUE; }\n', encoding="utf-8")
    header.write_text(f"#define VALUE {value}\n", encoding="utf-8")
    return [main, header]


def answer(sources: list[Path]) -> int:
    library = load(sources)
    library.answer.restype = ctypes.c_int
    got: int = library.answer()
    return got


@needs_compiler
def test_compiled_once_and_anew_when_a_header_changes(tmp_path: Path) -> None:
    assert answer(source(tmp_path, 3)) == 3
    (first,) = cache_folder().glob("*.so")
    written = first.stat().st_mtime_ns
    assert answer(source(tmp_path, 3)) == 3
    assert first.stat().st_mtime_ns == written
    assert answer(source(tmp_path, 4)) == 4
    assert len(list(cache_folder().glob("*.so"))) == 2
    assert cache_folder().stat().st_mode & 0o777 == 0o700


@needs_compiler
def test_what_was_changed_since_is_not_loaded(tmp_path: Path) -> None:
    sources = source(tmp_path, 5)
    other = tmp_path / "other"
    other.mkdir()
    in_a_child(source(other, 6))
    (foreign,) = cache_folder().glob("*.so")
    in_a_child(sources)
    (kept,) = set(cache_folder().glob("*.so")) - {foreign}
    kept.write_bytes(foreign.read_bytes())  # a library that would answer 6
    assert answer(sources) == 5


def in_a_child(sources: list[Path]) -> None:
    """Compile in another process: here the loader would remember the file, and a file that is mapped must stay."""
    program = (
        "import sys; from pathlib import Path; from finetwo.core.compiled import load; load([*map(Path, sys.argv[1:])])"
    )
    subprocess.run([sys.executable, "-c", program, *map(str, sources)], check=True)


@needs_compiler
@pytest.mark.parametrize("kind", ["open", "link"])
def test_a_cache_that_others_can_write_is_refused(kind: str, tmp_path: Path) -> None:
    folder = cache_folder()
    if kind == "open":
        folder.mkdir(parents=True)
        folder.chmod(0o777)
    else:
        folder.parent.mkdir(parents=True)
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Refused, match="chmod 700"):
        load(source(tmp_path, 1))


def test_reasons(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sources = source(tmp_path, 1)
    monkeypatch.setenv("FINETWO_COMPILE", "0")
    with pytest.raises(Refused, match="switched off by FINETWO_COMPILE=0"):
        load(sources)
    monkeypatch.setenv("FINETWO_COMPILE", "1")
    monkeypatch.setenv("CC", "no-such-compiler -m64")
    with pytest.raises(Refused, match="no-such-compiler was not found"):
        load(sources)
    monkeypatch.setenv("CC", "false")
    with pytest.raises(Refused, match="failed: no message"):
        load(sources)
    monkeypatch.setenv("CC", "cc '-m64")
    with pytest.raises(Refused, match="CC=cc '-m64 cannot be read: No closing quotation"):
        load(sources)
    assert not list(cache_folder().iterdir())


def test_a_user_without_a_home_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("CC", sys.executable)  # any program; it is not reached
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(Refused, match="cannot be kept or loaded: Could not determine home"):
        load(source(tmp_path, 1))


@needs_compiler
def test_an_error_in_the_source_is_told(tmp_path: Path) -> None:
    sources = source(tmp_path, 1)
    sources[0].write_text("int answer(void) { return", encoding="utf-8")
    with pytest.raises(Refused, match=r"failed: .*part\.c"):
        load(sources)
