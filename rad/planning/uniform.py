"""What a memory budget buys: a batch size, a keep fraction, bits. Measured, never calculated."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property
from itertools import chain

from rad.errors import UsageError, first_line
from rad.memory.budget import largest_within
from rad.packing.codes import PLANES
from rad.planning.allocation import keep_fraction
from rad.planning.limits import TooSmall
from rad.planning.probe import Trial
from rad.sketches import Identity, Sketch
from rad.sketches.base import ReducingSketch
from rad.sketches.blockwise import BLOCKS

SMALL_BATCHES = 4
"""Batches up to this size, and the parts of the whole, are tried for the smallest that runs."""


def largest_batch(trial: Trial, bytes_: int | None) -> int | TooSmall:
    """The largest batch of the lean exact model that fits, of those that the model can be run on.

    `bytes_` None stands for everything, here and below. Raises UsageError where it runs on no
    smaller batch, and where it is ambiguous how to cut one.
    """
    if bytes_ is None:
        return trial.full_batch
    full = trial.batch.size
    runs = _Runs(trial, full)
    smallest = runs.smallest
    needed = runs.cost(smallest)
    assert needed is not None
    if needed > bytes_:
        return TooSmall(f"a batch of {smallest}", needed)
    low, high = smallest, full + 1  # what fits, and what does not
    best = smallest
    while high - low > 1:
        middle = (low + high) // 2
        tried = runs.largest_upto(middle, low)
        if tried is None:
            low = middle
        elif tried[1] <= bytes_:
            low, best = middle, tried[0]
        else:
            high = tried[0]
    return best


class _Runs:
    """On which batches the lean exact model runs, and what it then takes.

    It may not run on all: batch normalisation of vectors needs two examples, and a model that
    groups its examples needs whole groups.
    """

    def __init__(self, trial: Trial, full: int) -> None:
        self._trial, self._full = trial, full
        self._costs: dict[int, int | None] = {}
        self._failure: tuple[int, Exception] | None = None

    def cost(self, batch: int) -> int | None:
        """Its bytes; None where the model or the loss raises an error."""
        if batch not in self._costs:
            try:
                self._costs[batch] = self._trial.total_bytes(Identity(), batch)
            except UsageError:
                raise
            except Exception as error:  # whatever the user's model and loss may raise
                self._failure = batch, error
                self._costs[batch] = None
        return self._costs[batch]

    @cached_property
    def smallest(self) -> int:
        """The first that runs of a few batches and of the parts of the whole.

        Raises UsageError where none does.
        """
        few = range(1, min(SMALL_BATCHES, self._full) + 1)
        parts = (part for part in range(1, self._full) if self._full % part == 0)
        for batch in dict.fromkeys([*few, *parts]):
            if self.cost(batch) is not None:
                return batch
        assert self._failure is not None
        size, error = self._failure
        raise UsageError(
            f"the model or its loss does not run on fewer than the {self._full} examples (on "
            f"{size}: {first_line(error)}): let the loss take a smaller batch, such as "
            "F.cross_entropy(out, y[: len(out)]), and a model that needs all examples has none"
        ) from error

    def largest_upto(self, batch: int, above: int) -> tuple[int, int] | None:
        """The largest up to `batch` that runs, and its bytes; None for none larger than `above`."""
        for each in range(batch, above, -1):
            if (cost := self.cost(each)) is not None:
                return each, cost
        return None


def largest_keep_fraction(
    trial: Trial, bytes_: int | None, variant: str, make: Callable[[float], ReducingSketch]
) -> float | TooSmall:
    """The largest keep fraction at which the variant fits."""
    if bytes_ is None:
        return 1.0

    def cost(fraction: float) -> int:
        return trial.total_bytes(make(fraction), trial.full_batch)

    sketch, shapes = make(1.0), chain.from_iterable(trial.shapes().values())
    candidates = _keep_fractions(sketch.kept_of(shape) for shape in shapes)
    largest = largest_within(candidates, cost, bytes_)
    if largest is None:
        return TooSmall(f"{variant} at its smallest keep fraction", cost(candidates[0]))
    return largest


def most_bits(
    trial: Trial,
    bytes_: int | None,
    variant: str,
    make: Callable[[int, int | None], Sketch | None],
) -> Sketch | TooSmall:
    """The rounding with the most bits that fits, with the first of BLOCKS that fits with them.

    `make` gives the sketch of a number of bits and a block, None where there is none.
    """
    smallest: int | None = None
    for bits in sorted(PLANES, reverse=True):
        for block in BLOCKS:
            sketch = make(bits, block)
            if sketch is None:
                continue
            taken = trial.total_bytes(sketch, trial.full_batch)
            if bytes_ is None or taken <= bytes_:
                return sketch
            smallest = taken if smallest is None else min(smallest, taken)
    assert smallest is not None
    return TooSmall(f"{variant} with the fewest bits", smallest)


def only(trial: Trial, bytes_: int | None, variant: str, sketch: Sketch) -> Sketch | TooSmall:
    """A sketch of which nothing is to be chosen, where it fits."""
    taken = trial.total_bytes(sketch, trial.full_batch)
    return sketch if bytes_ is None or taken <= bytes_ else TooSmall(variant, taken)


def _keep_fractions(sizes: Iterable[int]) -> list[float]:
    """Every keep fraction at which the count kept of some size grows, ascending."""
    return sorted({keep_fraction(j, d) for d in set(sizes) for j in range(1, d + 1)})
