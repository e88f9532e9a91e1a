"""Recurrent layers with gates, fused over time: what `rad.functional.lstm` and `gru` share.

On its way back through time a gradient is multiplied by *factors*, numbers for each unit and step
that follow from gates and states (`rad.functional.cells`). There are two ways to have them.

Rounded. With `StochasticRounding` and `DitheredRounding` the factors, formed in the forward pass
from exact numbers, are kept rounded, and so are the states and the input that gradients by weights
are multiplied by. All draws are independent, and a path of the gradient meets each step's number of
a kind once at most: all gradients are multilinear in what is kept, and so unbiased. As where
activation functions keep a rounded derivative, the gradient by the *input* is random, too.

Exact. Sampled factors would multiply up along a path, with a variance that grows exponentially in
the steps (paper, section 3.3). With every other sketch, and with `Identity`, states and input are
kept as they are, one number a unit and step where torch keeps all gates. They tell the gates, which
the backward pass calculates again, those of a chunk of steps in one product. The cells of an LSTM,
which add up along the steps, are kept before each chunk. Every gradient is exact then, and nothing
is drawn.

Neither pass holds more than a chunk of steps densely.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rad.dtypes import accumulation_dtype
from rad.functional.arguments import check_biases, product_dtype
from rad.functional.cells import PRODUCTS, Cell
from rad.functional.gated_kept import FACTORS, INPUTS, STATES, Plan, Reader, Room
from rad.functional.gated_weights import Weights, columns, ordered, restored
from rad.functional.modes import without_modes
from rad.functional.second_order import OF_RNN, refused
from rad.functional.steps import KeptSteps
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity


class _GatedRNN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        c0: Tensor | None,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        cell: Cell,
        sketch: Sketch,
        key: Tensor,
        return_sequence: bool,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        needs_x, _, _, needs_ih, needs_hh, _, _ = needs = ctx.needs_input_grad[:7]
        (steps, batch, features), dtype = x.shape, product_dtype(x)
        plan = Plan(cell, steps, batch, features, weight_hh.shape[1], dtype, sketch)
        leaves = (x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh)
        ctx.leaf_dtypes = [None if leaf is None else leaf.dtype for leaf in leaves]
        ctx.plan = plan
        ctx.set_materialize_grads(False)

        x = x.to(dtype)
        rounds, exact = any(needs) and plan.rounds, any(needs) and not plan.rounds
        factors, states, inputs = (KeptSteps(steps, key, i) for i in (FACTORS, STATES, INPUTS))
        chunks, sequence, borders = plan.chunks(), None, None
        if return_sequence or exact:
            sequence = x.new_empty(steps, batch, plan.hidden)
        if exact and cell.has_cells:
            borders = x.new_empty(len(chunks), batch, plan.hidden)
        with torch.autocast(x.device.type, enabled=False):
            weights = Weights(cell, weight_ih, weight_hh, (bias_ih, bias_hh), dtype)
            room = Room(plan, x)
            room_for_factors = room.new_factors() if rounds else None
            h, c = room.states, room.cells
            h[0] = h0
            if c is not None and c0 is not None:
                c[0] = c0
            for number, here in enumerate(chunks):
                n, x_now = len(here), x[here.start : here.stop]
                work, h_now, c_now = room.work[:n], h[: n + 1], None if c is None else c[: n + 1]
                if borders is not None and c is not None:
                    borders[number] = c[0]
                weights.multiply(x_now, work)
                cell.advance(work, h_now, c_now, weights.hh.t())
                if room_for_factors is not None:
                    dense = room_for_factors[:n]
                    cell.factors(work, h_now[:-1], c_now, dense)
                    factors.add(sketch, dense.flatten(1, 2), here)
                    if needs_hh:
                        states.add(sketch, h_now[:-1], here)
                    if needs_ih and plan.input_sketch:
                        inputs.add(plan.input_sketch, x_now, here)
                if sequence is not None:
                    sequence[here.start : here.stop] = h_now[1:]
                h[0] = h_now[-1]
                if c is not None and c_now is not None:
                    c[0] = c_now[-1]
            h_n, c_n = h[0].clone(), None if c is None else c[0].clone()

        if exact:
            assert sequence is not None
            factors.tensors = () if borders is None else (borders,)
            states.tensors = *Identity().compress(h0.to(dtype), key), sequence
        if exact or (rounds and needs_ih and not plan.input_sketch):
            inputs.tensors = Identity().compress(x, key)
        ctx.counts = [len(each.tensors) for each in (factors, states, inputs)]
        ctx.save_for_backward(
            key if rounds else None,
            weight_ih if exact or needs_x else None,
            weight_hh,
            bias_ih if exact else None,
            bias_hh if exact else None,
            *factors.tensors,
            *states.tensors,
            *inputs.tensors,
        )
        return sequence if return_sequence else None, h_n, c_n

    @staticmethod
    @refused(OF_RNN)
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None, grad_c_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        plan: Plan = ctx.plan
        cell, wide = plan.cell, accumulation_dtype(plan.dtype)
        key, weight_ih, weight_hh, bias_ih, bias_hh, *kept = ctx.saved_tensors
        needs_x, _, _, needs_ih, needs_hh, *needs_bias = needs = ctx.needs_input_grad[:7]
        of_input, of_state = (
            columns(blocks, plan.hidden) for blocks in (cell.input_blocks, cell.state_blocks)
        )
        with torch.autocast(weight_hh.device.type, enabled=False):
            weights = None
            if not plan.rounds:
                weights = Weights(cell, weight_ih, weight_hh, (bias_ih, bias_hh), plan.dtype)
            reader = Reader(plan, kept, ctx.counts, key, weights)
            w_hh = ordered(weight_hh.to(wide), cell.state_order)
            w_ih = ordered(weight_ih.to(wide), cell.input_order) if needs_x else None
            grad_x = None
            if needs_x:
                shape = plan.steps, plan.batch, plan.features
                grad_x = w_hh.new_empty(shape, dtype=ctx.leaf_dtypes[0])
            grad_w_ih = w_hh.new_zeros(plan.features, len(cell.input_order) * plan.hidden)
            grad_w_hh = torch.zeros_like(w_hh.t())
            grad_bias = w_hh.new_zeros(PRODUCTS * plan.hidden)
            grad_h = w_hh.new_zeros(plan.batch, plan.hidden)
            grad_c = torch.zeros_like(grad_h) if cell.has_cells else None
            grad_h += 0 if grad_h_n is None else grad_h_n
            grad_h += 0 if grad_output is None else grad_output[-1]
            if grad_c is not None and grad_c_n is not None:
                grad_c += grad_c_n
            chunks = plan.chunks()
            buffer = w_hh.new_empty(len(chunks[0]), plan.batch, PRODUCTS * plan.hidden)
            for number, here in reversed(list(enumerate(chunks))):
                delta, factors = buffer[: len(here)], reader.factors(number, here)
                outer = _outer(grad_output, here, wide)
                cell.sweep(factors, delta, grad_h, grad_c, outer, w_hh)
                if needs_hh:
                    grad_w_hh += reader.state_product(delta[..., of_state], here)
                if needs_ih:
                    grad_w_ih += reader.input_product(delta[..., of_input], here)
                if any(needs_bias):
                    grad_bias += delta.sum((0, 1))
                if grad_x is not None and w_ih is not None:
                    grad_x[here.start : here.stop] = delta[..., of_input] @ w_ih

        gradients = (
            *(grad_x, grad_h, grad_c),
            restored(grad_w_ih.t(), cell.input_order),
            restored(grad_w_hh.t(), cell.state_order),
            restored(grad_bias[of_input], cell.input_order),
            restored(grad_bias[of_state], cell.state_order),
        )
        wanted = zip(gradients, ctx.leaf_dtypes, needs, strict=True)
        found = (g.to(d) if n and g is not None else None for g, d, n in wanted)
        return *found, None, None, None, None


def _outer(grad_output: Tensor | None, steps: range, dtype: torch.dtype) -> list[Tensor | None]:
    """For each step what the gradient by the sequence adds to that by the state before it."""
    if grad_output is None:
        return [None] * len(steps)
    first = max(1, steps.start)
    before = grad_output[first - 1 : steps.stop - 1].to(dtype)
    return [None] * (first - steps.start) + list(before.unbind())


def gated(
    cell: Cell,
    x: Tensor,
    h0: Tensor,
    c0: Tensor | None,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    sketch: Sketch,
    key: Tensor,
    return_sequence: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The layer of that cell: the states, or None without `return_sequence`, h_n and c_n.

    Shapes, with m the blocks of torch's weights: x (T, B, I), h0 and c0 (B, H), weight_ih
    (m H, I), weight_hh (m H, H), biases (m H,). Raises ValueError for others.
    """
    rows, features = weight_ih.shape
    hidden, steps = rows // len(cell.input_order), len(x)
    if rows != hidden * len(cell.input_order):
        raise ValueError(f"weight_ih has {rows} rows: give {len(cell.input_order)} for each unit")
    if x.dim() != 3 or x.shape[2] != features or not steps:
        raise ValueError(f"x must be (T, B, {features}) with T > 0, got {tuple(x.shape)}")
    state = x.shape[1], hidden
    for name, each in (("h0", h0), ("c0", c0)):
        if each is not None and each.shape != state:
            raise ValueError(f"{name} must be {state}, got {tuple(each.shape)}")
    if weight_hh.shape != (rows, hidden):
        raise ValueError(f"weight_hh must be {(rows, hidden)}, got {tuple(weight_hh.shape)}")
    check_biases((bias_ih, bias_hh), rows)
    leaves = (x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh)
    result: tuple[Tensor | None, Tensor, Tensor | None]
    with without_modes(x):
        result = _GatedRNN.apply(*leaves, cell, sketch, key, return_sequence)
    return result
