import os
import subprocess
import sys
from pathlib import Path

from rlflow.rollout.shared_memory import forget_shared_memory

CHILD = """
from multiprocessing import resource_tracker, shared_memory
memory = shared_memory.SharedMemory(create=True, size=4096)
resource_tracker.unregister(memory._name, "shared_memory")
print(memory.name, flush=True)
input()
memory.buf[0] = 42
print(memory.buf[0], flush=True)
"""


def test_segments_of_children_lose_their_names_and_keep_working():
    child = subprocess.Popen([sys.executable, "-c", CHILD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdin and child.stdout
    name = child.stdout.readline().strip()
    assert Path("/dev/shm", name).exists()
    assert forget_shared_memory(os.getpid()) == [name]
    assert not Path("/dev/shm", name).exists()
    output, _ = child.communicate("\n", timeout=20)
    assert output == "42\n"
    assert forget_shared_memory(os.getpid()) == []
