"""One writer per run directory."""

import fcntl
import json
import os
import socket
from pathlib import Path
from types import TracebackType

from rlflow.errors import UserError


class RunLock:
    """An advisory lock (`flock`) on a run directory, as a context manager.

    The kernel drops it when the process ends, however it ends, so a killed driver never leaves a run locked.
    """

    def __init__(self, path: Path) -> None:
        """`path` is the lock file; it is created and stays."""
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> None:
        """Take the lock. Raises `UserError` naming the process that holds it."""
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 4096, 0).decode()
            os.close(descriptor)
            raise UserError(_busy(self.path.parent, holder)) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        self._descriptor = descriptor

    def check(self) -> None:
        """Raises `UserError` naming the process that holds the lock, if one does. Writes nothing."""
        if not self.path.is_file():
            return
        with self.path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(_busy(self.path.parent, file.read().decode())) from None

    def release(self) -> None:
        """Give the lock back; without effect where it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> "RunLock":
        self.acquire()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def _busy(directory: Path, holder: str) -> str:
    # Between taking the lock and writing its name the holder's entry is empty.
    who = json.loads(holder) if holder else {"pid": "(just started)", "host": "(unknown)"}
    return (
        f"{directory}: process {who['pid']} on {who['host']} is writing this run; "
        "wait for it, stop it, or give this run another run.name"
    )
