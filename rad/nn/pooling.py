"""Pooling layers. Shapes: (B, C, *space) or (C, *space) -> the same with pooled space."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from rad import functional
from rad.functional.arguments import each
from rad.functional.pooling import offset_bits
from rad.functional.relu_pool import BITS
from rad.nn.base import TORCHS, Exact, keeps_now
from rad.packing.bits import packed_bytes


class _ShapeOnly(nn.Module):
    keeps = "the shape of its input"

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        return 0


class AvgPool1d(_ShapeOnly, nn.AvgPool1d):
    """`torch.nn.AvgPool1d` that keeps the shape of its input only."""

    def forward(self, input: Tensor) -> Tensor:
        if not keeps_now(self):
            return super().forward(input)
        options = (self.kernel_size, self.stride, self.padding)
        return functional.avg_pool(input, 1, *options, self.ceil_mode, self.count_include_pad)


class AvgPool2d(_ShapeOnly, nn.AvgPool2d):
    """`torch.nn.AvgPool2d` that keeps the shape of its input only."""

    def forward(self, input: Tensor) -> Tensor:
        if not keeps_now(self):
            return super().forward(input)
        options = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return functional.avg_pool(
            input, 2, *options, self.count_include_pad, self.divisor_override
        )


class AvgPool3d(_ShapeOnly, nn.AvgPool3d):
    """`torch.nn.AvgPool3d` that keeps the shape of its input only."""

    def forward(self, input: Tensor) -> Tensor:
        if not keeps_now(self):
            return super().forward(input)
        options = (self.kernel_size, self.stride, self.padding, self.ceil_mode)
        return functional.avg_pool(
            input, 3, *options, self.count_include_pad, self.divisor_override
        )


class AdaptiveAvgPool2d(_ShapeOnly, nn.AdaptiveAvgPool2d):
    """`torch.nn.AdaptiveAvgPool2d` that keeps the shape of its input only."""

    def forward(self, input: Tensor) -> Tensor:
        if not keeps_now(self):
            return super().forward(input)
        return functional.adaptive_avg_pool2d(input, self.output_size)  # type: ignore[arg-type]


class _MaxPool(nn.Module):
    axes: int

    @property
    def bits(self) -> int:
        """Bits kept for each output: where in its window the largest element is."""
        return offset_bits(each(self.kernel_size, self.axes))  # type: ignore[arg-type]

    @property
    def keeps(self) -> str:
        """What is kept for backward, in words."""
        return TORCHS if self.return_indices else f"{self.bits} bits per output"

    def forward(self, input: Tensor) -> Tensor:
        if self.return_indices or not keeps_now(self):
            exact: Tensor = super().forward(input)
            return exact
        options = (self.kernel_size, self.stride, self.padding, self.dilation, self.ceil_mode)
        return functional.max_pool(input, self.axes, *options)  # type: ignore[arg-type]

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        if self.return_indices:
            return 0  # it is torch's layer then, and what that keeps is beyond RAD's account
        return packed_bytes(output.numel() * self.bits)


class MaxPool1d(_MaxPool, nn.MaxPool1d):
    """`torch.nn.MaxPool1d` that keeps window offsets (`rad.functional.max_pool`)."""

    axes = 1


class MaxPool2d(_MaxPool, nn.MaxPool2d):
    """`torch.nn.MaxPool2d` that keeps window offsets (`rad.functional.max_pool`)."""

    axes = 2


class MaxPool3d(_MaxPool, nn.MaxPool3d):
    """`torch.nn.MaxPool3d` that keeps window offsets (`rad.functional.max_pool`)."""

    axes = 3


class ReLUAvgPool2d(nn.Module):
    """ReLU and average pooling of 2 x 2 in one pass, for models of one's own
    (`rad.functional.relu_avg_pool2d`). torch has no such layer, and `rad.convert` puts it
    nowhere: hooks of a ReLU layer see its output."""

    keeps = "4 bits per output"

    def forward(self, input: Tensor) -> Tensor:
        if not keeps_now(self):
            return F.avg_pool2d(F.relu(input), 2)
        return functional.relu_avg_pool2d(input)

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        return packed_bytes(output.numel() * BITS)
