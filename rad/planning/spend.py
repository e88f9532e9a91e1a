"""What each variant does with a number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from rad.memory.budget import Budget, parse_budget
from rad.planning.allocation import allocate
from rad.planning.auto import choose, fewest_bytes
from rad.planning.exact import largest_part
from rad.planning.limits import TooSmall
from rad.planning.probe import Sketches, Trial
from rad.planning.uniform import largest_batch, largest_keep_fraction, most_bits, only
from rad.sketches import Identity, Sketch
from rad.sketches.base import ReducingSketch
from rad.sketches.registry import SketchKind, kinds

Allocation = Literal["uniform", "optimal"]
ALLOCATIONS = get_args(Allocation)


@dataclass(frozen=True)
class Spent:
    """What a budget is spent on."""

    sketch: Sketches
    batch_size: int
    micro_batch: int | None = None
    keep_fraction: float | None = None
    bits: int | None = None
    layers: Mapping[str, float | str] | None = None
    reason: str | None = None


def is_kept_directly(budget: Budget, variant: str) -> bool:
    """Whether the budget is the keep fraction itself, so that its bytes need not be measured."""
    kind = kinds().get(variant)
    return kind is not None and kind.of_paper and budget.kind != "bytes"


def spend(
    trial: Trial,
    budget: Budget,
    bytes_: int | None,
    variant: str,
    allocation: Allocation,
    options: dict[str, Any],
) -> Spent | TooSmall:
    """What the variant does with those bytes (None: everything), or how many it needs at least."""
    if variant == "auto":
        return _automatic(trial, bytes_)
    if variant == "accumulation":
        part, whole = largest_part(trial, bytes_), trial.full_batch
        if isinstance(part, TooSmall):
            return part
        return Spent(Identity(), whole, None if part == whole else part)
    if variant == "checkpointing":
        exact = only(trial, bytes_, variant, Identity())
        return exact if isinstance(exact, TooSmall) else Spent(exact, trial.full_batch)
    if variant not in kinds():
        batch = largest_batch(trial, bytes_)
        return batch if isinstance(batch, TooSmall) else Spent(Identity(), batch)
    kind = kinds()[variant]
    if kind.decides == "keep_fraction":
        return _fraction(trial, budget, bytes_, variant, allocation, options)
    if kind.decides == "bits":
        sketch = most_bits(trial, bytes_, variant, partial(_rounding, kind, options))
    else:
        sketch = only(trial, bytes_, variant, kind.make(**options))
    if isinstance(sketch, TooSmall):
        return sketch
    return Spent(sketch, trial.full_batch, bits=getattr(sketch, "bits", None))


def sampled(trial: Trial, bytes_: int, variant: str) -> Spent | TooSmall:
    """What one of the paper's samples does with those bytes, alike in all layers."""
    return _fraction(trial, parse_budget(bytes_), bytes_, variant, "uniform", {})


def _fraction(
    trial: Trial,
    budget: Budget,
    bytes_: int | None,
    variant: str,
    allocation: Allocation,
    options: dict[str, Any],
) -> Spent | TooSmall:
    """One keep fraction in all layers, or with `allocation="optimal"` the same bytes divided."""
    batch = trial.full_batch
    make: Callable[[float], ReducingSketch] = partial(kinds()[variant].make, **options)  # type: ignore[assignment]
    fraction: float | TooSmall = budget.value
    if not is_kept_directly(budget, variant):
        fraction = largest_keep_fraction(trial, bytes_, variant, make)
    if isinstance(fraction, TooSmall):
        return fraction
    sketch = make(fraction)
    if allocation == "optimal":
        limit = trial.total_bytes(sketch, batch) if bytes_ is None else bytes_
        sketches, fractions = allocate(trial, make, fraction, limit, variant)
        return Spent(sketches, batch, layers=fractions)
    bits = getattr(sketch, "bits", None)
    return Spent(sketch, batch, keep_fraction=fraction, bits=bits)


def _rounding(
    kind: SketchKind, options: dict[str, Any], bits: int, block: int | None
) -> Sketch | None:
    """The sketch of that many bits and that block, unless the options say otherwise."""
    if "block" not in kind.options:
        return kind.make(bits, **options) if block is None else None
    wanted = options.get("block")
    if wanted is not None and block is not None:
        return None
    if options.get("zero_code", False) and bits == 1:
        return None
    return kind.make(bits, **{**options, "block": block if wanted is None else wanted})


def _automatic(trial: Trial, bytes_: int | None) -> Spent | TooSmall:
    if bytes_ is None:
        return Spent(Identity(), trial.full_batch, reason="no budget: everything is kept")
    choice = choose(trial, bytes_)
    if choice is None:
        return TooSmall("the least of auto", fewest_bytes(trial))
    layers = {name: repr(sketch) for name, sketch in choice.sketches.items()}
    return Spent(choice.sketches, trial.full_batch, layers=layers, reason=choice.reason)
