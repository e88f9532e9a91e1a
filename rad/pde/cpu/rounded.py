"""States of a chunk rounded, and read back, in one compiled pass: a state at a time, in cache.

Either all interior points of each state are rounded, with grids of its own, or some of them, drawn
without replacement, on one grid for all states of the chunk. What is kept and read is to the bit
what the sketch's torch operators keep and read; `rad.sketches.rounding_passes` does the rounding.
State first + s has the key `fold_in(key, first + s)`; where points are drawn, its sub-key 0 draws
them, and 1 rounds them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from torch import Tensor

from rad.draws import loops as compiled
from rad.packing.codes import PLANES, masks
from rad.pde.cpu.grid import Grid
from rad.pde.cpu.points import EVERY, gather
from rad.sketches import rounding_passes
from rad.sketches.blockwise import Rounding
from rad.sketches.compiled_rounding import LIKE
from rad.sketches.grid import near


class _Rules(NamedTuple):
    """How each state is rounded: fields of `Rounding`, and what the passes derive from them."""

    size: int  # numbers of a block
    bits: int
    steps: int
    dithered: bool
    zero_code: bool
    near: float
    masks: np.ndarray


class _Places(NamedTuple):
    """Addresses of what is kept of the first state; steps are the bytes from a state to the next.

    Grids are `given`, not written, where all states share one.
    """

    low: int
    high: int
    scales: int
    low_step: int
    high_step: int
    scales_step: int
    given: bool


def round_states(
    rounding: Rounding, drawn: int | None, grid: Grid, states: Tensor, first: int, key: Tensor
) -> tuple[Tensor, ...]:
    """Planes (m, groups) of codes, and grids: (m, blocks, 2) of all points, (1, 2) of `drawn`.

    Shapes: states (m, points, points - 1), of which all n^2 interior points are rounded, or as
    many as `drawn`.
    """
    count = drawn or len(grid.places)
    groups = -(-count // 8)
    planes = [states.new_empty(len(states), groups, dtype=of) for of in PLANES[rounding.bits]]
    if drawn is None:
        blocks = -(-count // rounding.block_size(count))
        scales = states.new_empty(len(states), blocks, 2)
    else:
        scales = rounding.fit(states.view(1, -1))
    kept = (*planes, scales)
    _round(
        grid, states.numpy(), compiled.key_word(key), first, _points(drawn, 1),
        *_given(rounding, drawn, count, kept), *LIKE[states.dtype],
    )  # fmt: skip
    return kept


def read_states(
    rounding: Rounding,
    drawn: int | None,
    grid: Grid,
    kept: tuple[Tensor, ...],
    first: int,
    key: Tensor,
) -> tuple[np.ndarray, np.ndarray]:
    """The points (m, k) int32 that `round_states` rounded, or EVERY, and what they are read as."""
    m, scales = len(kept[0]), kept[-1]
    count = drawn or len(grid.places)
    points, values = _points(drawn, m), scales.new_empty(m, count).numpy()
    _read(
        len(grid.places), compiled.key_word(key), first, points,
        *_given(rounding, drawn, count, kept), values,
    )  # fmt: skip
    return points, values


def _points(drawn: int | None, states: int) -> np.ndarray:
    """Room for the points of so many states, or EVERY."""
    return EVERY if drawn is None else np.empty((states, drawn), np.int32)


def _given(
    rounding: Rounding, drawn: int | None, count: int, kept: tuple[Tensor, ...]
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The fields of `_Rules` and `_Places`: numba takes plain tuples ten times faster."""
    limit = near(kept[-1].dtype, dithered=rounding.dithered) or 0.0
    rules = _Rules(
        size=count if drawn else rounding.block_size(count),
        bits=rounding.bits,
        steps=rounding.steps,
        dithered=rounding.dithered,
        zero_code=rounding.zero_code,
        near=limit,
        masks=masks(rounding.bits),
    )
    tensors = (kept[0], kept[-2], kept[-1])  # planes of one or two tensors, and grids
    low_step, high_step, scales_step = (part[0].numel() * part.itemsize for part in tensors)
    low, high, scales = (part.data_ptr() for part in tensors)
    own = 0 if drawn else scales_step
    places = _Places(low, high, scales, low_step, high_step, own, given=bool(drawn))
    return tuple(rules), tuple(places)


@njit(nogil=True)
def _round(
    grid: Grid,
    states: np.ndarray,
    key: np.uint64,
    first: int,
    points: np.ndarray,
    rule_fields: tuple[Any, ...],
    place_fields: tuple[Any, ...],
    zero: np.generic,
    lowest: np.generic,
) -> None:
    rules, places = _Rules(*rule_fields), _Places(*place_fields)
    every, drawn = len(grid.places), points.shape[1]
    count = drawn if drawn else every
    row, own = np.empty((1, count), states.dtype), np.empty(1, np.uint64)
    marks = np.zeros(every, np.bool_)
    for s in range(len(states)):
        own[0] = compiled.fold_in(key, first + s)
        if drawn:
            compiled.distinct_integers(compiled.fold_in(own[0], 0), 0, every, points[0], marks)
            own[0] = compiled.fold_in(own[0], 1)
        gather(grid, states[s : s + 1], points, row)
        rounding_passes.compress(
            row.ctypes.data, 1, count, rules.size, own.ctypes.data, 1, 0, rules.bits, rules.steps,
            rules.zero_code, rules.near, rules.masks, places.low + s * places.low_step,
            places.high + s * places.high_step, places.scales + s * places.scales_step,
            places.given, zero, lowest,
        )  # fmt: skip


@njit(nogil=True)
def _read(
    every: int,
    key: np.uint64,
    first: int,
    points: np.ndarray,
    rule_fields: tuple[Any, ...],
    place_fields: tuple[Any, ...],
    out: np.ndarray,
) -> None:
    rules, places = _Rules(*rule_fields), _Places(*place_fields)
    drawn, count, zero = points.shape[1], out.shape[1], out.dtype.type(0)
    own, marks = np.empty(1, np.uint64), np.zeros(every, np.bool_)
    for s in range(len(out)):
        own[0] = compiled.fold_in(key, first + s)
        if drawn:
            compiled.distinct_integers(compiled.fold_in(own[0], 0), 0, every, points[s], marks)
            own[0] = compiled.fold_in(own[0], 1)
        rounding_passes.decompress(
            places.low + s * places.low_step, places.high + s * places.high_step,
            places.scales + s * places.scales_step, 0, 1, count, 0, count, 1, 0, rules.size,
            own.ctypes.data, 1, 0, rules.bits, rules.dithered, rules.zero_code, rules.masks,
            out[s].ctypes.data, zero,
        )  # fmt: skip
