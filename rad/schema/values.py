"""Texts of the command line that name a device or a memory budget."""

from __future__ import annotations

from typing import Any

import torch

from rad.errors import UsageError
from rad.memory.budget import parse_budget
from rad.processes import launched

LEAST_FRACTION = 1e-6
"""Below which a budget that is a fraction keeps nothing of anything."""


def choose_device(name: str) -> torch.device:
    """The device of that name; `auto` prefers CUDA. Raises UsageError if it is not there."""
    if not isinstance(name, str):
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:<n>")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise UsageError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:<n>") from error
    if device.type not in ("cpu", "cuda"):
        raise UsageError(f"device {name!r} is not supported; use auto, cpu, cuda or cuda:<n>")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise UsageError(f"device {name!r} is not there ({count} CUDA devices); use device=auto")
    return device


def own_device(name: str, job: int = 0) -> torch.device:
    """The device of that name; where `auto` and `cuda` leave it open, one of this process's own.

    The processes of one run have a CUDA device each; jobs that run at a time take turns by number.
    Raises UsageError if it is not there, or devices are fewer than processes.
    """
    device, count = choose_device(name), torch.cuda.device_count()
    if device.type == "cpu":
        return device
    here = launched.local_count()
    if launched.count() > 1 and (here > count or device.index is not None):
        raise UsageError(
            f"{here} processes need a CUDA device each, and device={name} gives one of "
            f"{count}: set device=cuda and --nproc-per-node {count}, or device=cpu"
        )
    if device.index is not None or count < 2:
        return device
    return torch.device("cuda", launched.local_rank() if launched.count() > 1 else job % count)


def check_budget(budget: Any) -> None:
    """Raises UsageError for what is no memory budget."""
    if not isinstance(budget, str | int | float):
        raise UsageError(f"budget {budget} is not a memory budget: give one number or size")
    read = parse_budget(budget)
    if read.kind == "fraction" and read.value < LEAST_FRACTION:
        raise UsageError(f"budget {budget} is too small: give {LEAST_FRACTION:g} or more")
