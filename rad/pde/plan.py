"""What each variant does with a memory budget."""

from __future__ import annotations

from dataclasses import dataclass

from rad.errors import UsageError
from rad.memory.budget import largest_within, parse_budget
from rad.pde.checkpointing import Adjoint, Checkpointing
from rad.pde.chunks import chunks
from rad.pde.problem import ReactionDiffusion
from rad.sketches import DifferentSample, Identity

VARIANTS = ("baseline", "different_sample", "checkpointing")


@dataclass(frozen=True)
class Plan:
    """A variant at a budget; `keep_fraction` is None where it samples nothing."""

    variant: str
    budget: str
    adjoint: Adjoint
    keep_fraction: float | None


def plan(
    problem: ReactionDiffusion, variant: str, budget: str | float, replacement: bool = True
) -> Plan:
    """How `variant` spends `budget`.

    A fraction is the keep fraction of `different_sample`, and for `checkpointing` the bytes
    that this needs. Bytes are those of theta and of what is saved for backward. `baseline`
    has no budget. Raises UsageError for an unknown variant, and for a budget that cannot be
    read or met.
    """
    if variant not in VARIANTS:
        raise UsageError(f"unknown variant {variant!r}; choose one of {', '.join(VARIANTS)}")
    wanted = parse_budget(budget)
    if variant == "baseline":
        return Plan(variant, "full", Identity(), None)
    if wanted.kind == "bytes":
        limit = int(wanted.value)
    else:
        limit = _cost(problem, DifferentSample(wanted.value))
    if variant == "checkpointing":
        choices: list[Adjoint] = [Checkpointing(s) for s in range(len(chunks(problem)))]
    else:
        points = problem.inner**2
        choices = [DifferentSample(k / points, replacement) for k in range(1, points + 1)]
    adjoint = largest_within(choices, lambda choice: _cost(problem, choice), limit)
    if adjoint is None:
        least = _cost(problem, choices[0])
        raise UsageError(f"budget {budget} is too small for {variant}: it needs at least {least} B")
    if wanted.kind != "bytes" and isinstance(adjoint, DifferentSample):
        adjoint = DifferentSample(wanted.value, replacement)
    fraction = adjoint.keep_fraction if isinstance(adjoint, DifferentSample) else None
    return Plan(variant, wanted.text, adjoint, fraction)


def saved_bytes(problem: ReactionDiffusion, adjoint: Adjoint) -> int:
    """What the graph of `control_loss` keeps for one simulation, theta excluded."""
    points, dtype = problem.inner**2, problem.dtype
    space, time = problem.series.shape
    small = 8 * (space * time + len(problem.series) + 1)  # coefficients, their places, a key
    if isinstance(adjoint, Checkpointing):
        snapshots = min(adjoint.snapshots, len(chunks(problem)) - 1)
        return small + snapshots * points * dtype.itemsize
    return small + adjoint.nbytes((problem.steps + 1, points), dtype)


def _cost(problem: ReactionDiffusion, adjoint: Adjoint) -> int:
    return saved_bytes(problem, adjoint) + 8 * len(problem.series)
