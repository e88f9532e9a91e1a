"""Whether the fields of a checkpoint are what this program writes.

A digest tells a damaged file; this tells one that was edited, or that something else has written.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from rad.training.segments import are_segments

KEYS = {"config", "model", "optimizer", "generators", "iteration", "seconds", "rows"}
LATER = {"segments"}
"""What the checkpoints of earlier versions lack."""

MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Expected:
    """What a run's checkpoints can hold.

    `columns` are those of metrics.csv. `rows(n)` gives the iterations of all rows that are there
    once n updates are done, each with the columns that are filled; None where that is not known.
    """

    iterations: int
    columns: Collection[str]
    rows: Callable[[int], Mapping[int, Collection[str]]] | None = None


def problem(state: Mapping[str, Any], expected: Expected, states: Mapping[str, Tensor]) -> str:
    """What is wrong with the fields beside model and optimizer; empty where nothing is.

    `states` are those of the generators here.
    """
    iteration, seconds = state["iteration"], state["seconds"]
    if type(iteration) is not int or not 0 <= iteration <= expected.iterations:
        return f"iteration is {iteration!r}, of {expected.iterations}"
    if type(seconds) not in (int, float) or not 0 <= seconds < math.inf:
        return f"seconds is {seconds!r}"
    if "segments" in state and not are_segments(state["segments"]):
        return "segments are none"
    for name, here in states.items():
        there = state["generators"][name]
        if not isinstance(there, Tensor) or (there.dtype, there.shape) != (here.dtype, here.shape):
            return f"the state of the generator {name!r} is none"
    return _problem_of_rows(state["rows"], iteration, seconds, expected)


def _problem_of_rows(rows: Any, iteration: int, seconds: float, expected: Expected) -> str:
    if not isinstance(rows, list):
        return "rows is no list"
    for row in rows:
        if not isinstance(row, dict) or row.keys() != set(expected.columns):
            return "a row has other columns than this run"
        if not all(value is None or _is_number(value) for value in row.values()):
            return "a row holds what is no number"
        if type(row["iteration"]) is not int or not _is_number(row["seconds"]):
            return "a row has no iteration or no seconds"
    for name, end in (("iteration", iteration), ("seconds", seconds + 1e-6)):
        values = [row[name] for row in rows]
        if values != sorted(values) or not all(0 <= value <= end for value in values):
            return f"the rows' {name} do not rise from 0 to {end:g}"
    if expected.rows is None:
        return ""
    filled = expected.rows(iteration)
    if [row["iteration"] for row in rows] != sorted(filled):
        return f"there are {len(rows)} rows, where {iteration} updates leave {len(filled)} others"
    for row in rows:
        if any(row[column] is None for column in filled[row["iteration"]]):
            return f"the row of iteration {row['iteration']} lacks values"
    return ""


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def problem_of_optimizer(
    saved: Any, optimizer: Optimizer, model: nn.Module, weights: Mapping[str, Tensor], done: int
) -> str:
    """What is wrong with the optimizer's state after so many updates; empty where nothing is.

    `weights` are the saved model's. Of Adam, only parameters that have not moved from those of
    `model`, which is at its start, can be without a state: they have had no gradient.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if not isinstance(saved, dict) or not isinstance(saved.get("state"), dict):
        return "the optimizer's state is none"
    states = saved["state"]
    if not states.keys() <= set(range(len(parameters))):
        return "the optimizer has a state of other parameters"
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for index, parameter in enumerate(parameters):
        state = states.get(index)
        if state is None:
            name = names.get(id(parameter))
            moved = name is not None and not torch.equal(parameter.cpu(), weights[name].cpu())
            if isinstance(optimizer, Adam) and moved:
                return f"the optimizer has no state of {name}"
        elif not _fits(state, parameter, isinstance(optimizer, Adam), done):
            return f"the optimizer's state of {names.get(id(parameter), index)} is none"
    return ""


def _fits(state: Any, parameter: nn.Parameter, adam: bool, done: int) -> bool:
    if not isinstance(state, dict):
        return False
    if not adam:
        return all(value is None or _has_shape(value, parameter.shape) for value in state.values())
    return (
        state.keys() >= {"step", *MOMENTS}
        and _has_shape(state["step"], torch.Size())
        and 0 < float(state["step"]) <= done
        and all(_has_shape(state[name], parameter.shape) for name in MOMENTS)
    )


def _has_shape(value: Any, shape: Sequence[int]) -> bool:
    return isinstance(value, Tensor) and value.dtype.is_floating_point and value.shape == shape
