"""What a gated recurrent layer keeps: sizes and bytes, and how it is read back."""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from rad.draws.dispatch import fold_in, step_keys
from rad.dtypes import accumulation_dtype
from rad.functional.cells import PRODUCTS, Cell
from rad.functional.gated_weights import Weights
from rad.sketches.base import Sketch
from rad.sketches.blockwise import Rounding
from rad.sketches.identity import Identity

CHUNK_BYTES = 1 << 21
"""Size of the buffer that holds the products of a chunk of steps; some four are held at a time."""

STATES, INPUTS, FACTORS = range(3)
"""The sub-keys of what is rounded."""


class Plan(NamedTuple):
    """Sizes, and which of factors, states and input is kept how. No tensors."""

    cell: Cell
    steps: int
    batch: int
    features: int
    hidden: int
    dtype: torch.dtype  # of states and sketches
    sketch: Sketch

    @property
    def rounds(self) -> bool:
        """Whether factors, states and input are rounded; else states and input are kept exactly."""
        return isinstance(self.sketch, Rounding)

    @property
    def input_sketch(self) -> Sketch | None:
        """That of the input of a step; None where it is kept as it is, at no more bytes."""
        shape = self.batch, self.features
        exact = Identity().nbytes(shape, self.dtype)
        less = self.rounds and self.sketch.nbytes(shape, self.dtype) < exact
        return self.sketch if less else None

    @property
    def factor_shape(self) -> tuple[int, int]:
        """The factors of a step, as rows: the examples, factor after factor."""
        return self.cell.factor_count * self.batch, self.hidden

    def chunks(self) -> list[range]:
        """The steps, in chunks."""
        step_bytes = max(1, self.batch * PRODUCTS * self.hidden * self.dtype.itemsize)
        size = max(1, CHUNK_BYTES // step_bytes)
        return [range(t, min(t + size, self.steps)) for t in range(0, self.steps, size)]

    def keeps_input(self, trains_input: bool = True) -> bool:
        """Whether the input is kept as it is, `trains_input` being whether its weight is."""
        return not self.rounds or (trains_input and self.input_sketch is None)

    def nbytes(self, trains_input: bool = True, trains_state: bool = True) -> int:
        """What is kept but for the key and an exact input, by which weights are trained."""
        state, dtype = (self.batch, self.hidden), self.dtype
        if not self.rounds:
            borders = len(self.chunks()) if self.cell.has_cells else 0
            return (self.steps + 1 + borders) * Identity().nbytes(state, dtype)
        each = self.sketch.nbytes(self.factor_shape, dtype)
        if trains_state:
            each += self.sketch.nbytes(state, dtype)
        if trains_input and self.input_sketch:
            each += self.input_sketch.nbytes((self.batch, self.features), dtype)
        return self.steps * each


def frugal(plan: Plan) -> Plan:
    """The plan, or the exact one where that keeps no more."""
    exact = plan._replace(sketch=Identity())
    whole = Identity().nbytes((plan.steps, plan.batch, plan.features), plan.dtype)
    rounded = plan.nbytes() + whole * plan.keeps_input()
    return exact if exact.nbytes() + whole <= rounded else plan


class Room:
    """Where a chunk of steps is worked on: work, states, cells and factors (`Cell`)."""

    def __init__(self, plan: Plan, like: Tensor) -> None:
        size, cell = len(plan.chunks()[0]), plan.cell
        self.work = like.new_empty(size, plan.batch, cell.blocks * plan.hidden, dtype=plan.dtype)
        self.states = self.work.new_empty(size + 1, plan.batch, plan.hidden)
        self.cells = torch.empty_like(self.states) if cell.has_cells else None
        self._plan = plan

    def new_factors(self) -> Tensor:
        """Room for the factors of a chunk."""
        size, plan = len(self.work), self._plan
        return self.work.new_empty(size, plan.cell.factor_count, plan.batch, plan.hidden)


class Reader:
    """Reads what was kept, chunk by chunk."""

    def __init__(
        self,
        plan: Plan,
        kept: list[Tensor],
        counts: list[int],
        key: Tensor | None,
        weights: Weights | None,
    ) -> None:
        parts = iter(kept)
        self._factors, self._states, self._inputs = (tuple(islice(parts, n)) for n in counts)
        self._plan, self._weights = plan, weights
        self._wide = accumulation_dtype(plan.dtype)
        if key is not None:
            places = STATES, INPUTS, FACTORS
            self._keys = [step_keys(fold_in(key, place), plan.steps) for place in places]
        else:
            self._room = Room(plan, kept[0])
            self._room_for_factors = self._room.new_factors()

    def factors(self, number: int, steps: range) -> Tensor:
        """Those of the steps of a chunk: (n, factor_count, B, H), float32 at least."""
        plan, here, n = self._plan, slice(steps.start, steps.stop), len(steps)
        shape = n, plan.cell.factor_count, plan.batch, plan.hidden
        if self._weights is None:
            kept, keys = tuple(part[here] for part in self._factors), self._keys[FACTORS][here]
            rows = (n, *plan.factor_shape)
            return plan.sketch.decompress_steps(kept, rows, self._wide, keys).view(shape)
        work, factors = self._room.work[:n], self._room_for_factors[:n]
        cells = None if self._room.cells is None else self._room.cells[: n + 1]
        if cells is not None:
            cells[0] = self._factors[0][number]
        before = self._states_before(steps)
        self._weights.multiply(self._inputs[0][here], work)
        plan.cell.again(work, before, cells, self._weights.hh.t())
        plan.cell.factors(work, before, cells, factors)
        return factors.to(self._wide)

    def state_product(self, delta: Tensor, steps: range) -> Tensor:
        """sum_t h_{t-1}^T delta_t: (H, m)."""
        if not self._plan.rounds:
            return _product(self._states_before(steps), delta)
        return self._read_product(STATES, self._plan.sketch, delta, steps)

    def input_product(self, delta: Tensor, steps: range) -> Tensor:
        """sum_t x_t^T delta_t: (I, m)."""
        sketch = self._plan.input_sketch
        if sketch is None:
            return _product(self._inputs[0][steps.start : steps.stop], delta)
        return self._read_product(INPUTS, sketch, delta, steps)

    def _read_product(self, place: int, sketch: Sketch, delta: Tensor, steps: range) -> Tensor:
        here, states = slice(steps.start, steps.stop), place == STATES
        kept = tuple(part[here] for part in (self._states if states else self._inputs))
        width = self._plan.hidden if states else self._plan.features
        shape = (*delta.shape[:2], width)
        return sketch.contract_steps(delta, kept, shape, self._keys[place][here])

    def _states_before(self, steps: range) -> Tensor:
        """h_{t-1} for those steps, where the states are kept."""
        first, sequence = self._states
        if steps.start:
            return sequence[steps.start - 1 : steps.stop - 1]
        return torch.cat([first[None], sequence[: steps.stop - 1]])


def _product(x: Tensor, delta: Tensor) -> Tensor:
    return x.to(delta.dtype).flatten(0, 1).t() @ delta.flatten(0, 1)
