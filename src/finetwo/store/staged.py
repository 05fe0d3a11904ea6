"""A folder that appears whole or not at all: written beside its place, and moved there when all of it is right.

It knows paths only. Its one invariant: when the work ends in an error, nothing of it is left, parents included.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from finetwo.core.errors import InputError
from finetwo.core.files import TEMPORARY, faults, fsync_dir


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A temporary folder that becomes `out` at the end.

    Raises InputError when `out` is in use, EnvironmentFault when the disk refuses.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError("--out", "exists and is not an empty folder", str(out), "give a new folder")
    temporary = out.with_name(f"{TEMPORARY}{out.name}")
    made = [place for place in (out.parent, *out.parent.parents) if not place.exists()]
    with faults(out):
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            temporary.mkdir(parents=True)
            yield temporary
            if out.exists():
                out.rmdir()
            temporary.rename(out)
            fsync_dir(out.parent)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            with suppress(OSError):
                for place in made:
                    place.rmdir()
            raise
