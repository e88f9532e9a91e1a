"""The most memory of a process while a step runs, as the operating system counts it.

It holds what torch's allocator does not see: the scratch of kernel libraries, and what the
allocator itself keeps back. Linux only.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROCESS = Path("/proc/self")


def high_water_bytes(step: Callable[[], Any], warmup: int = 2) -> int | None:
    """How far a step raises the resident memory above what the process holds before it, bytes.

    The step runs `warmup` times first, so that neither code that is loaded nor caches that last
    from step to step count. Pages, of 4 KiB, are what is counted. For a process of its own:
    elsewhere memory freed before, but still held, hides what the step takes. None where the
    system has no such count.
    """
    for _ in range(warmup):
        step()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is None or not (PROCESS / "clear_refs").exists():
        return None
    trim(0)
    (PROCESS / "clear_refs").write_text("5")  # the peak starts afresh from what is held now
    held = _status("VmRSS")
    step()
    return max(0, _status("VmHWM") - held)


def _status(field: str) -> int:
    """A line of the process's status, in bytes."""
    lines = (PROCESS / "status").read_text().splitlines()
    (kib,) = (line.split()[1] for line in lines if line.startswith(f"{field}:"))
    return int(kib) * 1024
