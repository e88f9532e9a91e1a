"""Convolution layers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from rad import functional
from rad.functional.conv_noise import ConvResponse
from rad.functional.geometry import Geometry, geometry_of, transposed_geometry_of
from rad.functional.noise_response import NoiseResponse
from rad.nn.base import Exact, Sketching
from rad.sketches import Identity, Sketch


class _Convolution(Sketching, _ConvNd):
    """What convolutions, transposed or not, have in common: a sketch of their input.

    Takes the arguments of torch's layer, and `sketch` and `seed`.
    Shapes: (B, C_in, *space) or (C_in, *space) -> the same with C_out and the new space.
    """

    def __init__(
        self, *arguments: Any, sketch: Sketch | None = None, seed: int = 0, **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.set_sketch(sketch or Identity(), seed)

    def geometry(self) -> Geometry:
        """What the layer computes, apart from its tensors."""
        raise NotImplementedError

    def kept_bytes(self, x: Tensor, output: Tensor, exact: Exact) -> int:
        """Bytes that the call `output = self(x)` in training keeps for backward."""
        space = x.shape[-len(self.kernel_size) :]
        rows = (x.shape[: -len(space)].numel(), space.numel())
        return self.kept_of_input(x, rows, output, exact)

    def noise_response(self, x: Tensor, grad_output: Tensor) -> NoiseResponse:
        axes = len(self.kernel_size)
        x, grad_output = (t.unsqueeze(0) if t.dim() == axes + 1 else t for t in (x, grad_output))
        return ConvResponse(x, grad_output, self.weight.detach(), self.geometry())


class _Conv(_Convolution):
    """A convolution that keeps a sketch of its input (`rad.functional.conv`)."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.sketches_now():
            return super().forward(input)
        key, kept = self.key_and_kept(input, self.weight, functional.keep_for_conv)
        return functional.conv(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            padding_mode=self.padding_mode,
            sketch=self.sketch,
            key=key,
            kept=kept,
        )

    def geometry(self) -> Geometry:
        options = (self.stride, self.padding, self.dilation, self.groups)
        return geometry_of(self.weight, *options, self.padding_mode)


class _ConvTranspose(_Convolution, _ConvTransposeNd):
    """A transposed convolution that keeps a sketch of its input."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        if not self.sketches_now():
            return super().forward(input, output_size)
        key, kept = self.key_and_kept(input, self.weight, functional.keep_for_conv)
        output_padding = self._output_padding(
            input,
            output_size,
            self.stride,  # type: ignore[arg-type]
            self.padding,  # type: ignore[arg-type]
            self.kernel_size,  # type: ignore[arg-type]
            len(self.kernel_size),
            self.dilation,  # type: ignore[arg-type]
        )
        return functional.conv_transpose(
            input,
            self.weight,
            self.bias,
            self.stride,
            self.padding,  # type: ignore[arg-type]
            tuple(output_padding),
            self.groups,
            self.dilation,
            sketch=self.sketch,
            key=key,
            kept=kept,
        )

    def geometry(self) -> Geometry:
        reach = (self.stride, self.padding, self.output_padding)
        return transposed_geometry_of(self.weight, *reach, self.groups, self.dilation)  # type: ignore[arg-type]


class Conv1d(_Conv, nn.Conv1d):
    """`torch.nn.Conv1d` that keeps a sketch of its input (`rad.functional.conv`)."""


class Conv2d(_Conv, nn.Conv2d):
    """`torch.nn.Conv2d` that keeps a sketch of its input (`rad.functional.conv`)."""


class Conv3d(_Conv, nn.Conv3d):
    """`torch.nn.Conv3d` that keeps a sketch of its input (`rad.functional.conv`)."""


class ConvTranspose1d(_ConvTranspose, nn.ConvTranspose1d):
    """`torch.nn.ConvTranspose1d` that keeps a sketch of its input
    (`rad.functional.conv_transpose`)."""


class ConvTranspose2d(_ConvTranspose, nn.ConvTranspose2d):
    """`torch.nn.ConvTranspose2d` that keeps a sketch of its input
    (`rad.functional.conv_transpose`)."""


class ConvTranspose3d(_ConvTranspose, nn.ConvTranspose3d):
    """`torch.nn.ConvTranspose3d` that keeps a sketch of its input
    (`rad.functional.conv_transpose`)."""
