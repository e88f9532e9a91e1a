"""A budget as bytes, what fits into them as measured, and what is said where nothing does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from rad.errors import UsageError
from rad.memory.budget import Budget
from rad.planning.greedy import Option, smallest, total_bytes
from rad.planning.probe import Sketches, Trial
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


class Measures(Protocol):
    """What tells all bytes of a model with given sketches and batch, such as a `Trial`."""

    @property
    def full_batch(self) -> int: ...

    def total_bytes(self, sketch: Sketches, batch: int) -> int: ...


def measured(trial: Measures, chosen: dict[str, Option]) -> int:
    """All bytes with those options."""
    sketches: Sketches = {name: option.sketch for name, option in chosen.items()}
    return trial.total_bytes(sketches, trial.full_batch)


def cheapest_within(
    trial: Measures,
    options: dict[str, list[Option]],
    limit: int,
    find: Callable[[int], dict[str, Option] | None],
) -> dict[str, Option] | None:
    """What `find` chooses of the options in so many bytes that all of it, measured, fits `limit`.

    The bytes taken beside those that the options keep are first measured with the smallest
    options; while a choice is over the limit, `find` gets as much less. None where it finds none.
    """
    least = smallest(options)
    available = limit - (measured(trial, least) - total_bytes(least))
    while (chosen := find(available)) is not None:
        over = measured(trial, chosen) - limit
        if over <= 0:
            return chosen
        available = min(available, total_bytes(chosen)) - over
    return None


def refusal(trial: Trial, budget: Budget, bytes_: int, least: TooSmall) -> UsageError:
    """The error that refuses a budget and names the smallest that will do."""
    peak = " at its peak" if trial.kind == "peak" else ""
    return UsageError(
        f"budget {budget.text} ({bytes_:,} bytes) is too small: parameters alone take "
        f"{trial.parameter_bytes:,} bytes, and {least.choice} needs {least.needed:,} in all{peak}; "
        f"give at least {least.needed} or a smaller model or batch"
    )
