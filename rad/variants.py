"""Variants: how each method of the comparison spends a memory budget.

The one place where variant, budget, sketch, batch and model meet. The paper's variants keep
the full batch and take the largest keep fraction that fits, for all layers alike or divided
among them by predicted variance; `reduced_batch` keeps everything of the largest batch that
fits, and `baseline` keeps everything. The exact two run on the lean exact layers, so that
equal bytes mean equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn

from rad.allocation import allocate, keep_fraction
from rad.convert import convert
from rad.errors import UsageError
from rad.memory.budget import Budget, largest_within, parse_budget
from rad.plan import Plan
from rad.sketches import (
    DifferentProject,
    DifferentSample,
    Identity,
    Project,
    SameSample,
)
from rad.sketches.base import ReducingSketch
from rad.trial import Kind, Loss, Sketches, Trial

Allocation = Literal["uniform", "optimal"]
ALLOCATIONS = get_args(Allocation)

_SKETCHES: dict[str, Callable[..., ReducingSketch]] = {
    "same_sample": SameSample,
    "different_sample": DifferentSample,
    "project": lambda keep_fraction, replacement: Project(keep_fraction),
    "different_project": lambda keep_fraction, replacement: DifferentProject(keep_fraction),
}
VARIANTS = ("baseline", "reduced_batch", *_SKETCHES)


@dataclass(frozen=True)
class Built:
    """A converted model, the batch size to train it with, and the plan behind both."""

    model: nn.Module
    batch_size: int
    plan: Plan


def build(
    model: nn.Module,
    example: tuple[Tensor, ...],
    loss: Loss,
    variant: str,
    budget: str | float = "full",
    seed: int = 0,
    *,
    kind: Kind = "saved",
    allocation: Allocation = "uniform",
    replacement: bool = True,
) -> Built:
    """Convert `model` so that it trains as `variant` within `budget`: `fit`, then `rad.convert`.

    The model given stays as it is. Arguments and errors are those of `fit`.
    """
    plan = fit(
        model,
        example,
        loss,
        budget,
        variant,
        kind=kind,
        allocation=allocation,
        replacement=replacement,
    )
    return Built(convert(model, plan.sketch, seed), plan.batch_size, plan)


def fit(
    model: nn.Module,
    example: tuple[Tensor, ...],
    loss: Loss,
    budget: str | float = "full",
    variant: str = "different_sample",
    *,
    kind: Kind = "saved",
    allocation: Allocation = "uniform",
    replacement: bool = True,
) -> Plan:
    """The most that `variant` can do within `budget`, measured on copies of `model`.

    `example` holds the model's inputs at the full batch size (leading axis); `loss`
    maps the output, of that or a smaller batch, to a scalar. The budget counts
    parameter bytes plus saved bytes, loss included, or with `kind="peak"` parameter bytes
    plus the peak of a forward and backward pass, gradients included; a fraction f stands
    for what `different_sample` needs at keep fraction f and the full batch.
    `allocation="optimal"` divides what the uniform keep fraction takes among the layers so
    that the predicted variance of the gradient is least (`rad.allocation`).
    `replacement` says how the sampling variants draw.

    Saved bytes grow with the keep fraction, and the search for the largest that fits is exact.
    Peak bytes may not, everywhere: what is found fits, as measured.

    Raises UsageError for an unknown variant, kind or allocation, a model without a layer that
    sketches, a budget that cannot be read, and one too small for the variant (naming the
    smallest that is not).
    """
    if variant not in VARIANTS:
        raise UsageError(f"unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    if allocation not in ALLOCATIONS:
        choices = ", ".join(ALLOCATIONS)
        raise UsageError(f"unknown allocation {allocation!r}: choose one of {choices}")
    wanted = parse_budget("full" if variant == "baseline" else budget)
    trial = Trial(model, example, loss, kind)
    if not trial.layers and variant in _SKETCHES:
        raise UsageError(
            f"{variant} has nothing to sketch: the model has no linear, convolution or recurrent "
            "layer of torch.nn (subclasses are left alone)"
        )
    fraction: float | None = None
    fractions: dict[str, float] | None = None
    sketch: Sketches = Identity()
    batch_size = trial.full_batch
    if variant in _SKETCHES:
        make = partial(_SKETCHES[variant], replacement=replacement)
        fraction = _keep_fraction(trial, variant, wanted, make)
        sketch = make(fraction)
        if allocation == "optimal":
            limit = _limit(trial, wanted, sketch)
            sketch, fractions = allocate(trial, make, limit, variant)
            fraction = None
    else:
        batch_size = _batch_size(trial, wanted)
    return Plan(
        variant=variant,
        budget=wanted.text,
        kind=kind,
        allocation=allocation if variant in _SKETCHES else "uniform",
        sketch=sketch,
        keep_fraction=fraction,
        bits=None,
        batch_size=batch_size,
        memory=trial.memory(sketch, batch_size),
        report=trial.report(sketch),
        layers=fractions,
    )


def _limit(trial: Trial, budget: Budget, uniform: ReducingSketch) -> int:
    """The bytes that an allocation may take: the budget's, or those of the uniform one."""
    if budget.kind == "bytes":
        return int(budget.value)
    return trial.total_bytes(uniform, trial.full_batch)


def _batch_size(trial: Trial, budget: Budget) -> int:
    """The largest batch of the lean exact model that fits the budget."""
    if budget.kind == "full":
        return trial.full_batch
    limit = int(budget.value)
    if budget.kind == "fraction":
        limit = trial.total_bytes(DifferentSample(budget.value), trial.full_batch)

    def cost(batch: int) -> int:
        return trial.total_bytes(Identity(), batch)

    batch = largest_within(range(1, trial.full_batch + 1), cost, limit)
    if batch is None:
        raise _infeasible(budget, cost(1), trial, "a batch of 1")
    return batch


def _keep_fraction(
    trial: Trial, variant: str, budget: Budget, make: Callable[[float], ReducingSketch]
) -> float:
    """The largest keep fraction at which the variant fits the budget."""
    if budget.kind != "bytes":
        return budget.value

    def cost(keep_fraction: float) -> int:
        return trial.total_bytes(make(keep_fraction), trial.full_batch)

    candidates = _keep_fractions(set().union(*trial.widths().values()))
    largest = largest_within(candidates, cost, int(budget.value))
    if largest is None:
        raise _infeasible(budget, cost(candidates[0]), trial, f"{variant} with one number a row")
    return largest


def _keep_fractions(widths: set[int]) -> list[float]:
    """Every keep fraction at which the count kept of some width grows, ascending."""
    return sorted({keep_fraction(j, d) for d in widths for j in range(1, d + 1)})


def _infeasible(budget: Budget, smallest: int, trial: Trial, what: str) -> UsageError:
    peak = " at its peak" if trial.kind == "peak" else ""
    return UsageError(
        f"budget {budget.text} ({int(budget.value):,} bytes) is too small: parameters alone take "
        f"{trial.parameter_bytes:,} bytes, and {what} needs {smallest:,} in all{peak}; "
        f"give at least {smallest} or a smaller model or batch"
    )
