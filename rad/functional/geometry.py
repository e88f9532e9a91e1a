"""What a convolution is, apart from its tensors."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor

from rad.functional.arguments import Sizes, each

Mask = tuple[bool, bool, bool]


@dataclass(frozen=True)
class Geometry:
    """The options of a convolution of 1, 2 or 3 axes, one integer an axis each."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    pre_padding: tuple[int, ...] = ()
    """What is added before the convolution, as `torch.nn.functional.pad` takes it."""
    padding_mode: str = "constant"
    output_padding: tuple[int, ...] | None = None
    """Of a transposed convolution; None makes it a plain one."""

    @property
    def is_transposed(self) -> bool:
        """Whether each position of the input writes to as many of the output as the kernel has."""
        return self.output_padding is not None

    @property
    def has_unit_steps(self) -> bool:
        """Whether strides and dilations are all 1."""
        return all(step == 1 for step in (*self.stride, *self.dilation))

    @property
    def before(self) -> tuple[int, ...]:
        """What is added before the first position of each axis, in both kinds of padding."""
        lefts = self.pre_padding[::2][::-1] or (0,) * len(self.stride)
        return tuple(a + b for a, b in zip(lefts, self.padding, strict=True))

    def is_pointwise(self, weight: Tensor) -> bool:
        """Whether each output position reads one input position, the same one, as it is in a plain
        convolution."""
        if self.is_transposed:
            return False
        trivial = all(k == 1 for k in weight.shape[2:]) and all(s == 1 for s in self.stride)
        return trivial and not any(self.padding) and not self.pre_padding

    def pad(self, x: Tensor) -> Tensor:
        """x with what is added before the convolution."""
        return F.pad(x, self.pre_padding, self.padding_mode) if self.pre_padding else x

    def unpad(self, grad: Tensor, shape: torch.Size) -> Tensor:
        """The transpose of `pad`: the gradient of an input of that shape, from that of pad(x)."""
        if self.padding_mode == "constant":
            return F.pad(grad, [-width for width in self.pre_padding])
        positions = shape[2:].numel()
        numbers = torch.arange(positions, dtype=torch.float64, device=grad.device)
        read = self.pad(numbers.view(1, 1, *shape[2:])).flatten().to(torch.int64)
        total = grad.new_zeros(*shape[:2], positions)
        return total.index_add_(2, read, grad.flatten(2)).view(shape)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """torch's convolution of x (B, C_in, *space)."""
        if self.output_padding is not None:
            transpose = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[
                len(self.stride) - 1
            ]
            reach = (self.stride, self.padding, self.output_padding)
            return transpose(x, weight, bias, *reach, self.groups, self.dilation)
        convolve = (F.conv1d, F.conv2d, F.conv3d)[len(self.stride) - 1]
        options = (self.stride, self.padding, self.dilation, self.groups)
        return convolve(self.pad(x), weight, bias, *options)

    def backward(
        self, grad_output: Tensor, x: Tensor, weight: Tensor, mask: Mask
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """The gradients of input, weight and bias that the mask asks for.

        x matters to the second only; for the others its shape is enough.
        """
        grads = torch.ops.aten.convolution_backward(
            grad_output,
            self.pad(x),
            weight,
            [grad_output.shape[1]],
            self.stride,
            self.padding,
            self.dilation,
            self.is_transposed,
            self.output_padding or (0,) * len(self.stride),
            self.groups,
            mask,
        )
        grad_input, grad_weight, grad_bias = (
            g if m else None for g, m in zip(grads, mask, strict=True)
        )
        if self.pre_padding and grad_input is not None:
            grad_input = self.unpad(grad_input, x.shape)
        return grad_input, grad_weight, grad_bias

    def differentiable_backward(
        self, grad_output: Tensor, x: Tensor, weight: Tensor, mask: Mask
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """`backward`, of which torch knows the derivative; at the price of a forward pass."""
        dtype = grad_output.dtype
        grad_bias = grad_output.flatten(2).sum((0, 2)) if mask[2] else None
        wanted = [tensor for tensor, m in zip((x, weight), mask[:2], strict=True) if m]
        if not wanted:
            return None, None, grad_bias
        output = self.forward(x.to(dtype), weight.to(dtype), None)
        found = iter(torch.autograd.grad(output, wanted, grad_output, create_graph=True))
        grad_input, grad_weight = (next(found) if m else None for m in mask[:2])
        return grad_input, grad_weight, grad_bias


def geometry_of(
    weight: Tensor,
    stride: Sizes,
    padding: Sizes | str,
    dilation: Sizes,
    groups: int,
    padding_mode: str,
) -> Geometry:
    """The geometry of torch's arguments. Raises ValueError for padding "same" with a stride."""
    axes = weight.dim() - 2
    strides, dilations = each(stride, axes), each(dilation, axes)
    if padding == "same":
        if any(s != 1 for s in strides):
            raise ValueError("padding='same' is not supported for strided convolutions")
        reach = [d * (k - 1) for d, k in zip(dilations, weight.shape[2:], strict=True)]
        sides = [(r // 2, r - r // 2) for r in reach]
    else:
        sides = [(p, p) for p in each(0 if padding == "valid" else padding, axes)]  # type: ignore[arg-type]
    around = tuple(chain.from_iterable(reversed(sides)))
    zeros = (0,) * axes
    if padding_mode != "zeros":
        return Geometry(strides, zeros, dilations, groups, around, padding_mode)
    if any(left != right for left, right in sides):
        return Geometry(strides, zeros, dilations, groups, around)
    return Geometry(strides, tuple(left for left, _ in sides), dilations, groups)


def transposed_geometry_of(
    weight: Tensor,
    stride: Sizes,
    padding: Sizes,
    output_padding: Sizes,
    groups: int,
    dilation: Sizes,
) -> Geometry:
    """The geometry of torch's arguments of a transposed convolution."""
    axes = weight.dim() - 2
    strides, paddings, dilations = (each(size, axes) for size in (stride, padding, dilation))
    after = each(output_padding, axes)
    return Geometry(strides, paddings, dilations, groups, output_padding=after)
