"""Where variant, budget, sketch, batch and model meet.

A variant says how a memory budget is spent: the RAD variants keep the full batch and
the largest fraction of each activation that fits, `reduced_batch` keeps whole
activations of the largest batch that fits, and `baseline` keeps everything. The
exact two run on the lean exact layers, so that equal bytes mean equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from rad.convert import convert
from rad.errors import UsageError
from rad.memory.budget import Budget, largest_within, parse_budget
from rad.memory.measure import parameter_bytes, peak_bytes, saved_bytes
from rad.sketches import (
    DifferentProject,
    DifferentSample,
    Identity,
    Project,
    SameSample,
    Sketch,
)

_SKETCHES: dict[str, Callable[[float, bool], Sketch]] = {
    "same_sample": SameSample,
    "different_sample": DifferentSample,
    "project": lambda keep_fraction, replacement: Project(keep_fraction),
    "different_project": lambda keep_fraction, replacement: DifferentProject(keep_fraction),
}
VARIANTS = ("baseline", "reduced_batch", *_SKETCHES)

Loss = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Memory:
    """Bytes of parameters, and of one forward and backward pass (`rad.memory`)."""

    parameter_bytes: int
    saved_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Plan:
    """What a variant does with a budget, and the memory it then takes, measured."""

    variant: str
    budget: str
    keep_fraction: float | None
    bits: int | None
    batch_size: int
    memory: Memory


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
    replacement: bool = True,
) -> Built:
    """Convert `model` so that it trains as `variant` within `budget`.

    `example` holds the model's inputs at the full batch size (leading axis); `loss`
    maps the output, of that or a smaller batch, to a scalar. The budget counts
    parameter bytes plus saved bytes, loss included, as measured; a fraction f stands
    for what `different_sample` needs at keep fraction f and the full batch.
    `replacement` says how the sampling variants draw. The model given stays as it is.

    Raises UsageError for an unknown variant, a budget that cannot be read, and one
    too small for the variant (naming the smallest that is not).
    """
    if variant not in VARIANTS:
        raise UsageError(f"unknown variant {variant!r}: choose one of {', '.join(VARIANTS)}")
    wanted = parse_budget("full" if variant == "baseline" else budget)
    trial = _Trial(model, example, loss)
    if variant in _SKETCHES:
        keep_fraction = _keep_fraction(trial, variant, wanted, replacement)
        sketch, batch_size = _SKETCHES[variant](keep_fraction, replacement), trial.full_batch
    else:
        keep_fraction, sketch, batch_size = None, Identity(), _batch_size(trial, wanted)
    plan = Plan(
        variant=variant,
        budget=wanted.text,
        keep_fraction=keep_fraction,
        bits=None,
        batch_size=batch_size,
        memory=trial.memory(sketch, batch_size),
    )
    return Built(convert(model, sketch, seed), batch_size, plan)


def _batch_size(trial: _Trial, budget: Budget) -> int:
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


def _keep_fraction(trial: _Trial, variant: str, budget: Budget, replacement: bool) -> float:
    """The largest keep fraction at which the variant fits the budget."""
    if budget.kind != "bytes":
        return budget.value

    def cost(keep_fraction: float) -> int:
        return trial.total_bytes(_SKETCHES[variant](keep_fraction, replacement), trial.full_batch)

    candidates = _keep_fractions(trial.sketched_widths())
    keep_fraction = largest_within(candidates, cost, int(budget.value))
    if keep_fraction is None:
        raise _infeasible(budget, cost(candidates[0]), trial, f"{variant} with one number a row")
    return keep_fraction


def _keep_fractions(widths: set[int]) -> list[float]:
    """Every keep fraction at which the count kept of some width grows, ascending.

    k = int(d f + 0.999) reaches j at f = (j - 0.999)/d.
    """
    steps = {math.nextafter((j - 0.999) / d, 1.0) for d in widths for j in range(1, d + 1)}
    return sorted(steps)


def _infeasible(budget: Budget, smallest: int, trial: _Trial, what: str) -> UsageError:
    return UsageError(
        f"budget {budget.text} ({int(budget.value):,} bytes) is too small: parameters alone take "
        f"{trial.parameter_bytes:,} bytes, and {what} needs {smallest:,} in all; "
        f"give at least {smallest} or a smaller model or batch"
    )


class _Trial:
    """Measures throw-away conversions of a model on an example."""

    def __init__(self, model: nn.Module, example: tuple[Tensor, ...], loss: Loss) -> None:
        self.model, self.example, self.loss = model, example, loss
        self.full_batch = len(example[0])
        self.parameter_bytes = parameter_bytes(model)
        self._devices = {t.device for t in example if t.is_cuda}

    def total_bytes(self, sketch: Sketch, batch: int) -> int:
        """Parameter bytes plus saved bytes."""
        return self.parameter_bytes + saved_bytes(self._forward(sketch, batch))

    def memory(self, sketch: Sketch, batch: int) -> Memory:
        forward = self._forward(sketch, batch)
        return Memory(
            parameter_bytes=self.parameter_bytes,
            saved_bytes=saved_bytes(forward),
            peak_bytes=peak_bytes(lambda: forward().backward()),
        )

    def sketched_widths(self) -> set[int]:
        """The sizes d of the axes that sketches act on in this model."""
        widths = _Widths()
        self._forward(widths, self.full_batch)()
        return widths.seen

    def _forward(self, sketch: Sketch, batch: int) -> Callable[[], Tensor]:
        converted = convert(self.model, sketch).train()

        def forward() -> Tensor:
            with torch.random.fork_rng(self._devices):
                return self.loss(converted(*(t[:batch].clone() for t in self.example)))

        return forward


@dataclass(frozen=True)
class _Widths(Identity):
    """Keeps everything and remembers the widths it met."""

    seen: set[int] = field(default_factory=set)

    def compress(self, x: Tensor, key: Tensor) -> tuple[Tensor, ...]:
        self.seen.add(x.shape[-1])
        return super().compress(x, key)
