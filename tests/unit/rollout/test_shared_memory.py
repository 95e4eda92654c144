import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

OWNER = """
import gc, mmap, os
from multiprocessing.shared_memory import SharedMemory
from rlflow.rollout.shared_memory import forget_shared_memory
own = SharedMemory(create=True, size=4096)
other = SharedMemory(input())
with open(f"/dev/shm/vllm_dist_{os.getpid()}-tp:0-[0-1]", "w+b") as file:
    file.truncate(4096)
    kernels = mmap.mmap(file.fileno(), 4096)
forget_shared_memory()
late = SharedMemory(create=True, size=4096)
gc.freeze()
forget_shared_memory()
assert gc.get_freeze_count() > 0
assert not os.path.exists(f"/dev/shm/{late.name}")
own.buf[0] = other.buf[0] + 1
print(own.name, file.name, own.buf[0], flush=True)
input()
own.unlink()  # as vLLM does at its end
"""


def test_segments_lose_their_names_and_keep_working():
    other = SharedMemory(create=True, size=4096)
    other.buf[0] = 41
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    owner = subprocess.Popen([sys.executable, "-c", OWNER], text=True, **pipes)
    assert owner.stdin and owner.stdout
    owner.stdin.write(f"{other.name}\n")
    owner.stdin.flush()
    own, kernels, value = owner.stdout.readline().split()
    assert value == "42"
    assert not [path for path in (Path("/dev/shm", own), Path("/dev/shm", other.name), Path(kernels)) if path.exists()]
    _, complaints = owner.communicate("\n", timeout=20)
    assert owner.returncode == 0 and not complaints
    other.close()
