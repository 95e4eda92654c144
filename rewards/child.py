"""The process of one reward: `python -m rlflow.rewards.child FD PARENT_PID`.

FD is a socket to the parent. Standard output belongs to the plugin.
"""

import asyncio
import ctypes
import faulthandler
import os
import signal
import sys
from multiprocessing.connection import Connection

from rlflow.rewards.binding import BoundReward, bind_reward
from rlflow.rewards.calling import RewardCaller, describe_error
from rlflow.rewards.protocol import Ready, Start, StartFailed

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Build the reward the first message asks for, then score every list of samples that comes."""
    descriptor, parent_pid = int(sys.argv[1]), int(sys.argv[2])
    _die_with_parent(parent_pid)
    # Programs that a plugin starts must not hold the socket open.
    os.set_inheritable(descriptor, False)
    faulthandler.enable()
    with Connection(descriptor) as connection:
        start = connection.recv()
        reward = _build(start, connection)
        if reward is not None:
            _serve(reward, start.spec.timeout_s, connection)


def _die_with_parent(parent_pid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    # The parent may have died before the call above.
    if os.getppid() != parent_pid:
        sys.exit(1)


def _build(start: Start, connection: Connection) -> BoundReward | None:
    # An import can also end in SystemExit, which is no Exception.
    try:
        reward = bind_reward(start.spec, start.cwd)
    except BaseException as error:
        connection.send(StartFailed(describe_error(error)))
        return None
    connection.send(Ready(reward.mode, reward.declared_name))
    return reward


def _serve(reward: BoundReward, timeout_s: float, connection: Connection) -> None:
    with asyncio.Runner() as runner:
        caller = RewardCaller(reward, timeout_s, runner)
        while True:
            try:
                samples = connection.recv()
            except (EOFError, ConnectionResetError):
                return
            caller.call(samples, connection.send)


if __name__ == "__main__":
    main()
