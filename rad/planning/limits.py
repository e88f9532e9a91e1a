"""A budget as bytes, and what is said where nothing fits into them."""

from __future__ import annotations

from dataclasses import dataclass

from rad.errors import UsageError
from rad.memory.budget import Budget
from rad.planning.probe import Trial
from rad.sketches import DifferentSample


@dataclass(frozen=True)
class TooSmall:
    """What a strategy answers where nothing fits: its smallest choice, and the bytes of that."""

    choice: str
    needed: int


def in_bytes(trial: Trial, budget: Budget) -> int | None:
    """The bytes of a budget: for a fraction those of `different_sample`; None for everything."""
    if budget.kind == "full":
        return None
    if budget.kind == "fraction":
        return trial.total_bytes(DifferentSample(budget.value), trial.full_batch)
    return int(budget.value)


def refusal(trial: Trial, budget: Budget, bytes_: int, least: TooSmall) -> UsageError:
    """The error that refuses a budget and names the smallest that will do."""
    peak = " at its peak" if trial.kind == "peak" else ""
    return UsageError(
        f"budget {budget.text} ({bytes_:,} bytes) is too small: parameters alone take "
        f"{trial.parameter_bytes:,} bytes, and {least.choice} needs {least.needed:,} in all{peak}; "
        f"give at least {least.needed} or a smaller model or batch"
    )
