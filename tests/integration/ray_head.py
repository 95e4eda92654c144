"""A real Ray head with dashboard and token authentication, on free ports, in a home of its own."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class RayHead:
    """A running head. `env` is the whole environment for a process that talks to it."""

    address: str
    gcs_address: str
    env: dict[str, str]
    temp_dir: Path


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """Starts the head; afterwards nothing of it is left, in the process table, in /dev/shm or on disk."""
    # Directly below /tmp: the paths of Ray's sockets must stay under 108 characters.
    temp_dir = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))
    shared_memory = set(os.listdir("/dev/shm"))
    head = _described(temp_dir)
    try:
        _start(head)
        yield head
    finally:
        _kill_processes_of(temp_dir)
        shutil.rmtree(temp_dir)
        for name in set(os.listdir("/dev/shm")) - shared_memory:
            if name.startswith("plasma"):
                Path("/dev/shm", name).unlink()


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
        "PATH": f"{Path(sys.executable).parent}:{env['PATH']}",
    }
    return RayHead(f"http://127.0.0.1:{dashboard_port}", f"127.0.0.1:{gcs_port}", env, temp_dir)


def _start(head: RayHead) -> None:
    options = {
        "node-ip-address": "127.0.0.1",
        "port": head.gcs_address.split(":")[1],
        "dashboard-host": "127.0.0.1",
        "dashboard-port": head.address.rsplit(":", 1)[1],
        "temp-dir": head.temp_dir,
        "num-cpus": 2,
        "object-store-memory": 100_000_000,
    }
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--disable-usage-stats"]
    command += [f"--{name}={value}" for name, value in options.items()]
    started = subprocess.run(
        command, env=head.env, cwd=head.temp_dir, capture_output=True, text=True, timeout=120
    )
    assert started.returncode == 0, started.stdout + started.stderr


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [held.getsockname()[1] for held in sockets]
    for held in sockets:
        held.close()
    return ports


def _kill_processes_of(temp_dir: Path) -> None:
    """Kill until none is left: agents outlive the raylet, and a dying raylet may still start a worker."""
    deadline = time.monotonic() + 30
    while pids := _processes_of(temp_dir):
        assert time.monotonic() < deadline, f"processes {pids} do not end"
        for pid in pids:
            _kill(pid)
        time.sleep(0.2)


def _processes_of(temp_dir: Path) -> list[int]:
    """Processes of this head: all were started with its folder as their home."""
    mark = f"HOME={temp_dir}\0".encode()
    pids = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            ours = mark in (folder / "environ").read_bytes() and _state(folder) != "Z"
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
        if ours:
            pids.append(int(folder.name))
    return pids


def _state(folder: Path) -> str:
    return (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
