"""The compiled loops over the steps of one simulation."""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from rad.pde.cpu.grid import Grid
from rad.pde.cpu.points import (
    FAST,
    add_loss_gradient,
    add_residual_gradient,
    add_target_products,
    row_products,
)


@njit(inline="always")
def _diagonal(
    grid: Grid, coefficients: np.ndarray, step: int, time: np.ndarray, out: np.ndarray
) -> None:
    """The modes of time into `time` (Q,); 1 - 4 rate + dt C for each row, into out (points,)."""
    for n in range(len(time)):
        angle = math.pi * (step * grid.dt) * ((n + 1) // 2)
        time[n] = math.sin(angle) if n % 2 else math.cos(angle)
    for row in range(len(out)):
        out[row] = 1 - 4 * grid.rate
    for m in range(len(coefficients)):
        control = 0.0
        for n in range(len(time)):
            control += coefficients[m, n] * time[n]
        for row in range(len(out)):
            out[row] += grid.dt * control * grid.space[m, row]


@njit(inline="always")
def _step(old: np.ndarray, width: int, diagonal: np.ndarray, rate: float, new: np.ndarray) -> None:
    """One Euler step, and as well its transpose: the five-point Laplacian is symmetric.

    Flat states; a row runs on into the boundary column, which is then set back to zero.
    Unsigned indices keep the loop free of checks for negative ones.
    """
    size, one = np.uint64(width), np.uint64(1)
    for row in range(1, len(diagonal) - 1):
        centre = new.dtype.type(diagonal[row])
        start = np.uint64(row) * size
        for i in range(start, start + size):
            around = (old[i - size] + old[i + size]) + (old[i - one] + old[i + one])
            new[i] = centre * old[i] + rate * around
        new[start + size - one] = 0


@njit(inline="always")
def _squared_distance(
    state: np.ndarray, width: int, initial: np.ndarray, swing: np.ndarray, sine: float
) -> float:
    """Sum over a flat state of its squared distance to the target."""
    size = np.uint64(width)
    total = 0.0
    for row in range(1, len(state) // width - 1):
        of_row = state.dtype.type(0)
        start = np.uint64(row) * size
        for i in range(start, start + size):
            off = state[i] - (initial[i] + sine * swing[i])
            of_row += off * off
        total += of_row
    return total


@njit(nogil=True, fastmath=FAST)
def sweep(grid: Grid, coefficients: np.ndarray, first: int, states: np.ndarray) -> float:
    """Fill states[1:] from states[0], the state after `first` steps; return their loss.

    Shapes: states (m + 1, points, points - 1); coefficients (S, Q) float64.
    """
    points, width = states.shape[1:]
    rate = states.dtype.type(grid.rate)
    initial, swing = grid.initial.reshape(-1), grid.swing.reshape(-1)
    diagonal, time = np.empty(points), np.empty(coefficients.shape[1])
    loss = 0.0
    for s in range(len(states) - 1):
        _diagonal(grid, coefficients, first + s, time, diagonal)
        old, new = states[s].reshape(-1), states[s + 1].reshape(-1)
        _step(old, width, diagonal, rate, new)
        sine = states.dtype.type(math.sin(math.pi * ((first + s + 1) * grid.dt)))
        loss += _squared_distance(new, width, initial, swing, sine)
    return loss * grid.loss_scale


@njit(nogil=True, fastmath=FAST)
def sweep_back(
    grid: Grid,
    coefficients: np.ndarray,
    first: int,
    points: np.ndarray,
    values: np.ndarray,
    weight: float,
    residual: bool,
    adjoint: np.ndarray,
    gradient: np.ndarray,
) -> None:
    """The adjoint of m steps, given an estimate of each state that a step starts from.

    State first + s, or with `residual` its difference from the target, is estimated by `weight`
    times values[s] at points[s], added up, and 0 elsewhere; the loss is differentiated there.
    `adjoint`, dL/dphi after the m steps, becomes that before them; `gradient` grows by dL/d
    coefficients. Shapes: values (m, k); points (m, k), or (1, 0) for all; gradient (S, Q) float64.
    """
    width = adjoint.shape[1]
    rate = adjoint.dtype.type(grid.rate)
    diagonal, time = np.empty(len(adjoint)), np.empty(coefficients.shape[1])
    sums = np.empty(len(adjoint))
    here, there = adjoint.reshape(-1), np.zeros(adjoint.size, adjoint.dtype)
    for s in range(len(values) - 1, -1, -1):
        chosen, kept = points[s % len(points)], values[s]
        _diagonal(grid, coefficients, first + s, time, diagonal)
        row_products(grid, chosen, kept, here, sums)
        if residual:
            add_target_products(grid, first + s, 1 / weight, here, sums)
        for m in range(len(gradient)):
            total = 0.0
            for row in range(len(sums)):
                total += grid.space[m, row] * sums[row]
            for n in range(len(time)):
                gradient[m, n] += grid.dt * weight * total * time[n]
        _step(here, width, diagonal, rate, there)
        if first + s > 0 and residual:
            add_residual_gradient(grid, chosen, kept, weight, there)
        elif first + s > 0:
            add_loss_gradient(grid, first + s, chosen, kept, weight, there)
        here, there = there, here
    if len(values) % 2:
        for i in range(len(here)):
            there[i] = here[i]
