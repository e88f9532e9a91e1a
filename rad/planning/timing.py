"""Timing of programs that take turns in one process.

A shared machine drifts; programs that alternate drift together, so that ratios of
medians can be trusted where seconds cannot.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

RESAMPLES = 1000


def alternate(
    programs: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 2
) -> dict[str, list[float]]:
    """Seconds of each program in each round, after warm-up rounds that do not count.

    In a round every program runs once, in turn; CUDA devices are waited for.
    """
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(-warmup, rounds):
        for name, program in programs.items():
            _wait()
            start = time.perf_counter()
            program()
            _wait()
            if number >= 0:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio_of_medians(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """How many times as long as the reference."""
    return statistics.median(seconds) / statistics.median(reference)


def error_of_ratio(seconds: Sequence[float], reference: Sequence[float]) -> float:
    """Standard error of `ratio_of_medians`, as a fraction of it: a bootstrap over the rounds.

    Rounds are drawn with replacement, the same for both, since both ran in them.
    """
    rounds = np.random.default_rng(0).integers(len(seconds), size=(RESAMPLES, len(seconds)))
    own, other = (np.median(np.asarray(times)[rounds], 1) for times in (seconds, reference))
    ratios = own / other
    return float(ratios.std() / ratios.mean())


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
