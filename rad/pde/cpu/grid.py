"""A problem as the compiled loops know it.

A state lies in memory as (points, points - 1): row i is x = i dx, column j is
y = (j + 1) dx. The zero column that ends a row is the boundary after its last interior
point and before the first of the next row, so that a row is one run without edges.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from rad.pde.fourier import modes
from rad.pde.problem import ReactionDiffusion


class Grid(NamedTuple):
    """What the loops know of a problem."""

    initial: np.ndarray  # (points, points - 1), of the states' dtype, as is swing
    swing: np.ndarray
    places: np.ndarray  # (n^2,) int32: where the interior points lie in a flat state
    rows: np.ndarray  # (n^2,) int32: and in which row
    space: np.ndarray  # (S, points) float64: the modes of x of each row
    rate: float  # D dt / dx^2
    dt: float
    loss_scale: float  # dt / points^2


@lru_cache(maxsize=8)
def lay_out(problem: ReactionDiffusion) -> Grid:
    """The grid of a problem."""
    points, inner = problem.points, problem.inner
    initial = np.zeros((points, points - 1), str(problem.dtype).removeprefix("torch."))
    swing, inside = np.zeros_like(initial), np.zeros(initial.shape, np.bool_)
    initial[1:-1, :-1], swing[1:-1, :-1] = problem.initial(), problem.swing()
    inside[1:-1, :-1] = True
    space = np.zeros((problem.series.shape[0], points))
    space[:, 1:-1] = modes(2 * math.pi * problem.interior_axis(), len(space)).T
    return Grid(
        initial=initial,
        swing=swing,
        places=np.flatnonzero(inside).astype(np.int32),
        rows=np.repeat(np.arange(1, points - 1, dtype=np.int32), inner),
        space=space,
        rate=problem.rate,
        dt=problem.dt,
        loss_scale=problem.dt / points**2,
    )
