"""A reward's process as seen from outside: start it, talk to it under a time limit, kill it."""

import os
import select
import signal
import socket
import struct
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

from rlflow.errors import RewardError

TRANSFER_TIMEOUT_S = 60
EXIT_GRACE_S = 1.0


class ProcessLostError(RewardError):
    """The process died or did not answer in time; it must be killed."""


class RewardProcess:
    """Runs `rlflow.rewards.child` as leader of a process group of its own.

    A plain subprocess, because the parent is a Ray actor with threads: forking it is unsafe, and spawning
    through multiprocessing would import the actor's main module. The process dies when the *thread* that
    built this object ends (Linux sends the parent-death signal per thread).
    """

    def __init__(self, cwd: str) -> None:
        ours, theirs = socket.socketpair()
        _limit_transfers(ours)
        self._connection = Connection(ours.detach())
        descriptor = theirs.fileno()
        command = [
            sys.executable,
            "-P",
            "-u",
            "-m",
            "rlflow.rewards.child",
            str(descriptor),
            str(os.getpid()),
        ]
        with theirs:
            self._process = subprocess.Popen(
                command,
                pass_fds=(descriptor,),
                stdin=subprocess.DEVNULL,
                cwd=cwd,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
                start_new_session=True,
            )

    def send(self, message: Any) -> None:
        """Raises ProcessLostError if the process is gone or reads nothing."""
        try:
            self._connection.send(message)
        except OSError as error:
            raise ProcessLostError(self._describe_end()) from error

    def receive(self, timeout_s: float, limit_message: str) -> Any:
        """The next message. Raises ProcessLostError with `limit_message` if none comes within `timeout_s`."""
        try:
            if not self._connection.poll(max(timeout_s, 0.0)):
                raise ProcessLostError(limit_message)
            return self._connection.recv()
        except (EOFError, OSError) as error:
            raise ProcessLostError(self._describe_end()) from error

    def close(self) -> None:
        """Let the process end by itself, and kill it if it does not."""
        self._connection.close()
        # Unlike wait(), a pidfd leaves the exited process unreaped, so that kill() can still reach its group.
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(self._process.pid)
            select.select([descriptor], [], [], EXIT_GRACE_S)
            os.close(descriptor)
        self.kill()

    def kill(self) -> None:
        """Kill the process and everything it started in its group; nothing happens the second time."""
        self._connection.close()
        if self._process.returncode is None:
            # Where SIGCHLD is ignored the kernel has reaped an exited process, and its group may be gone.
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _describe_end(self) -> str:
        self.kill()
        status = self._process.returncode
        if status >= 0:
            return f"its process ended with exit status {status}"
        hint = " (out of memory?)" if status == -signal.SIGKILL else ""
        return f"its process was ended by {signal.Signals(-status).name}{hint}"


def _limit_transfers(end: socket.socket) -> None:
    # Connection reads and writes the descriptor itself, so the limit must be the socket's own.
    limit = struct.pack("ll", TRANSFER_TIMEOUT_S, 0)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
