"""Compiled access to states at some of their interior points, or at all of them.

Points are given by their number among the n^2 interior ones, row by row. An empty list of
points stands for all of them in order, which needs no look-up. Unsigned indices keep those
loops free of checks for negative ones.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from rad.pde.cpu.grid import Grid

# Sums may be reordered, products fused and signs of zeros lost; NaN and infinity stay as they are.
FAST = {"reassoc", "contract", "nsz"}

EVERY = np.empty((1, 0), np.int32)
"""All interior points in order."""


@njit(nogil=True)
def gather(grid: Grid, states: np.ndarray, points: np.ndarray, out: np.ndarray) -> None:
    """The values of each state at its points, into out (m, k).

    Shapes: states (m, points, points - 1); points (m, k), or (1, 0) for all, k = n^2.
    """
    rows, width = states.shape[1:]
    inner = width - 1
    for s in range(len(states)):
        flat, chosen = states[s].reshape(-1), points[s % len(points)]
        for slot in range(len(chosen)):
            out[s, slot] = flat[grid.places[chosen[slot]]]
        if not len(chosen):
            for row in range(1, rows - 1):
                start, place = np.uint64((row - 1) * inner), np.uint64(row * width)
                for j in range(np.uint64(inner)):
                    out[s, start + j] = flat[place + j]


@njit(nogil=True, fastmath=FAST)
def add_loss_gradient(
    grid: Grid,
    step: int,
    points: np.ndarray,
    values: np.ndarray,
    weight: float,
    adjoint: np.ndarray,
) -> None:
    """Add to a flat adjoint `weight` times the derivative of the loss of one state.

    Only at `points` (k,), where the state has `values` (k,), or at all.
    """
    rows, width = grid.initial.shape
    inner = width - 1
    initial, swing = grid.initial.reshape(-1), grid.swing.reshape(-1)
    sine = adjoint.dtype.type(math.sin(math.pi * (step * grid.dt)))
    scale = adjoint.dtype.type(2 * grid.loss_scale * weight)
    for slot in range(len(points)):
        i = grid.places[points[slot]]
        adjoint[i] += scale * (values[slot] - (initial[i] + sine * swing[i]))
    if not len(points):
        for row in range(1, rows - 1):
            start, place = np.uint64((row - 1) * inner), np.uint64(row * width)
            for j in range(np.uint64(inner)):
                off = values[start + j] - (initial[place + j] + sine * swing[place + j])
                adjoint[place + j] += scale * off


@njit(nogil=True, fastmath=FAST)
def add_residual_gradient(
    grid: Grid, points: np.ndarray, values: np.ndarray, weight: float, adjoint: np.ndarray
) -> None:
    """`add_loss_gradient` where `values` are those of the state minus the target."""
    rows, width = grid.initial.shape
    inner = width - 1
    scale = adjoint.dtype.type(2 * grid.loss_scale * weight)
    for slot in range(len(points)):
        adjoint[grid.places[points[slot]]] += scale * values[slot]
    if not len(points):
        for row in range(1, rows - 1):
            start, place = np.uint64((row - 1) * inner), np.uint64(row * width)
            for j in range(np.uint64(inner)):
                adjoint[place + j] += scale * values[start + j]


@njit(nogil=True, fastmath=FAST)
def add_target(grid: Grid, first: int, sign: float, states: np.ndarray) -> None:
    """Add `sign` times the target to states (m, points, points - 1) after `first`, ... steps."""
    initial, swing = grid.initial.reshape(-1), grid.swing.reshape(-1)
    factor = states.dtype.type(sign)
    for s in range(len(states)):
        flat = states[s].reshape(-1)
        sine = states.dtype.type(math.sin(math.pi * ((first + s) * grid.dt)))
        for i in range(len(flat)):
            flat[i] += factor * (initial[i] + sine * swing[i])


@njit(nogil=True, fastmath=FAST)
def add_target_products(
    grid: Grid, step: int, factor: float, adjoint: np.ndarray, out: np.ndarray
) -> None:
    """Add to each row `factor` times the sum over its points of adjoint times target: (rows,)."""
    rows, width = grid.initial.shape
    size = np.uint64(width)
    initial, swing = grid.initial.reshape(-1), grid.swing.reshape(-1)
    sine = adjoint.dtype.type(math.sin(math.pi * (step * grid.dt)))
    for row in range(1, rows - 1):
        total = adjoint.dtype.type(0)
        start = np.uint64(row) * size
        for i in range(start, start + size):
            total += adjoint[i] * (initial[i] + sine * swing[i])
        out[row] += factor * total


@njit(nogil=True, fastmath=FAST)
def row_products(
    grid: Grid, points: np.ndarray, values: np.ndarray, adjoint: np.ndarray, out: np.ndarray
) -> None:
    """For each row, the sum over its `points`, or over all, of adjoint times value: (rows,).

    The adjoint is flat; values (k,).
    """
    rows, width = grid.initial.shape
    inner = width - 1
    for row in range(rows):
        out[row] = 0
    for slot in range(len(points)):
        out[grid.rows[points[slot]]] += values[slot] * adjoint[grid.places[points[slot]]]
    if not len(points):
        for row in range(1, rows - 1):
            total = adjoint.dtype.type(0)
            start, place = np.uint64((row - 1) * inner), np.uint64(row * width)
            for j in range(np.uint64(inner)):
                total += values[start + j] * adjoint[place + j]
            out[row] = total
