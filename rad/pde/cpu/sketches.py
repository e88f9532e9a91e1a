"""What is kept of the states of a simulation, and how an estimate of them is read back.

The state after t steps is a row of n^2 interior values, sketched with the key
`fold_in(key, t)`: a fresh draw each step. A sketch without a faster form here keeps the states of
a chunk by its own `compress_steps`.
"""

from __future__ import annotations

from functools import singledispatch
from typing import NamedTuple

import numpy as np
import torch
from numba import njit
from torch import Tensor

from rad.draws import loops as compiled
from rad.draws.dispatch import step_keys
from rad.pde.cpu.grid import Grid
from rad.pde.cpu.points import EVERY, add_loss_gradient, add_residual_gradient, gather
from rad.pde.cpu.rounded import read_states, round_states
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Identity,
    SameSample,
    SampledRounding,
    Sketch,
    StochasticRounding,
)
from rad.sketches.blockwise import Rounding

Sampling = DifferentSample | SameSample  # alike on a single row


class Estimate(NamedTuple):
    """States as `weight` times `values` at interior points, added up; 0 at all others."""

    points: np.ndarray  # (m, k) int32, or EVERY
    values: np.ndarray  # (m, k)
    weight: float
    residual: bool = False  # of the states minus the target


@singledispatch
def keep(sketch: Sketch, grid: Grid, states: Tensor, first: int, key: Tensor) -> tuple[Tensor, ...]:
    """What is kept of the states after `first`, first + 1, ... steps, those of a chunk.

    Shapes: states (m, points, points - 1) -> tensors (m, ...), the last `kept_per_chunk` of
    them (1, ...).
    """
    rows = all_points(grid, states)
    return sketch.compress_steps(rows.unsqueeze(1), step_keys(key, len(rows), first))


@singledispatch
def read(sketch: Sketch, grid: Grid, kept: tuple[Tensor, ...], first: int, key: Tensor) -> Estimate:
    """An unbiased estimate of the states that `kept` was kept of."""
    count, dtype = len(kept[0]), torch.from_numpy(grid.initial).dtype
    shape, keys = (count, 1, len(grid.places)), step_keys(key, count, first)
    return Estimate(EVERY, sketch.decompress_steps(kept, shape, dtype, keys)[:, 0].numpy(), 1.0)


@keep.register
def _(sketch: Identity, grid: Grid, states: Tensor, first: int, key: Tensor) -> tuple[Tensor, ...]:
    return (all_points(grid, states),)


@read.register
def _(sketch: Identity, grid: Grid, kept: tuple[Tensor, ...], first: int, key: Tensor) -> Estimate:
    return Estimate(EVERY, kept[0].numpy(), 1.0)


@keep.register(DifferentSample)
@keep.register(SameSample)
def _(sketch: Sampling, grid: Grid, states: Tensor, first: int, key: Tensor) -> tuple[Tensor, ...]:
    chosen = sampled_points(sketch, len(states), len(grid.places), first, key)
    values = states.new_empty(chosen.shape)
    gather(grid, states.numpy(), chosen, values.numpy())
    return (values,)


@read.register(DifferentSample)
@read.register(SameSample)
def _(sketch: Sampling, grid: Grid, kept: tuple[Tensor, ...], first: int, key: Tensor) -> Estimate:
    (values,) = kept
    chosen = sampled_points(sketch, len(values), len(grid.places), first, key)
    return Estimate(chosen, values.numpy(), len(grid.places) / values.shape[1])


@keep.register
def _(
    sketch: SampledRounding, grid: Grid, states: Tensor, first: int, key: Tensor
) -> tuple[Tensor, ...]:
    """Codes of each state's points; the states of a chunk share one grid, the last that is kept."""
    count = sketch.kept(len(grid.places))
    return round_states(sketch.rounding, count, grid, states, first, key)


@read.register
def _(
    sketch: SampledRounding, grid: Grid, kept: tuple[Tensor, ...], first: int, key: Tensor
) -> Estimate:
    count = sketch.kept(len(grid.places))
    points, values = read_states(sketch.rounding, count, grid, kept, first, key)
    return Estimate(points, values, len(grid.places) / count)


@keep.register(StochasticRounding)
@keep.register(DitheredRounding)
def _(sketch: Rounding, grid: Grid, states: Tensor, first: int, key: Tensor) -> tuple[Tensor, ...]:
    return round_states(sketch, None, grid, states, first, key)


@read.register(StochasticRounding)
@read.register(DitheredRounding)
def _(sketch: Rounding, grid: Grid, kept: tuple[Tensor, ...], first: int, key: Tensor) -> Estimate:
    return Estimate(*read_states(sketch, None, grid, kept, first, key), 1.0)


@singledispatch
def kept_per_chunk(sketch: Sketch) -> int:
    """How many of the tensors that `keep` returns, the last ones, hold one row for all states."""
    return 0


@kept_per_chunk.register
def _(sketch: SampledRounding) -> int:
    return 1


@singledispatch
def kept_bytes(sketch: Sketch, points: int, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes of what `keep` keeps of each state of so many interior points, and of each chunk."""
    return sketch.nbytes((1, points), dtype), 0


@kept_bytes.register
def _(sketch: SampledRounding, points: int, dtype: torch.dtype) -> tuple[int, int]:
    grid = sketch.rounding.fit(torch.zeros(1, 1, dtype=dtype)).nbytes
    return sketch.nbytes((1, points), dtype) - grid, grid


def final_adjoint(grid: Grid, step: int, state: Estimate) -> np.ndarray:
    """dL/dphi of the last state, after `step` steps: (points, points - 1)."""
    adjoint = np.zeros_like(grid.initial)
    chosen, values, flat = state.points[0], state.values[0], adjoint.reshape(-1)
    if state.residual:
        add_residual_gradient(grid, chosen, values, state.weight, flat)
    else:
        add_loss_gradient(grid, step, chosen, values, state.weight, flat)
    return adjoint


def sampled_points(sketch: Sampling, count: int, high: int, first: int, key: Tensor) -> np.ndarray:
    """The interior points chosen for states first .. first + count - 1: int32, (count, k).

    Those of `sketch.indices((1, high), fold_in(key, t))`.
    """
    out = np.empty((count, sketch.kept(high)), np.int32)
    _draw(compiled.key_word(key), first, high, sketch.replacement, out)
    return out


@njit(nogil=True)
def _draw(key: np.uint64, first: int, high: int, replacement: bool, out: np.ndarray) -> None:
    marks = np.zeros(high, np.bool_)
    for s in range(len(out)):
        sub_key = compiled.fold_in(key, first + s)
        if replacement:
            compiled.integers(sub_key, 0, high, out[s])
        else:
            compiled.distinct_integers(sub_key, 0, high, out[s], marks)


def all_points(grid: Grid, states: Tensor) -> Tensor:
    """A copy of the interior of states (m, points, points - 1): (m, n^2)."""
    rows = states.new_empty(len(states), len(grid.places))
    gather(grid, states.numpy(), EVERY, rows.numpy())
    return rows
