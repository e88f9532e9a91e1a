"""What each variant does with a memory budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rad.errors import UsageError
from rad.memory.budget import Budget, largest_within, parse_budget
from rad.pde.adjoint import Adjoint, Checkpointing, Residual
from rad.pde.cpu.chunks import chunks
from rad.pde.cpu.sketches import kept_bytes
from rad.pde.problem import ReactionDiffusion
from rad.sketches import DifferentSample, Identity
from rad.sketches.registry import SketchKind, kinds

RESIDUAL = "residual_rounding"
"""The variant that rounds and samples how far states are from the target."""


@dataclass(frozen=True)
class PlannedAdjoint:
    """A variant at a budget; `keep_fraction` and `bits` are None where there are none."""

    variant: str
    budget: str
    adjoint: Adjoint
    keep_fraction: float | None
    bits: int | None


def plan(
    problem: ReactionDiffusion, variant: str, budget: str | float, **options: Any
) -> PlannedAdjoint:
    """How `variant` spends `budget`.

    A fraction is the keep fraction of the paper's sketches; all others get the bytes that
    `different_sample` needs at it. Of bytes, rounding takes the most bits that fit, what samples or
    projects the largest keep fraction, `checkpointing` the most states. Bytes are those of theta
    and of what is saved for backward. `baseline` has no budget. `options` are fields of the sketch
    (`rad.sketches.registry`). Raises UsageError for an unknown variant or option, and for a budget
    that cannot be read or met.
    """
    if variant not in variants():
        raise UsageError(f"unknown variant {variant!r}; choose one of {', '.join(variants())}")
    kind = _kind(variant)
    unknown = set(options) - set(kind.options if kind else ())
    if unknown:
        raise UsageError(f"{variant} has no option {', '.join(sorted(unknown))}: leave it out")
    wanted = parse_budget(budget)
    if variant == "baseline":
        return PlannedAdjoint(variant, "full", Identity(), None, None)
    if kind and kind.of_paper and wanted.kind != "bytes":
        adjoint: Adjoint = kind.make(wanted.value, **options)
    else:
        adjoint = _largest(problem, variant, wanted, options)
    sketch = adjoint.sketch if isinstance(adjoint, Residual) else adjoint
    fraction, bits = getattr(sketch, "keep_fraction", None), getattr(sketch, "bits", None)
    return PlannedAdjoint(variant, wanted.text, adjoint, fraction, bits)


def variants() -> tuple[str, ...]:
    """All variants by name: every kind of sketch, and what stands beside them."""
    return ("baseline", *kinds(), RESIDUAL, "checkpointing")


def _kind(variant: str) -> SketchKind | None:
    """The kind of sketch that a variant takes of the states, or of their residuals."""
    return kinds().get("sampled_rounding" if variant == RESIDUAL else variant)


def _largest(
    problem: ReactionDiffusion, variant: str, budget: Budget, options: dict[str, Any]
) -> Adjoint:
    """The most that fits."""
    choices = _choices(problem, variant, options)
    limit = int(budget.value)
    if budget.kind != "bytes":
        limit = _cost(problem, DifferentSample(budget.value))
    adjoint = largest_within(choices, lambda choice: _cost(problem, choice), limit)
    if adjoint is None:
        least = _cost(problem, choices[0])
        raise UsageError(
            f"budget {budget.text} is too small for {variant}: give at least {least} B"
        )
    return adjoint


def _choices(
    problem: ReactionDiffusion, variant: str, options: dict[str, Any]
) -> Sequence[Adjoint]:
    """What a variant can be, by growing bytes."""
    kind, points = _kind(variant), problem.inner**2
    if kind is None:
        return [Checkpointing(s) for s in range(len(chunks(problem)))]
    sketches = kind.ascending((1, points), **options)
    return [Residual(sketch) for sketch in sketches] if variant == RESIDUAL else sketches


def saved_bytes(problem: ReactionDiffusion, adjoint: Adjoint) -> int:
    """What the graph of `control_loss` keeps for one simulation, theta excluded."""
    points, dtype = problem.inner**2, problem.dtype
    space, time = problem.series.shape
    small = 8 * (space * time + len(problem.series) + 1)  # coefficients, their places, a key
    adjoint = adjoint.sketch if isinstance(adjoint, Residual) else adjoint
    if isinstance(adjoint, Checkpointing):
        snapshots = min(adjoint.snapshots, len(chunks(problem)) - 1)
        return small + snapshots * points * dtype.itemsize
    state, chunk = kept_bytes(adjoint, points, dtype)
    return small + (problem.steps + 1) * state + (len(chunks(problem)) + 1) * chunk


def _cost(problem: ReactionDiffusion, adjoint: Adjoint) -> int:
    return saved_bytes(problem, adjoint) + 8 * len(problem.series)
