"""Linear layers in a row, each perhaps with a ReLU after it, as one function for autograd.

Everything is as in `linear` and `relu` in turn, to the bit: what is calculated, drawn and
kept between forward and backward. Spared are autograd's work for each, which takes as long as the
products of small layers, and the second buffer of each ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rad import backends
from rad.draws.reference import check_high
from rad.dtypes import LOOP_DTYPES
from rad.functional.applying import apply
from rad.functional.linear import contracted, rows_of
from rad.functional.relu import relu_backward, relu_in_place
from rad.functional.second_order import will_be_differentiated
from rad.packing.bits import bits_of, number_of, packed_bytes, unpack
from rad.sketches.base import Sketch
from rad.sketches.sampled_columns import in_one_piece

_threshold_backward = torch.ops.aten.threshold_backward

Mask = Literal["packed", "output"] | None


class Stage(NamedTuple):
    """A linear layer, and what is kept of its input: what `sketch` keeps with that key.

    `mask` is "packed" for a ReLU whose bits are kept, "output" for one whose output is, which can
    only be the last, and None for no ReLU.
    """

    weight: Tensor
    bias: Tensor | None
    sketch: Sketch
    key: Tensor
    mask: Mask


class _Stages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stages: Sequence[Stage], kept_first: int, *tensors: Tensor
    ) -> Tensor:
        ctx.plan, saved, kept = [], [], tensors[:kept_first]
        for stage, following in zip(stages, [*stages[1:], None], strict=True):
            ctx.plan.append((stage.sketch, x.shape, stage.mask, len(kept)))
            x = F.linear(x, stage.weight, stage.bias)
            after, kept_next = _rectified_and_kept(x, stage.mask, following)
            saved += [stage.key, stage.weight, after, *kept]
            kept = kept_next
        ctx.save_for_backward(*saved)
        ctx.kept_first = kept_first
        return x

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        saved, grad, needed = ctx.saved_tensors, grad_output, ctx.needs_input_grad
        found: list[Tensor | None] = []
        end, ours = len(saved), False
        for place in range(len(ctx.plan) - 1, -1, -1):
            sketch, shape, mask, count = ctx.plan[place]
            start = end - count - 3
            key, weight, after, *kept = saved[start:end]
            end = start
            of_input = needed[0] or place > 0
            of_weight, of_bias = needed[3 + ctx.kept_first + 2 * place :][:2]
            product = Product(sketch, kept, shape, key, not of_input) if of_weight else None
            grad, weight_grad = _masked_and_contracted(grad, mask, after, product, ours)
            found += [grad.sum(0) if of_bias else None, weight_grad]
            if of_input:
                grad, ours = grad.mm(weight), True
        first = grad if needed[0] else None
        return first, None, None, *[None] * ctx.kept_first, *reversed(found)


def _rectified_and_kept(
    x: Tensor, mask: Mask, following: Stage | None
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """ReLU of x in place; its bits, or x itself, as `mask` says; and what the next stage keeps."""
    if following is not None:
        found = _in_one_loop(x, mask, following)
        if found is not None:
            return found
    after = None
    if mask == "packed":
        after = relu_in_place(x)
    elif mask == "output":
        after = x.relu_()
    return after, () if following is None else following.sketch.compress(x, following.key)


def _in_one_loop(
    x: Tensor, mask: Mask, following: Stage
) -> tuple[Tensor | None, tuple[Tensor, ...]] | None:
    """`_rectified_and_kept` where the next stage keeps columns, which loops draw; else None."""
    rows, d = x.shape
    drawn = following.sketch.selectors(d)
    if (
        drawn is None
        or drawn.signs
        or x.dtype not in LOOP_DTYPES
        or not x.is_contiguous()
        or not backends.in_loops(x)
    ):
        return None
    from rad.functional.linear_relu_loops import rectify_and_sample

    check_high(d)
    dtype, k = x.dtype, drawn.kept
    bits = None
    if mask is not None:
        bits = torch.empty(packed_bytes(rows * d), dtype=torch.uint8)
    kept = torch.empty(rows, k, dtype=dtype)
    rectify_and_sample(
        x.data_ptr(),
        0 if bits is None else bits.data_ptr(),
        bits_of(-0.0, dtype),
        bits_of(-torch.inf, dtype),
        rows,
        d,
        int(following.key),
        not drawn.different,
        kept.data_ptr(),
        k,
        number_of(0.0, dtype),
    )
    return bits, (kept,)


class Product(NamedTuple):
    """What a weight's gradient is calculated from, beside the gradient of the layer's output."""

    sketch: Sketch
    kept: list[Tensor]
    shape: tuple[int, ...]
    key: Tensor
    input_is_constant: bool

    def with_gradient(self, grad: Tensor) -> Tensor:
        return contracted(
            self.sketch, grad, self.kept, self.shape, self.key, self.input_is_constant
        )


def _masked_and_contracted(
    grad: Tensor, mask: Mask, after: Tensor | None, product: Product | None, ours: bool
) -> tuple[Tensor, Tensor | None]:
    """The gradient before the ReLU, from that after it, and the weight's if it is asked for.

    Overwrites `grad` where it is `ours`.
    """
    if product is not None and mask != "output":
        found = _both_in_one_loop(grad, after, product, ours)
        if found is not None:
            return found
    if mask == "output":
        grad = _threshold_backward(grad, after, 0)
    elif after is not None and will_be_differentiated():
        grad = grad.where(unpack(after, grad.shape), 0)
    elif after is not None:
        grad = relu_backward(after, grad, inplace=ours)
    return grad, None if product is None else product.with_gradient(grad)


def _both_in_one_loop(
    grad: Tensor, bits: Tensor | None, product: Product, ours: bool
) -> tuple[Tensor, Tensor] | None:
    """`_masked_and_contracted` where columns were kept, and a loop over them is fastest."""
    (rows, m), d = grad.shape, product.shape[1]
    drawn = product.sketch.selectors(d)
    if (
        drawn is None
        or drawn.signs
        or not drawn.different
        or grad.dtype not in LOOP_DTYPES
        or not grad.is_contiguous()
        or will_be_differentiated()
        or not backends.in_loops(grad)
        or not in_one_piece(rows, m, d, drawn.kept)
    ):
        return None
    from rad.functional.linear_relu_loops import mask_and_contract

    dtype, (kept,) = grad.dtype, product.kept
    before = grad if ours or bits is None else torch.empty_like(grad)
    total = torch.empty(m, d, dtype=dtype)
    is_finite = mask_and_contract(
        0 if bits is None else bits.data_ptr(),
        grad.data_ptr(),
        before.data_ptr(),
        bits_of(0.0, dtype),
        rows,
        m,
        kept.data_ptr(),
        drawn.kept,
        int(product.key),
        d,
        total.data_ptr(),
        number_of(0.0, dtype),
    )
    return before, total if is_finite else product.with_gradient(before)


def linear_relu(x: Tensor, stages: Sequence[Stage], kept: tuple[Tensor, ...]) -> Tensor:
    """`linear` of each stage in turn, followed by `relu` where it has a mask.

    Shapes: x (..., in_features of the first) -> (..., out_features of the last). `kept` is what
    `keep_for_linear` keeps of x for the first stage; stages after it do not keep their inputs as
    they are (`Identity`). For plain tensors of one type, outside autocast, compiled programs and
    torch's transforms, whose weights are trained; `rad.nn.Sequential` sees to that. Second
    derivatives: `rad.functional.second_order`.
    """
    parameters = [p for stage in stages for p in (stage.weight, stage.bias)]
    result = apply(_Stages, rows_of(x), stages, len(kept), *kept, *parameters)
    return result if x.dim() == 2 else result.view(*x.shape[:-1], result.shape[1])
