"""The package's own C sources, compiled once for this machine by its C compiler and kept in the user's cache.

It knows files and a compiler, and must not know what the code computes. Its one invariant: what is loaded was compiled
from the sources of this installation, lies in a folder that only this user can write, and has the content recorded
when it was compiled; where that cannot be, `Refused` says why.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
from collections.abc import Sequence
from pathlib import Path

SWITCH = "FINETWO_COMPILE"
"""Environment variable; 0 means that nothing is compiled, and nothing compiled is loaded."""
_TARGETS = ("-march=native", "-mcpu=native")
"""What compilers call the machine that they run on; the first that is taken wins."""
_FLAGS = ("-O3", "-fopenmp", "-shared", "-fPIC", "-Wno-psabi")
_SECONDS = 300


class Refused(Exception):
    """Why there is no compiled code: no fault, the caller has another way. Its text goes to a person."""


def load(sources: Sequence[Path]) -> ctypes.CDLL:
    """Return the library compiled from `sources`, the first of which includes the others; compile it where it is new.

    Raises:
        Refused: switched off, no compiler, it fails, or no private folder to keep the result in.
    """
    if os.environ.get(SWITCH, "1").lower() in ("0", "no", "off", "false"):
        raise Refused(f"switched off by {SWITCH}={os.environ[SWITCH]}")
    try:
        compiler = shlex.split(os.environ.get("CC", "")) or ["cc"]
    except ValueError as error:  # a quotation mark too many
        raise Refused(f"CC={os.environ['CC']} cannot be read: {error}") from None
    program = shutil.which(compiler[0])
    if program is None:
        raise Refused(f"no C compiler: {compiler[0]} was not found")
    try:
        folder = _private(cache_folder())
        key = _key(sources, [program, *compiler[1:]])
        path = folder / f"{sources[0].stem}-{key}.so"
        record = path.with_suffix(".sha256")
        if not (path.is_file() and record.is_file() and record.read_text(encoding="ascii") == _digest(path)):
            _compile([program, *compiler[1:]], sources[0], path)
            temporary = record.with_suffix(f".{os.getpid()}")
            temporary.write_text(_digest(path), encoding="ascii")
            temporary.replace(record)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError) as error:  # the latter: a user without a home folder
        raise Refused(f"the compiled code cannot be kept or loaded: {error}") from error


def cache_folder() -> Path:
    """Return where compiled code is kept: finetwo/compiled in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "finetwo" / "compiled"


def _private(folder: Path) -> Path:
    """Return `folder`, made where it is missing; Refused where another user could write into it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not folder.is_symlink():
        folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.getuid() or status.st_mode & 0o077:
        raise Refused(f"{folder} must be a folder of yours that nobody else can enter (chmod 700)")
    return folder


def _key(sources: Sequence[Path], compiler: Sequence[str]) -> str:
    """Name the result of compiling: a hash over sources, compiler, flags and what this processor can do."""
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.name.encode() + b"\0" + source.read_bytes() + b"\0")
    status = Path(compiler[0]).resolve().stat()
    about = [*compiler, *_FLAGS, platform.machine(), str(status.st_size), str(status.st_mtime_ns), _processor()]
    digest.update("\0".join(about).encode())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What the processor can do, as far as the system tells."""
    path = Path("/proc/cpuinfo")
    if not path.is_file():
        return platform.processor() or platform.node()
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n\n")[0].splitlines()
    told = ("flags", "Features", "model name", "model", "cpu family", "CPU part", "isa")
    return "\n".join(line for line in lines if line.split(":")[0].strip() in told)


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _compile(compiler: Sequence[str], source: Path, path: Path) -> None:
    """Compile `source` to `path`, which appears whole or not at all."""
    temporary = path.with_suffix(f".{os.getpid()}")
    complaint = ""
    try:
        for target in _TARGETS:
            command = [*compiler, *_FLAGS, target, "-o", str(temporary), str(source), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
            except subprocess.TimeoutExpired:
                raise Refused(f"{compiler[0]} took more than {_SECONDS} seconds") from None
            if done.returncode == 0:
                temporary.replace(path)
                return
            complaint = complaint or done.stderr.decode(errors="replace").strip().split("\n")[0]
        raise Refused(f"{compiler[0]} failed: {complaint[:200] or 'no message'}")
    finally:
        temporary.unlink(missing_ok=True)
