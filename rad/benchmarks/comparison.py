"""Memory and speed of compared programs, and each as a CUDA graph."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from torch import Tensor

from rad.benchmarks.capture import captured
from rad.memory import peak_bytes, saved_bytes
from rad.planning.timing import ratio_of_medians


class Compared(Protocol):
    """A forward and backward pass."""

    @property
    def batch_size(self) -> int: ...
    def loss(self) -> Tensor: ...
    def step(self) -> None: ...
    def clear(self) -> None: ...


def memory_of(program: Compared) -> dict[str, int]:
    """Examples of a step, bytes saved for its backward pass, and bytes at its peak."""
    program.clear()
    return {
        "batch_size": program.batch_size,
        "saved_bytes": saved_bytes(program.loss),
        "peak_bytes": peak_bytes(program.step),
    }


def speed_of(
    compared: Mapping[str, Compared], seconds: Mapping[str, Sequence[float]]
) -> list[tuple[float | None, float | None]]:
    """Of each program: time against the first program's, and examples a second.

    None where `seconds` lacks the program, or the first.
    """
    first = seconds.get(next(iter(compared)))
    found: list[tuple[float | None, float | None]] = []
    for name, program in compared.items():
        own = seconds.get(name)
        ratio = None if own is None or first is None else round(ratio_of_medians(own, first), 3)
        rate = None if own is None else float(f"{program.batch_size / statistics.median(own):.4g}")
        found.append((ratio, rate))
    return found


def graphs_of(compared: Mapping[str, Compared]) -> dict[str, Callable[[], object]]:
    """The programs as CUDA graphs, those that can be; of the others it prints why not."""
    found = {}
    for name, program in compared.items():
        program.clear()
        try:
            found[name] = captured(program.step)
        except RuntimeError as error:
            print(f"{name} is no CUDA graph: {str(error).splitlines()[0]}", flush=True)
    return found
