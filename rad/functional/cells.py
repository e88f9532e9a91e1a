"""What distinguishes one gated recurrent layer from another: the equations of its cell."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor

PRODUCTS = 4
"""Blocks of H numbers that the products of a step with input and state fill."""


class Cell(ABC):
    """The equations of a gated layer of H units, in chunks of n steps with B examples each.

    Each step has a *work* of `blocks` blocks of H numbers for each example. Into the first
    PRODUCTS of them go biased products of input and state; the cell replaces them by what they
    make. `input_blocks` are those that the input is multiplied into, in torch's order
    `input_order`: block `input_blocks[i]` is torch's number `input_order[i]`. Likewise for the
    state.

    Shapes: work (n, B, blocks * H); h and c, states and cells before the first step and after each,
    (n + 1, B, H); factors (n, factor_count, B, H).
    """

    blocks: ClassVar[int]
    input_blocks: ClassVar[range]
    input_order: ClassVar[tuple[int, ...]]
    state_blocks: ClassVar[range]
    state_order: ClassVar[tuple[int, ...]]
    factor_count: ClassVar[int]
    has_cells: ClassVar[bool]
    """Whether there are cells c_t beside the states h_t; else c is None."""

    @abstractmethod
    def advance(self, work: Tensor, h: Tensor, c: Tensor | None, w_hh: Tensor) -> None:
        """Take the steps: from h[0], c[0] and products of the input in `work` to all the rest.

        w_hh (H, m): what states are multiplied by.
        """

    @abstractmethod
    def again(self, work: Tensor, h_before: Tensor, c: Tensor | None, w_hh: Tensor) -> None:
        """The same where all states before the steps are known: h_before (n, B, H)."""

    @abstractmethod
    def factors(self, work: Tensor, h_before: Tensor, c: Tensor | None, out: Tensor) -> None:
        """What gradients are multiplied by on their way back, from the work of steps taken."""

    @abstractmethod
    def sweep(
        self,
        factors: Tensor,
        delta: Tensor,
        grad_h: Tensor,
        grad_c: Tensor | None,
        outer: list[Tensor | None],
        w_hh: Tensor,
    ) -> None:
        """Take the steps back: into `delta` (n, B, PRODUCTS * H) go gradients by the products.

        `grad_h` and `grad_c` (B, H), by h[n] and c[n], become those by h[0] and c[0]. `outer[t]` is
        what is added to the gradient by h[t] from outside the layer; w_hh (m, H). `factors` may be
        overwritten.
        """
