"""One writer per folder, held by the kernel and not by a file's existence.

It knows flock and the holder's name, and must not know what the folder is for. Its one invariant: whoever died,
however they died, holds no lock.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import time
import weakref
from contextlib import suppress
from pathlib import Path

from finetwo.core.errors import EnvironmentFault, InputError, shown
from finetwo.core.files import fault

_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: weakref.WeakSet[FolderLock] = weakref.WeakSet()


class FolderLock:
    """An exclusive lock on the file `path`, taken by the constructor and given back by `release` or by death.

    Raises InputError naming the holder's pid, host and start time where another process has it, and
    EnvironmentFault where the file system has no locks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._handle = -1
        while self._handle < 0:
            self._handle = self._take()
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "start": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with suppress(OSError):  # the name of the holder is a courtesy; the lock is the flock
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(holder, sort_keys=True).encode() + b"\n", 0)
        _held.add(self)

    def _take(self) -> int:
        """Return the locked handle, or -1 if the file was removed meanwhile and must be opened again."""
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            handle = os.open(self.path, flags, 0o644)
        except OSError as error:
            raise fault(error, self.path) from error
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same_file(handle, self.path):
                return handle
        except FileNotFoundError:
            pass
        except BlockingIOError:
            who = self._holder(handle)
            os.close(handle)
            fix = "wait for it, stop it, or choose another --out"
            raise InputError(str(self.path.parent), "another run is writing here", who, fix) from None
        except OSError as error:
            os.close(handle)
            if error.errno in _NO_FLOCK:
                fix = "choose a folder on a local disk"
                raise EnvironmentFault(str(self.path), "this file system has no file locks", fix=fix) from error
            raise fault(error, self.path) from error
        os.close(handle)
        return -1

    @staticmethod
    def _holder(handle: int) -> str:
        try:
            told = json.loads(os.pread(handle, 4096, 0))
            return shown(f"pid {told['pid']} on {told['host']} since {told['start']}")
        except (OSError, ValueError, KeyError, TypeError):
            return "holder unknown"

    def release(self) -> None:
        """Give the lock back and remove its file; safe to call twice."""
        if self._handle < 0:
            return
        with suppress(OSError):
            if _same_file(self._handle, self.path):  # the folder may have been deleted and made anew meanwhile
                self.path.unlink()
        self._forget()

    def _forget(self) -> None:
        """Close our handle only: a forked child must not keep its dead parent's lock alive."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1


def _same_file(handle: int, path: Path) -> bool:
    ours, named = os.fstat(handle), path.stat()
    return (ours.st_dev, ours.st_ino) == (named.st_dev, named.st_ino)


def _forget_all() -> None:
    for lock in list(_held):
        lock._forget()


os.register_at_fork(after_in_child=_forget_all)
