"""The live progress bar."""

import resource
import sys
from pathlib import Path
from typing import Any

import torch


def memory_in_use(device: torch.device) -> int:
    """Bytes: what torch has allocated on a CUDA device, else the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return pages * resource.getpagesize()


class ProgressBar:
    """Loss, iterations per second, memory and time left.

    Silent where stderr is no terminal, and where tqdm is not installed.
    """

    def __init__(self, iterations: int, done: int, device: torch.device) -> None:
        self.device = device
        self.bar: Any = None
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self.bar = tqdm(
            total=iterations,
            initial=done,
            unit="it",
            dynamic_ncols=True,
            file=sys.stderr,
            disable=None,
        )

    def show(self, done: int, loss: float) -> None:
        """Move to `done` iterations."""
        if self.bar is not None and not self.bar.disable:
            memory = f"{memory_in_use(self.device) / 1e6:.0f} MB"
            self.bar.set_postfix(loss=f"{loss:.4f}", memory=memory, refresh=False)
            self.bar.update(done - self.bar.n)

    def tell(self, path: Path, text: str) -> None:
        """A line about the run in that folder, above the bar; where there is no bar, too."""
        write = print if self.bar is None else self.bar.write
        write(f"{path}: {text}", file=sys.stderr)

    def close(self) -> None:
        """Leave the terminal in order."""
        if self.bar is not None:
            self.bar.close()
