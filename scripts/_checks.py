"""Checks of settings that several scripts have."""

from collections.abc import Sequence
from typing import Any

from rad.errors import UsageError
from rad.memory.budget import parse_budget


def check_budget(budget: Any) -> None:
    """Raises UsageError for what is no memory budget."""
    if not isinstance(budget, str | int | float):
        raise UsageError(f"budget {budget} is not a memory budget: give one number or size")
    parse_budget(budget)


def check_choice(key: str, value: Any, choices: Sequence[str]) -> None:
    """Raises UsageError for a value that is none of the choices."""
    if value not in choices:
        raise UsageError(f"unknown {key} {value!r}; choose one of {', '.join(choices)}")


def check_seed(seed: Any) -> int:
    """The seed. Raises UsageError for what is none."""
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**63:
        raise UsageError(f"seed is {seed!r}; give a whole number of at least 0")
    return seed


def check_runs_per_process(count: Any) -> int:
    """The number of runs that train in one process. Raises UsageError for what is none."""
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise UsageError(f"runs_per_process is {count!r}; give a whole number of at least 1")
    return count
