"""Activation functions."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rad import functional
from rad.nn.base import Exact, keeps_now
from rad.packing.bits import packed_bytes


class ReLU(nn.ReLU):
    """`torch.nn.ReLU` that keeps one bit per unit (`rad.functional.relu`). Any shape."""

    def __init__(self, inplace: bool = False, mask: Literal["packed", "output"] = "packed") -> None:
        super().__init__(inplace)
        self.mask: Literal["packed", "output"] = mask

    @property
    def output_kept(self) -> bool:
        """Whether the layer after it keeps the output, from which the mask is then read."""
        return self.mask == "output"

    @output_kept.setter
    def output_kept(self, kept: bool) -> None:
        self.mask = "output" if kept else "packed"

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        packed = self.mask == "packed"
        return "1 bit per unit" if packed else "nothing: the next layer keeps the output"

    def forward(self, input: Tensor) -> Tensor:
        if not keeps_now(self):
            return super().forward(input)
        return functional.relu(input, self.mask, inplace=self.inplace)

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        return packed_bytes(output.numel()) if self.mask == "packed" else exact(output)

    def extra_repr(self) -> str:
        return ", ".join(filter(None, [super().extra_repr(), f"mask={self.mask}"]))
