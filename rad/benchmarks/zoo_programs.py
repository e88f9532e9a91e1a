"""What a model of the zoo keeps and takes, plain, with RAD and recomputed."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from rad.benchmarks.zoo import Specimen, checkpointed
from rad.benchmarks.zoo_measures import measured
from rad.conversion.modules import convert
from rad.errors import UsageError, first_line
from rad.memory import parameter_bytes, saved_bytes
from rad.planning.variants import fit
from rad.sketches import DifferentSample, DitheredRounding, StochasticRounding

PLANNED = {"auto": False, "auto_recompute": True}
"""What is planned for a budget, and whether recomputation is weighed against sketches."""

PATH = DitheredRounding(4, block=256)


@dataclass
class Program:
    """A model that is trained in one way. `note` says why it could not be made."""

    model: nn.Module | None
    facts: dict[str, Any] = field(default_factory=dict)


def zoo_rows(
    made: Specimen, names: Sequence[str], fraction: float, rounds: int
) -> Iterator[dict[str, Any]]:
    """A row for each program: bytes, time against the first's, and the error of its gradient.

    As `measured` has it; the row of a program that cannot be made says why. `planning_seconds` is
    what `auto` takes to plan for `fraction` of the saved bytes, `predicted_bytes` its promise.
    """
    programs = {name: _made(name, made, fraction) for name in names}
    running = {name: p.model for name, p in programs.items() if p.model is not None}
    found = measured(made, running, names[0], rounds)
    for name, program in programs.items():
        yield {"program": name} | found.get(name, {}) | program.facts


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
