"""The weights of a gated recurrent layer in the order of its cell's blocks."""

from __future__ import annotations

import torch
from torch import Tensor

from rad.functional.cells import PRODUCTS, Cell


class Weights:
    """Weights and biases as a cell's blocks have them, of one type, and products of the input.

    Shapes: weight_ih (m, I), weight_hh (m, H) and biases (m,), in torch's order, -> `ih`, `hh` and
    `bias` (PRODUCTS * H,), the sum of both.
    """

    def __init__(
        self,
        cell: Cell,
        weight_ih: Tensor,
        weight_hh: Tensor,
        biases: tuple[Tensor | None, Tensor | None],
        dtype: torch.dtype,
    ) -> None:
        units = weight_hh.shape[1]
        self._of_input = columns(cell.input_blocks, units)
        self.ih = ordered(weight_ih.to(dtype), cell.input_order)
        self.hh = ordered(weight_hh.to(dtype), cell.state_order)
        self.bias = self.hh.new_zeros(PRODUCTS * units)
        places = (cell.input_blocks, cell.input_order), (cell.state_blocks, cell.state_order)
        for bias, (blocks, order) in zip(biases, places, strict=True):
            if bias is not None:
                self.bias[columns(blocks, units)] += ordered(bias.to(dtype), order)

    def multiply(self, x: Tensor, work: Tensor) -> None:
        """The input's biased products into `work` (n, B, ...), biases alone into other blocks."""
        here, end = self._of_input, len(self.bias)
        rows = work.flatten(0, 1)
        torch.addmm(self.bias[here], x.flatten(0, 1), self.ih.t(), out=rows[:, here])
        if here.stop < end:
            rows[:, here.stop : end] = self.bias[here.stop :]


def columns(blocks: range, units: int) -> slice:
    """Where those blocks lie in a row of blocks of so many units."""
    return slice(blocks.start * units, blocks.stop * units)


def ordered(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """The blocks along the first axis, in that order."""
    if order == tuple(range(len(order))):
        return weight
    blocks = weight.chunk(len(order))
    return torch.cat([blocks[i] for i in order])


def restored(weight: Tensor, order: tuple[int, ...]) -> Tensor:
    """The inverse of `ordered`."""
    return ordered(weight, tuple(order.index(i) for i in range(len(order))))
