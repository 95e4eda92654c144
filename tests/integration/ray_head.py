"""A real Ray head with dashboard and token authentication, on free ports, in a home of its own."""

import ctypes
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class RayHead:
    """A running head. `env` is the whole environment for a process that talks to it, and `driver_env` for a job's driver."""

    address: str
    gcs_address: str
    env: dict[str, str]
    temp_dir: Path

    @property
    def driver_env(self) -> dict[str, str]:
        return {**self.env, "RAY_ADDRESS": self.gcs_address}


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """Starts the head; afterwards nothing of it is left, in the process table, in /dev/shm or on disk."""
    # Directly below /tmp: the paths of Ray's sockets must stay under 108 characters.
    temp_dir = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))
    head = _described(temp_dir)
    keeper = subprocess.Popen(
        [sys.executable, __file__, *_start_command(head)],
        env=head.env,
        cwd=temp_dir,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C in the terminal is for the tests; the keeper ends when they do
    )
    try:
        assert keeper.stdin and keeper.stdout
        assert keeper.stdout.readline() == "started\n", "ray start failed; its output is above"
        yield head
    finally:
        keeper.communicate(timeout=60)
        shutil.rmtree(temp_dir)


def _described(temp_dir: Path) -> RayHead:
    gcs_port, dashboard_port = _free_ports(2)
    token_path = temp_dir / "token"
    token_path.write_text(secrets.token_hex(32))
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env |= {
        "HOME": str(temp_dir),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_metrics_report_interval_ms": "1000",
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}",
    }
    return RayHead(f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{gcs_port}", env, temp_dir)


def _start_command(head: RayHead) -> list[str]:
    options = {
        "node-ip-address": "127.0.0.1",
        "port": head.gcs_address.split(":")[1],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": head.address.rsplit(":", 1)[1],
        "dashboard-agent-listen-port": _free_ports(1)[0],  # that of another cluster on this machine leaves a head without agent
        "temp-dir": head.temp_dir,
        "num-cpus": 2,
        "object-store-memory": 100_000_000,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
    return command + [f"--{name}={value}" for name, value in options.items()]


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def keep(command: list[str]) -> None:
    """Run a command that leaves daemons behind; when stdin closes, kill and reap every one of them.

    Stdin closes with the test process too, however it ends. Daemons are found by descent, which they cannot
    shed: as a subreaper this process becomes the parent of every orphan below it. Ray's agents outlive the
    raylet and, once renamed, hide their environment.
    """
    pr_set_child_subreaper = 36
    ctypes.CDLL(None).prctl(pr_set_child_subreaper, 1)
    if subprocess.run(command, stdout=sys.stderr).returncode == 0:
        print("started", flush=True)
        sys.stdin.read()
    while children := _children_of(os.getpid()):
        for pid in children:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _children_of(parent: int) -> list[int]:
    """Direct children, ended ones included; killing them hands their own children to the subreaper."""
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(stat.rsplit(")", 1)[1].split()[1]) == parent:
            pids.append(int(folder.name))
    return pids


if __name__ == "__main__":
    keep(sys.argv[1:])
