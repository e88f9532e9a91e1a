"""Variants: how each method of the comparison spends a memory budget.

The one place where variant, budget, sketch, batch and model meet. The paper's variants keep
the full batch and take the largest keep fraction that fits, for all layers alike or divided
among them by predicted variance; rounding takes the most bits, `auto` what is predicted to
be best for each layer; `reduced_batch` keeps everything of the largest batch that fits, and
`baseline` keeps everything. The exact two run on the lean exact layers, so that equal bytes
mean equal bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

from torch import nn

from rad.allocation import allocate
from rad.choosing import choose, fewest_bytes
from rad.convert import convert
from rad.errors import UsageError
from rad.memory.budget import Budget, parse_budget
from rad.memory.graph import gradients_enabled
from rad.plan import Plan
from rad.sketches import (
    DifferentProject,
    DifferentSample,
    DitheredRounding,
    Identity,
    ImportanceSampling,
    Project,
    RotatedRounding,
    SameSample,
    SampledRounding,
    StochasticRounding,
)
from rad.sketches.base import ReducingSketch
from rad.spending import (
    BitSketch,
    infeasible,
    largest_batch,
    largest_keep_fraction,
    limit,
    most_bits,
)
from rad.trial import Kind, Loss, Sketches, Trial

Allocation = Literal["uniform", "optimal"]
ALLOCATIONS = get_args(Allocation)

_PAPER: dict[str, Callable[..., ReducingSketch]] = {
    "same_sample": SameSample,
    "different_sample": DifferentSample,
    "project": Project,
    "different_project": DifferentProject,
}
_KEEPING: dict[str, Callable[..., ReducingSketch]] = {
    **_PAPER,
    "sampled_rounding": partial(SampledRounding, bits=2),
    "importance_sampling": ImportanceSampling,
}
_ROUNDING: dict[str, Callable[..., BitSketch]] = {
    "stochastic_rounding": StochasticRounding,
    "dithered_rounding": DitheredRounding,
    "rotated_rounding": RotatedRounding,
}
SKETCHING = (*_KEEPING, *_ROUNDING, "auto")
VARIANTS = ("baseline", "reduced_batch", *SKETCHING)

OPTIONS: dict[str, tuple[str, ...]] = {
    "same_sample": ("replacement",),
    "different_sample": ("replacement",),
    "sampled_rounding": ("bits", "dithered"),
    "stochastic_rounding": ("block", "zero_code"),
    "dithered_rounding": ("block", "zero_code"),
    "rotated_rounding": ("block", "dithered"),
}
"""What a variant can be told beside its budget: the fields of its sketch."""


@dataclass(frozen=True)
class Built:
    """A converted model, the batch size to train it with, and the plan behind both."""

    model: nn.Module
    batch_size: int
    plan: Plan


def build(
    model: nn.Module,
    example: Any,
    loss: Loss,
    variant: str,
    budget: str | float = "full",
    seed: int = 0,
    *,
    kind: Kind = "saved",
    allocation: Allocation = "uniform",
    batch_axis: Any = None,
    **options: Any,
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
        batch_axis=batch_axis,
        **options,
    )
    return Built(convert(model, plan.sketch, seed), plan.batch_size, plan)


@gradients_enabled()
def fit(
    model: nn.Module,
    example: Any,
    loss: Loss,
    budget: str | float = "full",
    variant: str = "different_sample",
    *,
    kind: Kind = "saved",
    allocation: Allocation = "uniform",
    batch_axis: Any = None,
    **options: Any,
) -> Plan:
    """The most that `variant` can do within `budget`, measured on copies of `model`.

    `example` holds the model's inputs at the full batch size: a tensor, a tuple or list of
    positional arguments, or a mapping of keyword arguments, in which may be nests of tensors and
    anything else. `loss` maps the output, as it is and of that or a smaller batch, to a scalar.
    A smaller batch, which `reduced_batch` alone needs, is cut from each tensor along the axis that
    holds the examples. `batch_axis` gives it as `in_dims` of `torch.func.vmap` does: an axis for
    all, or in a tuple or by name an axis for each argument, None where it has no batch. Left out,
    it is found from how the model and its loss treat the inputs (`rad.batch_axis`); a net that
    loops over a leading axis of time by itself cannot be told from one that leads with the batch.
    Batches on which the model or the loss raises an error are passed over.
    The budget counts
    parameter bytes plus saved bytes, loss included, or with `kind="peak"` parameter bytes
    plus the peak of a forward and backward pass, gradients included; a fraction f stands
    for what `different_sample` needs at keep fraction f and the full batch, and is the keep
    fraction of the paper's variants.
    `allocation="optimal"` divides what the uniform keep fraction takes among the layers so
    that the predicted variance of the gradient is least (`rad.allocation`); "auto" chooses
    each layer's sketch so (`rad.choosing`).
    `options` are fields of the variant's sketch (`OPTIONS`): `replacement` of the sampling
    variants, `block` and `zero_code` of rounding, `block` and `dithered` of rotated, `bits` and
    `dithered` of sampled rounding.

    Modules are planned in the mode that they have: what is in `eval()`, such as frozen batch
    normalisation, keeps what torch keeps, and is to be so in training, too.

    Saved bytes grow with the keep fraction, and the search for the largest that fits is exact.
    Peak bytes may not, everywhere: what is found fits, as measured.

    Gradients are on inside, whatever the mode of the caller.

    Raises UsageError for an unknown variant, option, kind or allocation, an example without a
    batch, one that `reduced_batch` could cut in several ways, a model or a loss that runs on no
    smaller batch, a `batch_axis` that does not match the example, a class or lazy layers in place
    of a model, tensors without numbers (meta device, `FakeTensorMode`), a loss that is no scalar
    or needs no gradient, a model without a layer that sketches, or in evaluation mode as a whole
    (call `model.train()` first), a budget that cannot be read, and one too small for the variant
    (naming the smallest that is not).
    """
    _check(variant, allocation, options)
    wanted = parse_budget("full" if variant == "baseline" else budget)
    trial = Trial(model, example, loss, kind, batch_axis)
    if not trial.layers and variant in SKETCHING:
        raise UsageError(
            f"{variant} has nothing to sketch: the model has no linear, convolution or recurrent "
            "layer of torch.nn (subclasses are left alone)"
        )
    if not trial.sketches and variant in SKETCHING:
        raise UsageError(
            f"{variant} has nothing to sketch: each linear, convolution and recurrent layer is "
            "frozen or in evaluation mode; call train() and requires_grad_() on those to be trained"
        )
    spent = _spend(trial, wanted, variant, allocation, options)
    return Plan(
        variant=variant,
        budget=wanted.text,
        kind=kind,
        allocation=allocation if variant in SKETCHING else "uniform",
        sketch=spent.sketch,
        keep_fraction=spent.keep_fraction,
        bits=spent.bits,
        batch_size=spent.batch_size,
        memory=trial.memory(spent.sketch, spent.batch_size),
        report=trial.report(spent.sketch),
        layers=spent.layers,
        reason=spent.reason,
    )


@dataclass(frozen=True)
class _Spent:
    """What a budget is spent on."""

    sketch: Sketches
    batch_size: int
    keep_fraction: float | None = None
    bits: int | None = None
    layers: Mapping[str, float | str] | None = None
    reason: str | None = None


def _spend(
    trial: Trial, budget: Budget, variant: str, allocation: Allocation, options: dict[str, Any]
) -> _Spent:
    batch = trial.full_batch
    if variant == "auto":
        return _automatic(trial, budget)
    if variant in _ROUNDING:
        rounding = most_bits(trial, budget, variant, partial(_rounding, variant, options))
        return _Spent(rounding, batch, bits=rounding.bits)
    if variant not in _KEEPING:
        return _Spent(Identity(), largest_batch(trial, budget))
    make = partial(_KEEPING[variant], **options)
    fraction = budget.value
    if variant not in _PAPER or budget.kind == "bytes":
        fraction = largest_keep_fraction(trial, budget, variant, make)
    sketch = make(fraction)
    if allocation == "optimal":
        bytes_ = int(budget.value)
        if budget.kind != "bytes":
            bytes_ = trial.total_bytes(sketch, batch)
        sketches, fractions = allocate(trial, make, fraction, bytes_, variant)
        return _Spent(sketches, batch, layers=fractions)
    return _Spent(sketch, batch, fraction, getattr(sketch, "bits", None))


def _rounding(
    variant: str, options: dict[str, Any], bits: int, block: int | None
) -> BitSketch | None:
    """The sketch of that many bits and that block, unless the options say otherwise."""
    wanted = options.get("block")
    if wanted is not None and block is not None:
        return None
    if options.get("zero_code", False) and bits == 1:
        return None
    return _ROUNDING[variant](bits, **{**options, "block": block if wanted is None else wanted})


def _automatic(trial: Trial, budget: Budget) -> _Spent:
    bytes_ = limit(trial, budget)
    if bytes_ is None:
        return _Spent(Identity(), trial.full_batch, reason="no budget: everything is kept")
    choice = choose(trial, bytes_)
    if choice is None:
        raise infeasible(trial, budget, bytes_, fewest_bytes(trial), "the least of auto")
    layers = {name: repr(sketch) for name, sketch in choice.sketches.items()}
    return _Spent(choice.sketches, trial.full_batch, layers=layers, reason=choice.reason)


def _check(variant: str, allocation: str, options: dict[str, Any]) -> None:
    if variant not in VARIANTS:
        raise UsageError(f"unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    if allocation not in ALLOCATIONS:
        choices = ", ".join(ALLOCATIONS)
        raise UsageError(f"unknown allocation {allocation!r}: choose one of {choices}")
    if allocation == "optimal" and variant in SKETCHING and variant not in _PAPER:
        raise UsageError(
            f"allocation=optimal divides the paper's keep fractions among layers; {variant} has "
            "none: use allocation=uniform, or variant=auto, which chooses for each layer"
        )
    known = OPTIONS.get(variant, ())
    for name in options:
        if name not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise UsageError(f"{variant} has no option {name!r}: {has}")
