"""Texts of the command line that name a device or a memory budget."""

from __future__ import annotations

from typing import Any

import torch

from rad.errors import UsageError
from rad.memory.budget import parse_budget

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


def check_budget(budget: Any) -> None:
    """Raises UsageError for what is no memory budget."""
    if not isinstance(budget, str | int | float):
        raise UsageError(f"budget {budget} is not a memory budget: give one number or size")
    read = parse_budget(budget)
    if read.kind == "fraction" and read.value < LEAST_FRACTION:
        raise UsageError(f"budget {budget} is too small: give {LEAST_FRACTION:g} or more")
