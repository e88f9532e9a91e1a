"""Variants: how each method of the comparison spends a memory budget.

The one place where variant, budget, sketch, batch and model meet. The paper's variants keep
the full batch and take the largest keep fraction that fits, for all layers alike or divided
among them by predicted variance; rounding takes the most bits, `auto` what is predicted to
be best for each layer; `reduced_batch` keeps everything of the largest batch that fits, and
`baseline` keeps everything. Exact, too, are `accumulation`, which works through the full batch in
parts that fit, and `checkpointing`, which runs every block again in the backward pass. The exact
ones run on the lean exact layers, so that equal bytes mean equal bytes. `activation_memory_budget`
and `rad_compile` convert nothing and compile the model (`rad.planning.compiled`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from rad.conversion.example import own_loss
from rad.conversion.report import Report, report
from rad.errors import UsageError
from rad.memory.budget import Budget, parse_budget
from rad.memory.graph import gradients_enabled
from rad.planning.carry_out import carry_out
from rad.planning.compiled import COMPILED, divided
from rad.planning.exact import with_blocks_recomputed
from rad.planning.limits import TooSmall, in_bytes, refusal
from rad.planning.path import Path, on_best_path
from rad.planning.plan import Plan
from rad.planning.probe import Kind, Loss, Trial
from rad.planning.spend import ALLOCATIONS, Allocation, Spent, is_kept_directly, spend
from rad.planning.ways import best_way, read_time
from rad.sketches import Identity
from rad.sketches.registry import kinds

EXACT = ("baseline", "reduced_batch", "accumulation", "checkpointing")
"""The variants that sketch nothing."""


def sketching() -> tuple[str, ...]:
    """The variants that sketch: every kind of sketch, and `auto`, which chooses among them."""
    return (*kinds(), "auto")


def variants() -> tuple[str, ...]:
    """All variants by name."""
    return (*EXACT, *COMPILED, *sketching())


@dataclass(frozen=True)
class Built:
    """A converted model, the batch size to train it with, and the plan behind both."""

    model: nn.Module
    batch_size: int
    plan: Plan


def build(
    model: nn.Module,
    example: Any,
    loss: Loss | None,
    variant: str,
    budget: str | float = "full",
    seed: int = 0,
    *,
    kind: Kind = "saved",
    allocation: Allocation = "uniform",
    batch_axis: Any = None,
    path: Path = None,
    time: str | float | None = None,
    recompute: bool | None = None,
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
        path=path,
        time=time,
        recompute=recompute,
        **options,
    )
    return Built(carry_out(model, plan, seed), plan.batch_size, plan)


@gradients_enabled()
def fit(
    model: nn.Module,
    example: Any,
    loss: Loss | None = None,
    budget: str | float = "full",
    variant: str = "different_sample",
    *,
    kind: Kind = "saved",
    allocation: Allocation = "uniform",
    batch_axis: Any = None,
    path: Path = None,
    time: str | float | None = None,
    recompute: bool | None = None,
    **options: Any,
) -> Plan:
    """The most that `variant` can do within `budget`, measured on copies of `model`.

    `example` holds the model's inputs at the full batch size: a tensor, a tuple or list of
    positional arguments, or a mapping of keyword arguments, in which may be nests of tensors and
    anything else. `loss` maps the output, as it is and of that or a smaller batch, to a scalar;
    left out, the model returns it, as its output or as the output's attribute or key `loss`.
    `variant` is the name of a kind of sketch (`rad.sketches.registry`), or its class's, or one of
    the others in `variants()`.
    `accumulation` has the full batch's gradient (with batch normalisation, that of parts each
    normalised by itself) in the fewest parts that fit, of `Plan.micro_batch` examples, which the
    caller's loop works through one after another; `checkpointing` recomputes every block
    (`rad.planning.exact.blocks`), and its budget is only checked. Neither rounds a path that is
    "auto". `activation_memory_budget` and `rad_compile` compile the model, of which they convert no
    layer, with the largest part of torch.compile's bytes that fits (`rad.planning.compiled`).
    A smaller batch, which `reduced_batch` and `accumulation` need, is cut from each tensor along
    the axis that holds the examples. `batch_axis` gives it as `in_dims` of `torch.func.vmap` does:
    an axis for all, or in a tuple or by name an axis for each argument, None where it has no batch.
    Left out, it is found from how the model and its loss treat the inputs
    (`rad.planning.batch_axis`); a net that loops over a leading axis of time by itself cannot be
    told from one that leads with the batch.
    Batches on which the model or the loss raises an error are passed over.
    The budget counts
    parameter bytes plus saved bytes, loss included, or with `kind="peak"` parameter bytes
    plus the peak of a forward and backward pass, gradients included; a fraction f stands
    for what `different_sample` needs at keep fraction f and the full batch, and is the keep
    fraction of the paper's variants.
    `allocation="optimal"` divides what the uniform keep fraction takes among the layers so
    that the predicted variance of the gradient is least (`rad.planning.allocation`); "auto" chooses
    each layer's sketch so (`rad.planning.auto`).
    `path` is the sketch of what lies on the gradient's path (`rad.convert`). With "auto" it is
    chosen, too: of the plans with some roundings and with none, which fit, that is taken whose
    whole gradient has the least mean squared error, measured over a few draws
    (`rad.planning.path`).
    With `variant="auto"`, sketches and recomputation are weighed (`rad.planning.ways`) where `path`
    is "auto", where `time` is given, or with `recompute=True`; not with `recompute=False`. Of what
    fits the budget is taken what promises the least time to a loss: the measured time of a step,
    times one and the measured error of the gradient. With `time="1.3x"`, how many times plain
    torch's time a step may take, it is what has the least error within that time. Times are
    measured, on this machine, so that two plans may differ: keep a plan to use it again.
    `options` are fields of the variant's sketch (`rad.sketches.registry`): `replacement` of the
    sampling variants, `block` and `zero_code` of rounding, `block` and `dithered` of rotated,
    `bits` and `dithered` of sampled rounding; or `inner` and, of `rad_compile`, `fewest_bits`
    (`rad.backend`).

    Modules are planned in the mode that they have: what is in `eval()`, such as frozen batch
    normalisation, keeps what torch keeps, and is to be so in training, too.

    Saved bytes grow with the keep fraction, and the search for the largest that fits is exact.
    Peak bytes may not, everywhere: what is found fits, as measured.

    Sketched, and planned, are the calls of layers, with gradients on; `F.linear` with weight and
    bias of a layer right below the module that calls it is one. A weight that is used past its
    layer otherwise, such as in `F.linear(x, layer.weight)`, in an embedding that is tied to it or
    in a penalty, has torch's exact gradient there, which adds no noise; what torch keeps for that
    is measured, like all else. A call under `no_grad` keeps nothing and adds nothing. Layers that
    share one weight have a sketch and draws each, as has each call of a layer that is called
    several times: their variances add up. A layer that sketches in a call of its `forward`, which
    cannot be watched, is measured like any other, but refused by name where predicted variances
    decide ("auto", "optimal").

    Gradients are on inside, whatever the mode of the caller.

    Raises UsageError for an unknown variant, option, kind or allocation, an example without a
    batch, one that could be cut in several ways where a smaller batch is needed, for
    `checkpointing` a model without blocks, a model or a loss that runs on no smaller batch, a
    `batch_axis` that does not match the example, a class or lazy layers in place of a model,
    tensors without numbers (meta device, `FakeTensorMode`), a loss that is no scalar or needs no
    gradient, a model without a layer that sketches, without a call of one in its forward pass, with
    reentrant checkpointing (`use_reentrant=True`), or in evaluation mode as a whole (call
    `model.train()` first), a budget that cannot be read, and one too small for the variant (naming
    the smallest that is not); for a time that cannot be read or in which nothing was found; and for
    one, or `recompute=True`, where nothing is weighed: with another variant, and for a time without
    a budget or with `recompute=False`.
    """
    variant = _by_class_name().get(variant, variant)
    _check(variant, allocation, options)
    wanted, most = parse_budget("full" if variant == "baseline" else budget), read_time(time)
    _check_weighing(variant, wanted, most, recompute)
    trial = Trial(model, example, own_loss if loss is None else loss, kind, batch_axis)
    if variant == "checkpointing":
        trial = with_blocks_recomputed(trial)
    trial.accumulates = variant == "accumulation"
    if variant in COMPILED:
        if allocation != "uniform" or not (path is None or path == "auto"):
            raise UsageError(
                f"{variant} divides what the compiler saves: leave out allocation= and path="
            )
        return _compiled(trial, report(model), wanted, variant, options)
    if path == "auto" and variant in ("accumulation", "checkpointing"):
        path = None
    if not trial.layers and variant in sketching():
        raise UsageError(
            f"{variant} has nothing to sketch: the model has no linear, convolution or recurrent "
            "layer of torch.nn (subclasses with a forward pass of their own are left alone); "
            "choose variant=accumulation, which spends a budget on any model"
        )
    if not trial.sketches and variant in sketching():
        raise UsageError(
            f"{variant} has nothing to sketch: each linear, convolution and recurrent layer is "
            "frozen or in evaluation mode; call train() and requires_grad_() on those to be trained"
        )
    if variant in sketching() and not trial.keeps_sketches:
        raise UsageError(
            f"{variant} has nothing to sketch: the forward pass calls no linear, convolution or "
            "recurrent layer with gradients on (functional uses of a weight keep what torch "
            "keeps); call the layers, outside torch.no_grad()"
        )
    bytes_ = None if is_kept_directly(wanted, variant) else in_bytes(trial, wanted)

    def spending(each: Trial) -> Spent | TooSmall:
        return spend(each, wanted, bytes_, variant, allocation, options)

    if bytes_ is not None and _weighs(variant, path, most, recompute):
        way = best_way(trial, path, bytes_, most, spending)
        spent = way if isinstance(way, TooSmall) else way.spent
        trial = trial if isinstance(way, TooSmall) else way.trial
    else:
        spent = on_best_path(trial, path, lambda: spending(trial))
    if isinstance(spent, TooSmall):
        assert bytes_ is not None
        raise refusal(trial, wanted, bytes_, spent)
    return Plan(
        variant=variant,
        budget=wanted.text,
        kind=kind,
        allocation=allocation if variant in sketching() else "uniform",
        sketch=spent.sketch,
        keep_fraction=spent.keep_fraction,
        bits=spent.bits,
        batch_size=spent.batch_size,
        micro_batch=spent.micro_batch,
        memory=trial.memory(spent.sketch, spent.micro_batch or spent.batch_size),
        report=trial.report(spent.sketch),
        layers=spent.layers,
        reason=spent.reason,
        path=trial.path,
        recomputed=trial.recomputed,
    )


def _compiled(
    trial: Trial, plain: Report, wanted: Budget, variant: str, options: dict[str, Any]
) -> Plan:
    bytes_ = in_bytes(trial, wanted)
    found = divided(trial, bytes_, variant, options)
    if isinstance(found, TooSmall):
        assert bytes_ is not None
        raise refusal(trial, wanted, bytes_, found)
    return Plan(
        variant=variant,
        budget=wanted.text,
        kind=trial.kind,
        allocation="uniform",
        sketch=Identity(),
        keep_fraction=None,
        bits=None,
        batch_size=trial.full_batch,
        memory=found.memory,
        report=plain,
        reason=found.reason,
        division=found.division,
    )


def _weighs(variant: str, path: Path, most: float | None, recompute: bool | None) -> bool:
    """Whether sketches and recomputation are measured against each other."""
    wanted = path == "auto" or most is not None if recompute is None else recompute
    return variant == "auto" and wanted


def _check_weighing(
    variant: str, budget: Budget, most: float | None, recompute: bool | None
) -> None:
    """Raise UsageError where a time or recomputation is asked for, and neither would be weighed."""
    if variant != "auto" and (most is not None or recompute):
        raise UsageError(
            "time= and recompute= go with variant='auto', which weighs noise and time: choose "
            f"that, or leave them out with {variant}"
        )
    if most is not None and budget.kind == "full":
        raise UsageError(
            "time= goes with a budget in bytes or a fraction: give one (of a full one all is kept)"
        )
    if most is not None and recompute is False:
        raise UsageError(
            "time= is kept by weighing sketches and recomputation: leave out recompute=False"
        )


def _by_class_name() -> dict[str, str]:
    """The names of the kinds, by those of their classes: DifferentSample is different_sample."""
    return {getattr(kind.sketch, "__name__", name): name for name, kind in kinds().items()}


def _check(variant: str, allocation: str, options: dict[str, Any]) -> None:
    if variant not in variants():
        raise UsageError(f"unknown variant {variant!r}: choose one of {', '.join(variants())}")
    kind = kinds().get(variant)
    if allocation not in ALLOCATIONS:
        choices = ", ".join(ALLOCATIONS)
        raise UsageError(f"unknown allocation {allocation!r}: choose one of {choices}")
    if allocation == "optimal" and variant in sketching() and not (kind and kind.of_paper):
        raise UsageError(
            f"allocation=optimal divides the paper's keep fractions among layers; {variant} has "
            "none: use allocation=uniform, or variant=auto, which chooses for each layer"
        )
    known = kind.options if kind else COMPILED.get(variant, ())
    for name in options:
        if name not in known:
            has = f"choose among {', '.join(known)}" if known else "it has none, leave it out"
            raise UsageError(f"{variant} has no option {name!r}: {has}")
