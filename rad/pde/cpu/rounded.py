"""States of a chunk rounded, and read back, in one compiled pass: a state at a time, in cache.

What is kept and read is to the bit what `compress_steps` and `decompress_steps` of the sketch keep
and read, of which `rad.sketches.rounding_passes` does the rounding. State first + s has the key
`fold_in(key, first + s)`. Codes and grids lie at addresses (`rad.backends.addresses`).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from rad.draws import loops as compiled
from rad.packing.codes import PLANES, masks
from rad.pde.cpu.grid import Grid
from rad.pde.cpu.points import gather
from rad.sketches import rounding_passes
from rad.sketches.blockwise import Rounding
from rad.sketches.compiled_rounding import LIKE
from rad.sketches.grid import near


class Codes(NamedTuple):
    """The codes of states as the loops take them; steps are the bytes from a state to the next."""

    low: int
    high: int
    low_step: int
    high_step: int


def empty_planes(states: Tensor, bits: int, count: int) -> tuple[Tensor, ...]:
    """Room for `count` codes of each state: tensors (m, groups)."""
    shape = len(states), -(-count // 8)
    return tuple(states.new_empty(shape, dtype=dtype) for dtype in PLANES[bits])


def codes_at(planes: tuple[Tensor, ...]) -> Codes:
    """The addresses of planes (m, groups)."""
    low, high = planes[0], planes[-1]
    steps = (plane.shape[1] * plane.itemsize for plane in (low, high))
    return Codes(low.data_ptr(), high.data_ptr(), *steps)


def round_all(
    rounding: Rounding, grid: Grid, states: Tensor, first: int, key: Tensor
) -> tuple[Tensor, ...]:
    """Planes (m, groups) and grids (m, blocks, 2) of all interior points of states."""
    count = len(grid.places)
    size = rounding.block_size(count)
    planes = empty_planes(states, rounding.bits, count)
    scales = states.new_empty(len(states), -(-count // size), 2)
    limit = near(states.dtype, dithered=rounding.dithered) or 0.0
    _round_all(
        grid, states.numpy(), compiled.key_word(key), first, size, rounding.bits, rounding.steps,
        rounding.zero_code, limit, masks(rounding.bits), *codes_at(planes), scales.data_ptr(),
        *LIKE[states.dtype],
    )  # fmt: skip
    return *planes, scales


def read_all(
    rounding: Rounding, grid: Grid, kept: tuple[Tensor, ...], first: int, key: Tensor
) -> np.ndarray:
    """What `round_all` kept is read as: (m, n^2)."""
    *planes, scales = kept
    x_hat = scales.new_empty(len(scales), len(grid.places)).numpy()
    _read_all(
        compiled.key_word(key), first, rounding.block_size(x_hat.shape[1]), rounding.bits,
        rounding.dithered, rounding.zero_code, masks(rounding.bits), *codes_at(tuple(planes)),
        scales.data_ptr(), x_hat,
    )  # fmt: skip
    return x_hat


@njit(nogil=True)
def _round_all(
    grid: Grid,
    states: np.ndarray,
    key: np.uint64,
    first: int,
    size: int,
    bits: int,
    steps: int,
    zero_code: bool,
    near: float,
    masks: np.ndarray,
    low: int,
    high: int,
    low_step: int,
    high_step: int,
    scales: int,
    zero: np.generic,
    lowest: np.generic,
) -> None:
    count, every = len(grid.places), np.empty((1, 0), np.int32)
    row, own = np.empty((1, count), states.dtype), np.empty(1, np.uint64)
    grids = (count + size - 1) // size * 2 * row.itemsize
    for s in range(len(states)):
        own[0] = compiled.fold_in(key, first + s)
        gather(grid, states[s : s + 1], every, row)
        rounding_passes.compress(
            row.ctypes.data, 1, count, size, own.ctypes.data, 1, 0, bits, steps, zero_code, near,
            masks, low + s * low_step, high + s * high_step, scales + s * grids, False, zero,
            lowest,
        )  # fmt: skip


@njit(nogil=True)
def _read_all(
    key: np.uint64,
    first: int,
    size: int,
    bits: int,
    dithered: bool,
    zero_code: bool,
    masks: np.ndarray,
    low: int,
    high: int,
    low_step: int,
    high_step: int,
    scales: int,
    out: np.ndarray,
) -> None:
    count, own = out.shape[1], np.empty(1, np.uint64)
    grids, zero = (count + size - 1) // size * 2 * out.itemsize, out.dtype.type(0)
    for s in range(len(out)):
        own[0] = compiled.fold_in(key, first + s)
        rounding_passes.decompress(
            low + s * low_step, high + s * high_step, scales + s * grids, 0, 1, count, 0, count, 1,
            0, size, own.ctypes.data, 1, 0, bits, dithered, zero_code, masks, out[s].ctypes.data,
            zero,
        )  # fmt: skip


def round_some(
    rounding: Rounding, count: int, grid: Grid, states: Tensor, first: int, key: Tensor
) -> tuple[Tensor, ...]:
    """Planes (m, groups) of `count` points drawn for each state, and the grid of all: (1, 2).

    Of a state's key, sub-key 0 draws the points, without replacement, and 1 rounds them.
    """
    planes = empty_planes(states, rounding.bits, count)
    shared = rounding.fit(states.view(1, -1))
    limit = near(states.dtype, dithered=rounding.dithered) or 0.0
    _round_some(
        grid, states.numpy(), compiled.key_word(key), first, count, rounding.bits, rounding.steps,
        limit, masks(rounding.bits), *codes_at(planes), shared.data_ptr(), *LIKE[states.dtype],
    )  # fmt: skip
    return *planes, shared


def read_some(
    rounding: Rounding, count: int, grid: Grid, kept: tuple[Tensor, ...], first: int, key: Tensor
) -> tuple[np.ndarray, np.ndarray]:
    """The points that `round_some` drew, int32, and what they are read as: (m, count) each."""
    *planes, shared = kept
    chosen = np.empty((len(planes[0]), count), np.int32)
    values = shared.new_empty(chosen.shape).numpy()
    _read_some(
        compiled.key_word(key), first, len(grid.places), rounding.bits, rounding.dithered,
        masks(rounding.bits), *codes_at(tuple(planes)), shared.data_ptr(), chosen, values,
    )  # fmt: skip
    return chosen, values


@njit(nogil=True)
def _round_some(
    grid: Grid,
    states: np.ndarray,
    key: np.uint64,
    first: int,
    count: int,
    bits: int,
    steps: int,
    near: float,
    masks: np.ndarray,
    low: int,
    high: int,
    low_step: int,
    high_step: int,
    shared: int,
    zero: np.generic,
    lowest: np.generic,
) -> None:
    every = len(grid.places)
    row, own = np.empty((1, count), states.dtype), np.empty(1, np.uint64)
    chosen, marks = np.empty((1, count), np.int32), np.zeros(every, np.bool_)
    for s in range(len(states)):
        of_state = compiled.fold_in(key, first + s)
        own[0] = compiled.fold_in(of_state, 1)
        compiled.distinct_integers(compiled.fold_in(of_state, 0), 0, every, chosen[0], marks)
        gather(grid, states[s : s + 1], chosen, row)
        rounding_passes.compress(
            row.ctypes.data, 1, count, count, own.ctypes.data, 1, 0, bits, steps, False, near,
            masks, low + s * low_step, high + s * high_step, shared, True, zero, lowest,
        )  # fmt: skip


@njit(nogil=True)
def _read_some(
    key: np.uint64,
    first: int,
    every: int,
    bits: int,
    dithered: bool,
    masks: np.ndarray,
    low: int,
    high: int,
    low_step: int,
    high_step: int,
    shared: int,
    chosen: np.ndarray,
    out: np.ndarray,
) -> None:
    count, own = out.shape[1], np.empty(1, np.uint64)
    marks, zero = np.zeros(every, np.bool_), out.dtype.type(0)
    for s in range(len(out)):
        of_state = compiled.fold_in(key, first + s)
        own[0] = compiled.fold_in(of_state, 1)
        compiled.distinct_integers(compiled.fold_in(of_state, 0), 0, every, chosen[s], marks)
        rounding_passes.decompress(
            low + s * low_step, high + s * high_step, shared, 0, 1, count, 0, count, 1, 0, count,
            own.ctypes.data, 1, 0, bits, dithered, False, masks, out[s].ctypes.data, zero,
        )  # fmt: skip
