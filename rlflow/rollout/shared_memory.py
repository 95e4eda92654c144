"""vLLM's shared memory: taken out of /dev/shm once everyone has it."""

import re
from collections.abc import Iterator
from pathlib import Path

import psutil

_SHARED_MEMORY = Path("/dev/shm")
_MAPPING = re.compile(rf"{_SHARED_MEMORY}/(psm_\w+)$", re.MULTILINE)


def forget_shared_memory(process_id: int) -> list[str]:
    """Unlink the segments that the children of a process have mapped; returns their names.

    A started engine's processes hold their segments (hundreds of MB) by mapping, and need the names no more. Without names,
    nothing stays behind however they end; a killed engine would leave them for good.
    """
    names = sorted({name for child in _children(process_id) for name in _mapped(child)})
    for name in names:
        (_SHARED_MEMORY / name).unlink(missing_ok=True)
    return names


def _children(process_id: int) -> Iterator[int]:
    return (child.pid for child in psutil.Process(process_id).children(recursive=True))


def _mapped(process_id: int) -> list[str]:
    try:
        return _MAPPING.findall(Path("/proc", str(process_id), "maps").read_text())
    except (FileNotFoundError, ProcessLookupError):
        return []  # ended meanwhile
