"""Convolution, transposed or not, whose backward pass remembers a sketch of the input.

Kept between forward and backward: the sketch of the input, its key, and the weight.
Not kept: the input. The input (B, C, *space) is sketched as B C rows of positions
(paper, section 4; the authors' code does the same): sampling keeps positions,
projection mixes them. Padding is linear in the input, so that every padding mode
stays unbiased. The gradients of input and bias are exact.

Where few positions are kept, the weight's gradient comes from these alone
(`rad.functional.conv_weight`). Otherwise it is that of a dense reading of the sketch, as the
gradient of the input is torch's, for a part of the batch at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rad.backends.operators import as_text, from_text, opaque
from rad.draws.selectors import Selectors
from rad.dtypes import accumulation_dtype
from rad.functional.arguments import Sizes, check_real, product_dtype
from rad.functional.compression import keep
from rad.functional.conv_weight import weight_grad_from_positions
from rad.functional.geometry import Geometry, Mask, geometry_of, transposed_geometry_of
from rad.functional.second_order import OF_WEIGHT, refuse, will_be_differentiated
from rad.packing.pieces import pieces
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity

PIECES = 5
"""Into how many parts the batch is cut in the backward pass, where it is large."""

SMALL_BYTES = 1 << 20
"""Of input and output together, up to which the batch is not cut: many small convolutions take
longer than they save memory."""


Gradients = tuple[Tensor | None, ...]


class _SketchedConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        geometry: Geometry,
        sketch: Sketch,
        key: Tensor,
        *kept: Tensor,
    ) -> Tensor:
        ctx.geometry, ctx.sketch = geometry, sketch
        ctx.input_shape, ctx.input_dtype = x.shape, x.dtype
        ctx.bias_dtype = bias.dtype if bias is not None else None
        ctx.save_for_backward(key, weight, *kept)
        return geometry.forward(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        key, weight, *kept = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        arguments = (ctx.sketch, grad_output, tuple(kept), weight, ctx.input_shape)
        rest = (ctx.geometry, key, needs)
        if torch.compiler.is_compiling():
            numbers = (list(ctx.input_shape), key, list(needs))
            texts = (as_text(ctx.geometry), as_text(ctx.sketch))
            found = iter(_conv_gradients(grad_output, kept, weight, *numbers, *texts))
            grads: Gradients = tuple([next(found) if need else None for need in needs])
        elif will_be_differentiated():
            grads = _differentiable_gradients(*arguments, *rest)
        else:
            grads = _gradients(*arguments, *rest)
        dtypes = (ctx.input_dtype, weight.dtype, ctx.bias_dtype)
        cast = [g if g is None else g.to(d) for g, d in zip(grads, dtypes, strict=True)]
        return *cast, None, None, None, *[None for _ in kept]


def conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    sketch: Sketch,
    key: Tensor,
    kept: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """`torch.nn.functional.conv1d`, `conv2d` or `conv3d` that keeps a sketch of x instead of x.

    Which one follows from the weight. `padding_mode` is that of `torch.nn.Conv2d`:
    zeros, reflect, replicate or circular.
    Shapes: x (B, C_in, *space) or (C_in, *space), weight (C_out, C_in / groups,
    *kernel), bias (C_out,). Layers that read one x may share what is kept of it: `kept` is what
    `keep_for_conv` gave with that sketch and key. Second derivatives:
    `rad.functional.second_order`. Raises ValueError if x has the wrong number of axes,
    TypeError for complex numbers.
    """
    check_real(x)
    batched = _batched(x, weight)
    geometry = geometry_of(weight, stride, padding, dilation, groups, padding_mode)
    kept = keep_for_conv(x, weight, sketch, key) if kept is None else kept
    output: Tensor = _SketchedConvolution.apply(batched, weight, bias, geometry, sketch, key, *kept)
    return output if batched.dim() == x.dim() else output.squeeze(0)


def conv_transpose(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    *,
    sketch: Sketch,
    key: Tensor,
    kept: tuple[Tensor, ...] | None = None,
) -> Tensor:
    """`torch.nn.functional.conv_transpose1d`, `2d` or `3d` that keeps a sketch of x instead of x.

    Which one follows from the weight. Kept, and estimated from it, is what `conv` keeps: the rows
    of the sketch are channels, its columns positions; the weight's gradient is linear in x, too.
    Shapes: x (B, C_in, *space) or (C_in, *space), weight (C_in, C_out / groups, *kernel), bias
    (C_out,); `kept` is as in `conv`. Second derivatives: `rad.functional.second_order`. Raises
    ValueError if x has the wrong number of axes, TypeError for complex numbers.
    """
    check_real(x)
    batched = _batched(x, weight)
    geometry = transposed_geometry_of(weight, stride, padding, output_padding, groups, dilation)
    kept = keep_for_conv(x, weight, sketch, key) if kept is None else kept
    output: Tensor = _SketchedConvolution.apply(batched, weight, bias, geometry, sketch, key, *kept)
    return output if batched.dim() == x.dim() else output.squeeze(0)


def keep_for_conv(x: Tensor, weight: Tensor, sketch: Sketch, key: Tensor) -> tuple[Tensor, ...]:
    """What `conv` and `conv_transpose` keep of x, to be given to them as `kept`.

    Nothing if the weight is frozen.
    """
    check_real(x)
    if not (weight.requires_grad and torch.is_grad_enabled()):
        return ()
    batched = _batched(x, weight)
    rows = batched if isinstance(sketch, Identity) else batched.flatten(2).flatten(0, 1)
    return keep(sketch, rows, key, product_dtype(x))


def _batched(x: Tensor, weight: Tensor) -> Tensor:
    """x with a batch axis. Raises ValueError if it has the wrong number of axes."""
    axes = weight.dim() - 2
    if x.dim() not in (axes + 1, axes + 2):
        raise ValueError(f"{axes} spatial axes: cannot take an input of shape {tuple(x.shape)}")
    return x.unsqueeze(0) if x.dim() == axes + 1 else x


def _differentiable_gradients(
    sketch: Sketch,
    grad_output: Tensor,
    kept: tuple[Tensor, ...],
    weight: Tensor,
    shape: torch.Size,
    geometry: Geometry,
    key: Tensor,
    needs: Mask,
) -> Gradients:
    """`_gradients` under `create_graph=True`."""
    needs_input, needs_weight, needs_bias = needs
    exact = isinstance(sketch, Identity)
    zeros = grad_output.new_zeros(shape, requires_grad=True)
    mask = (needs_input, False, needs_bias)
    grad_input, _, grad_bias = geometry.differentiable_backward(grad_output, zeros, weight, mask)
    if not needs_weight:
        return grad_input, None, grad_bias
    mask = (False, True, False)
    if exact:
        grad_weight = geometry.differentiable_backward(grad_output, kept[0], weight, mask)[1]
        return grad_input, grad_weight, grad_bias
    with torch.no_grad():
        arguments = (kept, weight, shape, geometry, key, mask)
        grad_weight = _gradients(sketch, grad_output, *arguments)[1]
    assert grad_weight is not None
    if grad_output.requires_grad or needs_input:
        grad_weight = refuse(grad_weight, OF_WEIGHT)
    return grad_input, grad_weight, grad_bias


@opaque()
def _conv_gradients(
    grad_output: Tensor,
    kept: list[Tensor],
    weight: Tensor,
    shape: list[int],
    key: Tensor,
    needs: list[bool],
    geometry: str,
    sketch: str,
) -> list[Tensor]:
    mask: Mask = (needs[0], needs[1], needs[2])
    rest = (weight, torch.Size(shape), from_text(geometry), key, mask)
    grads = _gradients(from_text(sketch), grad_output, tuple(kept), *rest)
    return [grad for grad in grads if grad is not None]


def _gradients(
    sketch: Sketch,
    grad_output: Tensor,
    kept: tuple[Tensor, ...],
    weight: Tensor,
    shape: torch.Size,
    geometry: Geometry,
    key: Tensor,
    needs: Mask,
) -> Gradients:
    """The gradients of input, weight and bias, a part of the batch at a time.

    So neither a dense copy of the input nor the convolution's own working copies stand
    in memory whole.
    """
    needs_input, needs_weight, needs_bias = needs
    dtype, wide = grad_output.dtype, accumulation_dtype(grad_output.dtype)
    grad_weight: Tensor | None = None
    grad_bias: Tensor | None = None
    drawn = sketch.selectors(shape[2:].numel())
    if needs_weight and drawn is not None:
        arguments = (drawn, grad_output, kept[0], weight, shape, geometry, key)
        pointwise = _reads_positions(drawn, geometry, weight, shape)
        of_positions = _pointwise_weight_grad if pointwise else weight_grad_from_positions
        grad_weight = of_positions(*arguments)
    needs_weight = needs_weight and grad_weight is None
    if needs_bias:  # torch's kernel, asked for it, would sum the whole weight's gradient, too
        grad_bias = grad_output.sum((0, *range(2, grad_output.dim())), dtype=wide)
    if not (needs_input or needs_weight):
        return None, grad_weight, grad_bias
    cast = weight.to(dtype)
    at_once = needs_weight and wide == dtype
    small = (shape.numel() + grad_output.numel()) * dtype.itemsize <= SMALL_BYTES
    step = max(1, shape[0] if small else -(-shape[0] // PIECES))
    grad_input = grad_output.new_empty(shape) if needs_input and step < shape[0] else None
    for start in range(0, max(1, shape[0]), step):
        part = slice(start, min(start + step, shape[0]))
        grad = grad_output[part]
        x_hat = grad.new_empty(()).expand(len(grad), *shape[1:])
        if needs_weight:
            x_hat = _read(sketch, kept, shape, wide, key, part)
        mask = (needs_input, at_once, False)
        by_input, by_weight, _ = geometry.backward(grad, x_hat.to(dtype), cast, mask)
        if needs_weight and not at_once:
            mask = (False, True, False)
            by_weight = geometry.backward(grad.to(wide), x_hat, weight.to(wide), mask)[1]
        if grad_input is None:
            grad_input = by_input
        else:
            grad_input[part] = by_input  # type: ignore[assignment]
        if needs_weight:
            grad_weight = _sum(grad_weight, by_weight, wide)
    return grad_input, grad_weight, grad_bias


def _read(
    sketch: Sketch,
    kept: tuple[Tensor, ...],
    shape: torch.Size,
    dtype: torch.dtype,
    key: Tensor,
    part: slice,
) -> Tensor:
    """The estimate of a part of the batch of the input: (len(part), C, *space)."""
    if isinstance(sketch, Identity):
        return kept[0][part].to(dtype)
    channels, positions = shape[1], shape[2:].numel()
    rows = range(part.start * channels, part.stop * channels)
    x_hat = sketch.decompress(kept, (shape[0] * channels, positions), dtype, key, rows)
    return x_hat.view(-1, *shape[1:])


def _sum(total: Tensor | None, part: Tensor | None, dtype: torch.dtype) -> Tensor:
    assert part is not None
    return part.to(dtype) if total is None else total.add_(part)


def _reads_positions(
    drawn: Selectors, geometry: Geometry, weight: Tensor, shape: torch.Size
) -> bool:
    """Whether the positions kept, the same in all rows, are multiplied as they are.

    Gathered twice over, more than half of them would take more memory than a dense reading.
    """
    few = 2 * drawn.kept <= shape[2:].numel()
    return few and not (drawn.signs or drawn.different) and geometry.is_pointwise(weight)


def _pointwise_weight_grad(
    drawn: Selectors,
    grad_output: Tensor,
    kept: Tensor,
    weight: Tensor,
    shape: torch.Size,
    geometry: Geometry,
    key: Tensor,
) -> Tensor:
    """Where each output position reads one input position, the kept ones are enough.

    Short types are widened a part of the batch at a time.
    """
    indices = drawn.columns(shape[2:].numel(), key, range(1))[0]
    groups = geometry.groups
    wide = accumulation_dtype(grad_output.dtype)
    columns = kept.view(*shape[:2], len(indices))
    product = None
    for part in pieces(range(shape[0]), shape[0] if wide == kept.dtype else -(-shape[0] // PIECES)):
        here = slice(part.start, part.stop)
        at_kept = grad_output[here].flatten(2).index_select(2, indices).to(wide)
        of_part = torch.einsum(
            "bgok,bgck->goc",
            at_kept.unflatten(1, (groups, -1)),
            columns[here].to(wide).unflatten(1, (groups, -1)),
        )
        product = _sum(product, of_part, wide)
    assert product is not None
    return product.mul(drawn.decode).view(weight.shape)
