"""Linear layers in a row, each perhaps with a ReLU after it, as one function for autograd.

Everything is as in `linear` and `relu` in turn, to the bit: what is calculated, drawn and
kept between forward and backward. Spared are autograd's work for each, which takes as long as the
products of small layers, and the second buffer of each ReLU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rad import backends
from rad.draws.selectors import Selectors
from rad.dtypes import LOOP_DTYPES
from rad.functional.apply import apply
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


class _Work(NamedTuple):
    """What the backward pass of a stage knows beside tensors; `drawn` if loops take its columns."""

    sketch: Sketch
    shape: tuple[int, ...]
    mask: Mask
    kept: int
    drawn: Selectors | None


class _Stages(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, stages: Sequence[Stage], kept_first: int, *tensors: Tensor
    ) -> Tensor:
        ctx.plan, saved, kept = [], [], tensors[:kept_first]
        in_loops = x.dtype in LOOP_DTYPES and backends.in_loops(x)
        drawn = _drawn(stages[0], x.shape[1]) if in_loops else None
        for stage, following in zip(stages, [*stages[1:], None], strict=True):
            ctx.plan.append(_Work(stage.sketch, x.shape, stage.mask, len(kept), drawn))
            x = F.linear(x, stage.weight, stage.bias)
            drawn = _drawn(following, x.shape[1]) if in_loops and following is not None else None
            if following is not None and drawn is not None:
                after, kept_next = _rectified_and_sampled(x, stage.mask, following.key, drawn)
            else:
                after = _rectified(x, stage.mask)
                kept_next = () if following is None else following.sketch.compress(x, following.key)
            saved += [stage.key, stage.weight, after, *kept]
            kept = kept_next
        ctx.save_for_backward(*saved)
        ctx.kept_first = kept_first
        return x

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        saved, grad, needed = ctx.saved_tensors, grad_output, ctx.needs_input_grad
        in_loops = not will_be_differentiated() and backends.in_loops(grad)
        found: list[Tensor | None] = []
        end, ours = len(saved), False
        for place in range(len(ctx.plan) - 1, -1, -1):
            work = ctx.plan[place]
            start = end - work.kept - 3
            key, weight, after, *kept = saved[start:end]
            end = start
            of_input = needed[0] or place > 0
            of_weight, of_bias = needed[3 + ctx.kept_first + 2 * place :][:2]
            weight_grad = None
            if of_weight and in_loops and _sums_columns(work, grad):
                grad, weight_grad = _masked_and_contracted(grad, work, after, kept[0], key, ours)
            else:
                grad = _masked(grad, work.mask, after, ours)
            if of_weight and weight_grad is None:
                weight_grad = contracted(work.sketch, grad, kept, work.shape, key, not of_input)
            found += [grad.sum(0) if of_bias else None, weight_grad]
            if of_input:
                grad, ours = grad.mm(weight), True
        first = grad if needed[0] else None
        return first, None, None, *[None] * ctx.kept_first, *reversed(found)


def _drawn(stage: Stage, d: int) -> Selectors | None:
    """The columns that a stage keeps of its input, where they are what loops draw and read."""
    drawn = stage.sketch.selectors(d)
    if drawn is None or drawn.signs or drawn.distinct:
        return None
    return drawn if (drawn.encode, drawn.decode) == (1.0, d / drawn.kept) else None


@cache
def _numbers(dtype: torch.dtype) -> tuple[Any, Any, Any, Any]:
    """The bits of -0, of -inf and of 0, and 0 itself, as loops take them."""
    bits = (bits_of(-0.0, dtype), bits_of(-torch.inf, dtype), bits_of(0.0, dtype))
    return *bits, number_of(0.0, dtype)


def _rectified(x: Tensor, mask: Mask) -> Tensor | None:
    """ReLU of x in place; what `mask` says is kept of it: its bits, or x itself."""
    if mask == "packed":
        return relu_in_place(x)
    return x.relu_() if mask == "output" else None


def _rectified_and_sampled(
    x: Tensor, mask: Mask, key: Tensor, drawn: Selectors
) -> tuple[Tensor | None, tuple[Tensor, ...]]:
    """`_rectified`, and the columns of its result that the next stage keeps, in one loop."""
    from rad.functional.linear_relu_loops import rectify_and_sample

    (rows, d), dtype, k = x.shape, x.dtype, drawn.kept
    lowest, infinity, _, zero = _numbers(dtype)
    bits = None if mask is None else torch.empty(packed_bytes(rows * d), dtype=torch.uint8)
    kept = torch.empty(rows, k, dtype=dtype)
    rectify_and_sample(
        x.data_ptr(),
        0 if bits is None else bits.data_ptr(),
        kept.data_ptr(),
        key.data_ptr(),
        lowest,
        infinity,
        zero,
        rows,
        d,
        k,
        not drawn.different,
    )
    return bits, (kept,)


def _masked(grad: Tensor, mask: Mask, after: Tensor | None, ours: bool) -> Tensor:
    """The gradient before a ReLU, from that after it, which is overwritten where it is `ours`."""
    if after is None:
        return grad
    if mask == "output":
        masked: Tensor = _threshold_backward(grad, after, 0)
        return masked
    if will_be_differentiated():
        return grad.where(unpack(after, grad.shape), 0)
    return relu_backward(after, grad, inplace=ours)


def _sums_columns(work: _Work, grad: Tensor) -> bool:
    """Whether a loop over the columns that were kept is the fastest way to a weight's gradient."""
    drawn = work.drawn
    return (
        drawn is not None
        and drawn.different
        and work.mask != "output"
        and grad.is_contiguous()
        and in_one_piece(len(grad), grad.shape[1], work.shape[1], drawn.kept)
    )


def _masked_and_contracted(
    grad: Tensor, work: _Work, bits: Tensor | None, kept: Tensor, key: Tensor, ours: bool
) -> tuple[Tensor, Tensor | None]:
    """`_masked`, and the weight's gradient in the same loop; None where the first is not finite."""
    from rad.functional.linear_relu_loops import mask_and_contract

    (rows, m), d, dtype, k = grad.shape, work.shape[1], grad.dtype, kept.shape[1]
    _, _, like, zero = _numbers(dtype)
    before = grad if ours or bits is None else torch.empty_like(grad)
    total = torch.empty(m, d, dtype=dtype)
    is_finite = mask_and_contract(
        0 if bits is None else bits.data_ptr(),
        grad.data_ptr(),
        before.data_ptr(),
        kept.data_ptr(),
        key.data_ptr(),
        total.data_ptr(),
        like,
        zero,
        rows,
        m,
        d,
        k,
    )
    return before, total if is_finite else None


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
