"""The high-water mark of a program: what its process needs, not what torch's allocator counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

from rad.benchmarks.comparison import Compared
from rad.memory.high_water import high_water_bytes


def high_water(build: Callable[[], Mapping[str, Compared]], name: str) -> int | None:
    """`high_water_bytes` of a step of that program of `build()`, in a fresh process.

    `build` travels to that process: a module's function, perhaps with arguments given.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, build, name).result()


def _measured(build: Callable[[], Mapping[str, Compared]], name: str) -> int | None:
    return high_water_bytes(build()[name].step)
