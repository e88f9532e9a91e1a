"""The memory budget: its grammar, and the search for the most that fits it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from rad.errors import UsageError

UNITS = {
    "B": 1,
    "kB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
}
LARGEST = 2**63
_GRAMMAR = (
    "give a fraction in (0, 1], a whole number of bytes above 1, "
    f"a size with a unit such as '3.3 MB' ({', '.join(UNITS)}), or 'full'"
)
_SIZE = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][+-]?[0-9]+)?)\s*([A-Za-z]+)\s*")

Candidate = TypeVar("Candidate")


@dataclass(frozen=True)
class Budget:
    """A memory budget: everything (`full`), a keep fraction, or a number of bytes."""

    kind: Literal["full", "fraction", "bytes"]
    value: float
    text: str


def parse_budget(budget: str | float) -> Budget:
    """Read a budget: a fraction in (0, 1], bytes, a size with a unit, or "full".

    Raises UsageError for everything else.
    """
    text = str(budget)
    if isinstance(budget, str):
        return _parse_text(budget)
    if isinstance(budget, bool) or not 0 < budget < LARGEST:
        raise UsageError(f"budget {text} is not a memory budget: {_GRAMMAR}")
    if budget <= 1:
        return Budget("fraction", float(budget), text)
    if budget != int(budget):
        raise UsageError(
            f"budget {text} is neither a fraction (it is above 1) nor whole bytes: {_GRAMMAR}"
        )
    return Budget("bytes", int(budget), text)


def canonical(budget: str | float) -> str | float:
    """One spelling of each budget: "full", a fraction or whole bytes. Errors as `parse_budget`."""
    read = parse_budget(budget)
    if read.kind == "full":
        return "full"
    return int(read.value) if read.value == int(read.value) else read.value


def _parse_text(text: str) -> Budget:
    if text.strip() == "full":
        return Budget("full", 1.0, "full")
    match = _SIZE.fullmatch(text)
    if match is None or match[2] not in UNITS:
        raise UsageError(f"budget {text!r} is not a memory budget: {_GRAMMAR}")
    wanted = float(match[1]) * UNITS[match[2]]
    if not 1 <= wanted < LARGEST:
        raise UsageError(f"budget {text!r} is no possible number of bytes: {_GRAMMAR}")
    size = math.floor(round(wanted, 6))
    return Budget("bytes", size, text.strip())


def largest_within(
    candidates: Sequence[Candidate], cost: Callable[[Candidate], int], limit: int
) -> Candidate | None:
    """The last of the candidates whose cost is at most the limit; None if there is none.

    The cost must not fall along the candidates; it is evaluated for O(log n) of them.
    """
    low, high = 0, len(candidates)
    while low < high:
        middle = (low + high) // 2
        if cost(candidates[middle]) <= limit:
            low = middle + 1
        else:
            high = middle
    return candidates[low - 1] if low else None


def largest_multiple(step: int, cost: Callable[[int], int], limit: int) -> int | None:
    """The largest multiple of `step` whose cost is at most the limit; None if there is none.

    The cost must not fall, and must pass the limit somewhere: found by doubling, then bisection,
    so that it is evaluated for at most twice the result.
    """
    fits, tried = 0, step
    while cost(tried) <= limit:
        fits, tried = tried, 2 * tried
    return largest_within(range(fits + step, tried, step), cost, limit) or fits or None
