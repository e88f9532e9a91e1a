"""A block of layers that works through its batch a slice at a time, forward and backward.

Kept between forward and backward: what the block's layers keep, of all slices together. Not kept,
and never in memory whole: what stands between the layers while they run, and the copies that
convolutions make for themselves. The gradients are those of the whole batch, whose sums run over
the slices; layers that sketch draw afresh for each slice.

It pays where what is kept is small beside what the block computes: with plain layers, which keep
their inputs, little is gained.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from rad import backends
from rad.dtypes import accumulation_dtype
from rad.functional.second_order import OF_SLICES, refused

Gradients = tuple[Tensor | None, ...]


class _Slice(NamedTuple):
    """The graph of one slice, which holds no input and no output."""

    rows: slice
    start: GradientEdge | None
    end: GradientEdge


class _Entrance(torch.autograd.Function):
    """Where a slice's graph begins: unlike a leaf, it does not hold the numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, _: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[None, Tensor]:
        return None, grad_output


class _InSlices(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, block: Callable[[Tensor], Tensor], size: int, *parameters: Tensor
    ) -> Tensor:
        ctx.parameters, ctx.shape, ctx.slices = parameters, x.shape, []
        output: Tensor | None = None
        for begin in range(0, len(x), size):
            rows = slice(begin, min(begin + size, len(x)))
            part, graph = _run(block, x[rows], rows, ctx.needs_input_grad[0])
            if part.shape[:1] != (rows.stop - begin,):
                raise RuntimeError(
                    f"a block made {tuple(part.shape)} of {rows.stop - begin} examples: only "
                    "blocks that keep the examples apart, along the first axis, can run in slices"
                )
            if output is None:
                output = part.new_empty(len(x), *part.shape[1:])
            output[rows] = part
            ctx.slices.append(graph)
        assert output is not None
        return output

    @staticmethod
    @refused(OF_SLICES)
    def backward(ctx: Any, grad_output: Tensor) -> Gradients:
        if ctx.slices is None:
            raise RuntimeError(
                "a second backward pass through slices whose graph the first one freed: give the "
                "first one retain_graph=True"
            )
        keep = torch._C._autograd._get_current_graph_task_keep_graph()
        slices, parameters = ctx.slices, ctx.parameters
        needs_input, needs = ctx.needs_input_grad[0], ctx.needs_input_grad[3:]
        if not keep:
            ctx.slices = None
        grad_input = grad_output.new_empty(ctx.shape) if needs_input else None
        trained = [p for p, need in zip(parameters, needs, strict=True) if need]
        totals: list[Tensor | None] = [None] * len(trained)
        for number, each in enumerate(slices):
            if not keep:
                slices[number] = None
            starts = [] if each.start is None else [each.start]
            found = torch.autograd.grad(
                [each.end], [*starts, *trained], [grad_output[each.rows]], keep, allow_unused=True
            )
            if grad_input is not None:
                grad_input[each.rows] = found[0]
            totals = [_sum(*pair) for pair in zip(totals, found[len(starts) :], strict=True)]
        sums = iter(totals)
        grads = [
            None if not need or (total := next(sums)) is None else total.to(parameter.dtype)
            for parameter, need in zip(parameters, needs, strict=True)
        ]
        return grad_input, None, None, *grads


def _run(
    block: Callable[[Tensor], Tensor], x: Tensor, rows: slice, needs_input: bool
) -> tuple[Tensor, _Slice]:
    """The output for one slice x, detached, and its graph."""
    with torch.enable_grad():
        x, start = x.detach(), None
        if needs_input:
            x = _Entrance.apply(x, x.new_zeros(()).expand_as(x).requires_grad_())
            start = get_gradient_edge(x)
        output = block(x)
    return output.detach(), _Slice(rows, start, get_gradient_edge(output))


def _sum(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    if part is None:
        return total
    if total is None:
        return part.to(accumulation_dtype(part.dtype), copy=True)
    return total.add_(part)


def in_slices(block: nn.Module, x: Tensor, size: int) -> Tensor:
    """`block(x)`, calculated for `size` examples at a time.

    `block` maps x (B, ...) to (B, ...), each example by itself: no batch normalisation. Hooks in it
    see a slice at a time. It runs on the whole batch where it need not be cut (B <= size, no
    gradients) or cannot (while torch compiles or transforms a program, and under hooks on its
    parameters, which would see a gradient for each slice). Gradients of gradients raise
    RuntimeError. Raises RuntimeError for a block that returns another number of examples.
    """
    parameters = tuple(block.parameters())
    trained = x.requires_grad or any(p.requires_grad for p in parameters)
    whole = (
        len(x) <= size
        or not backends.is_readable(x)
        or not (trained and torch.is_grad_enabled())
        or any(p._backward_hooks for p in parameters)
    )
    result: Tensor = block(x) if whole else _InSlices.apply(x, block, size, *parameters)
    return result
