"""What a model of the zoo keeps and takes, plain, with RAD and recomputed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from rad.benchmarks.zoo import Specimen, checkpointed
from rad.conversion.modules import convert
from rad.errors import UsageError, first_line
from rad.memory import parameter_bytes, peak_bytes, saved_bytes
from rad.planning.timing import alternate, error_of_ratio, ratio_of_medians
from rad.planning.variants import fit
from rad.sketches import DifferentSample, DitheredRounding, StochasticRounding

PLANNED = {"auto": False, "auto_recompute": True}
"""What is planned for a budget, and whether recomputation is weighed against sketches."""

PATH = DitheredRounding(4, block=256)
DRAWS = 8
"""Gradients of which the error of a program is the mean."""


@dataclass
class Program:
    """A model that is trained in one way. `note` says why it could not be made."""

    model: nn.Module | None
    facts: dict[str, Any] = field(default_factory=dict)


def zoo_rows(
    made: Specimen, names: Sequence[str], fraction: float, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each program: bytes, time against the first's, and the error of its gradient.

    Times are left out where the first cannot be made; its row says why.
    `gradient_error` is E |g_hat - g|^2 of the whole gradient over |g|^2, and `of_minibatch` over
    the variance of the minibatch's own gradient, estimated from its two halves. `planning_seconds`
    is what `auto` takes to plan for `fraction` of the saved bytes, `predicted_bytes` its promise.
    """
    programs = {name: _made(name, made, fraction) for name in names}
    running = {name: p.model for name, p in programs.items() if p.model is not None}
    steps = {name: _step(made, model) for name, model in running.items()}
    seconds = alternate(steps, rounds)
    plain = seconds.get(names[0])
    exact, noise = _gradient(made, made.model), _minibatch_variance(made)
    for name, program in programs.items():
        row: dict[str, Any] = {"program": name}
        if (model := program.model) is not None:
            error = _squared_error(made, model, exact)
            row |= {
                "saved_bytes": saved_bytes(partial(made.loss_of, model)),
                "peak_bytes": peak_bytes(steps[name]),
                **({} if plain is None else _times(seconds[name], plain)),
                "gradient_error": float(f"{error / exact.square().sum().item():.3g}"),
                "of_minibatch": float(f"{error / noise:.3g}"),
            }
        yield row | program.facts


def _times(seconds: Sequence[float], plain: Sequence[float]) -> dict[str, float]:
    return {
        "time_ratio": round(ratio_of_medians(seconds, plain), 3),
        "time_ratio_error": round(error_of_ratio(seconds, plain), 4),
    }


def _made(name: str, made: Specimen, fraction: float) -> Program:
    model = copy.deepcopy(made.model)
    try:
        if name in PLANNED:
            return _planned(made, model, fraction, PLANNED[name])
        return Program(PROGRAMS[name](model))
    except UsageError as error:
        return Program(None, {"note": first_line(error)})


PROGRAMS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "torch": lambda model: model,
    "different_sample": lambda model: convert(model, DifferentSample(0.1), inplace=True),
    "stochastic_rounding": lambda model: convert(model, StochasticRounding(2), inplace=True),
    "rounded_path": lambda model: convert(
        model, StochasticRounding(2, block=256), path=PATH, inplace=True
    ),
    "checkpointing": checkpointed,
}
"""How each program that is not planned is made of a model, in place."""


def _planned(made: Specimen, model: nn.Module, fraction: float, recompute: bool) -> Program:
    """What `auto` makes of the bytes of the parameters and a fraction of those saved."""
    budget = parameter_bytes(model) + int(fraction * saved_bytes(lambda: made.loss_of(model)))
    start = time.perf_counter()
    plan = fit(
        model,
        made.inputs,
        made.loss_of_output,
        f"{budget} B",
        "auto",
        path="auto",
        recompute=recompute,
    )
    took = round(time.perf_counter() - start, 1)
    facts: dict[str, Any] = {"planning_seconds": took, "path": str(plan.path)}
    facts |= {"recomputed": len(plan.recomputed)} if recompute else {}
    facts |= {"predicted_bytes": plan.memory.saved_bytes}
    return Program(convert(model, plan, inplace=True), facts)


def _step(made: Specimen, model: nn.Module) -> Callable[[], None]:
    def step() -> None:
        made.loss_of(model).backward()
        model.zero_grad(set_to_none=True)

    return step


def _gradient(made: Specimen, model: nn.Module, part: slice = slice(None)) -> Tensor:
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(made.loss_of(model, part), parameters, allow_unused=True)
    return torch.cat([g.flatten().double() for g in grads if g is not None])


def _minibatch_variance(made: Specimen) -> float:
    """|g_1 - g_2|^2 / 4 of the gradients of the two halves: E |g - E g|^2 of the whole batch's."""
    inputs = made.inputs.values() if isinstance(made.inputs, dict) else made.inputs
    half = len(next(iter(inputs))) // 2
    one, other = (_gradient(made, made.model, p) for p in (slice(half), slice(half, 2 * half)))
    return (one - other).square().sum().item() / 4


def _squared_error(made: Specimen, model: nn.Module, exact: Tensor) -> float:
    errors = [(_gradient(made, model) - exact).square().sum().item() for _ in range(DRAWS)]
    return sum(errors) / DRAWS
