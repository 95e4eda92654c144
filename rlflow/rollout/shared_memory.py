"""vLLM's shared memory: taken out of /dev/shm once everyone has it."""

import gc
import re
from contextlib import suppress
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

_OF_KERNELS = re.compile(r"/dev/shm/vllm_dist_.*(?<! \(deleted\))$", re.MULTILINE)
"""What the kernels of processes without GPU exchange."""


def forget_shared_memory() -> None:
    """Unlink the segments that this process has open, for good.

    The processes of a started engine hold their segments (hundreds of MB) by mapping, and need the names no more. Without names,
    nothing stays behind however they end: Ray kills Python's own tracker of such memory along with them.
    """
    is_frozen = gc.get_freeze_count() > 0  # vLLM does, and what is frozen is not listed
    gc.unfreeze()
    segments = [found for found in gc.get_objects() if type(found) is SharedMemory]
    if is_frozen:
        gc.freeze()
    for memory in segments:
        with suppress(FileNotFoundError):  # another process of the engine was faster
            memory.unlink()
        memory.unlink = _already_done
    for path in _OF_KERNELS.findall(Path("/proc/self/maps").read_text()):
        Path(path).unlink(missing_ok=True)


def _already_done() -> None:
    pass
