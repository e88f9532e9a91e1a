"""Rivals in torch.compile: its exact division of a model's passes, and `rad.compile`'s.

Loading torch's compiler takes seconds, so what needs it is imported when it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

from torch import nn

from rad.errors import UsageError
from rad.nn.base import keeps_now
from rad.planning.limits import TooSmall
from rad.planning.plan import Division, Inner, Memory
from rad.planning.probe import Trial

COMPILED = {
    "activation_memory_budget": ("inner",),
    "rad_compile": ("inner", "fewest_bits"),
}
"""The variants that compile the model, with their options."""

STEPS = 20
"""Parts of torch's bytes that are tried, from the whole to nothing."""

ATTEMPTS = 3
"""How often less is tried where more is saved than was planned."""


class Divided(NamedTuple):
    """How a model is compiled, what it then takes, and, of `rad.compile`, what was decided."""

    division: Division
    memory: Memory
    reason: str | None = None


def compile_divided(model: nn.Module, division: Division, seed: int = 0) -> Any:
    """Let a model train compiled from now on, in place, and return the backend that compiles it.

    In evaluation it runs as it is, and copies of it are not compiled. A call raises UsageError
    where torch would compile no more (`rad.partition.calls`).
    """
    import torch

    from rad.partition.backend import backend
    from rad.partition.calls import strict
    from rad.partition.memory_budget import memory_budget

    how: Any = memory_budget(division.fraction, division.inner)
    if division.sketches:
        bits = division.fewest_bits
        how = backend(division.fraction, seed, division.inner, fewest_bits=bits)
        how.count_in(model)
    given = how if division.sketches else None
    compiled = strict(torch.compile(_apart(model), backend=how, dynamic=False), given)

    def call(*args: Any, **kwargs: Any) -> Any:
        run = compiled if keeps_now(model) else model._call_impl
        return run(*args, **kwargs)

    vars(model)["_compiled_call_impl"] = call
    return how


def _apart(model: nn.Module) -> Callable[..., Any]:
    """A call of the model in code of its own: torch compiles a piece of code so often only."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return model._call_impl(*args, **kwargs)

    call.__code__ = call.__code__.replace(co_name="call")
    return call


def divided(
    trial: Trial, bytes_: int | None, variant: str, options: dict[str, Any]
) -> Divided | TooSmall:
    """The largest part of torch's bytes that fits, and what it then takes, measured.

    Raises UsageError for a budget of peak bytes, which compilers change.
    """
    if trial.kind == "peak":
        raise UsageError(f"{variant} counts saved bytes: give kind=saved")
    whole = Division(1.0, variant == "rad_compile", **options)
    limit = None if bytes_ is None else bytes_ - trial.parameter_bytes
    if limit is None:
        return Divided(whole, trial.memory_of(partial(compile_divided, division=whole)))
    found = _sketched(trial, limit, whole) if whole.sketches else _exact(trial, limit, whole)
    if isinstance(found, TooSmall):
        return TooSmall(f"{variant} {found.choice}", trial.parameter_bytes + found.needed)
    return found


def _exact(trial: Trial, limit: int, whole: Division) -> Divided | TooSmall:
    """Steps are tried with the quicker of the two ways to compile, then as will be trained."""

    def memory(step: int, inner: Inner) -> Memory:
        division = replace(whole, fraction=step / STEPS, inner=inner)
        return trial.memory_of(partial(compile_divided, division=division))

    low, high = -1, STEPS  # what may fit, and what is left to try
    while low < high:
        middle = (low + high + 1) // 2
        fits = memory(middle, "aot_eager").saved_bytes <= limit
        low, high = (middle, high) if fits else (low, middle - 1)
    best = None
    for step in range(max(low, 0), STEPS + 1):  # other compilers keep a little less or more
        found = memory(step, whole.inner)
        if found.saved_bytes > limit:
            break
        best = Divided(replace(whole, fraction=step / STEPS), found)
    for step in range(max(low, 0) - 1, -1, -1) if best is None else ():
        found = memory(step, whole.inner)
        if found.saved_bytes <= limit:
            return Divided(replace(whole, fraction=step / STEPS), found)
    return TooSmall("at its least", found.saved_bytes) if best is None else best


def _sketched(trial: Trial, limit: int, whole: Division) -> Divided | TooSmall:
    """The part that leaves what is saved past the compiled graphs, such as in the loss, beside."""
    from rad.partition.search import BudgetTooSmall

    made: list[Any] = []

    def memory(division: Division) -> Memory:
        return trial.memory_of(lambda model: made.append(compile_divided(model, division)))

    most = memory(replace(whole, inner="aot_eager"))
    in_graphs = sum(choice.plain_bytes for choice in made[0].choices)
    if not in_graphs and most.saved_bytes > limit:
        return TooSmall("beside its graphs, which keep nothing,", most.saved_bytes)
    wanted = limit - (most.saved_bytes - in_graphs)
    for _ in range(ATTEMPTS):
        division = replace(whole, fraction=min(max(wanted, 1) / max(in_graphs, 1), 1.0))
        try:
            found = memory(division)
        except BudgetTooSmall as error:
            needed = math.ceil((error.least + 0.001) * in_graphs)
            return TooSmall("at its least", needed + most.saved_bytes - in_graphs)
        if found.saved_bytes <= limit:
            return Divided(division, found, made[-1].describe())
        wanted -= found.saved_bytes - limit
    return TooSmall("in several attempts", found.saved_bytes)
