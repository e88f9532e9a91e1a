# mypy: disallow-untyped-defs=False
"""The ReLU recurrence on one input feature, all steps in one launch.

A program holds the states of ROWS examples and the whole of W_hh on chip and walks through time;
programs share nothing. Forward writes the sketch of each state and one bit a unit; backward reads
them and accumulates the weights' gradients of its examples on chip, which are added up over the
programs once, at the end. Products are IEEE float32 (bfloat16 states: exact products of bfloat16,
summed in float32), so that results equal the eager operator's to rounding, draw for draw.

Units are padded with zeros to a power of two. Bit r of byte (t, i, u) is unit u of example 8 i + r.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from rad.draws.kernels import KEPT, fold_in, selector, short
from rad.draws.selectors import Selectors

ROWS = 16
MAX_HIDDEN = 128
OPTIONS = {"num_warps": 8, "num_stages": 1}


@triton.jit
def _forward(
    x, h0, weight_ih, weight_hh, bias, key, sketch, bits, sequence, last,
    steps, batch, x_step, x_row, encode,
    hidden: tl.constexpr, units: tl.constexpr, rows: tl.constexpr,
    kept: tl.constexpr, signs: tl.constexpr, different: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    unit = tl.arange(0, units)
    in_batch, in_state = row < batch, unit < hidden
    inside = in_batch[:, None] & in_state[None, :]
    place = row[:, None] * hidden + unit[None, :]

    square = in_state[:, None] & in_state[None, :]
    transposed = unit[None, :] * hidden + unit[:, None]
    w_hh = tl.load(weight_hh + transposed, mask=square, other=0).to(tl.float32)
    w_ih = tl.load(weight_ih + unit, mask=in_state, other=0).to(tl.float32)
    b = tl.load(bias + unit, mask=in_state, other=0).to(tl.float32)
    h = tl.load(h0 + place, mask=inside, other=0).to(tl.float32)
    drawn_row = row if different else tl.arange(0, 1)
    states_key = fold_in(tl.load(key).to(tl.uint64), 0)

    for t in range(steps):
        step = tl.cast(t, tl.int64)
        if sketch is not None:
            step_key = fold_in(states_key, t)
            for slot in range(kept):
                selected = selector(step_key, drawn_row, unit, slot, hidden, signs)
                value = tl.sum(h * selected, 1) * encode
                if signs and sketch.dtype.element_ty == tl.bfloat16:
                    value = short(value, fold_in(step_key, KEPT), row, slot)
                tl.store(sketch + (step * batch + row) * kept + slot, value, mask=in_batch)
        x_t = tl.load(x + step * x_step + row * x_row, mask=in_batch, other=0).to(tl.float32)
        a = tl.dot(h, w_hh, acc=x_t[:, None] * w_ih[None, :] + b[None, :], input_precision="ieee")
        a = tl.maximum(a, 0.0, propagate_nan=tl.PropagateNan.ALL)
        h = a.to(last.dtype.element_ty).to(tl.float32)  # rounded as the eager operator's
        if bits is not None:
            active = (h != 0) & inside  # NaN counts as active
            octets = tl.reshape(active.to(tl.int32), (rows // 8, 8, units))
            packed = tl.sum(octets << tl.arange(0, 8)[None, :, None], 1)
            octet = tl.program_id(0) * (rows // 8) + tl.arange(0, rows // 8)
            groups = (batch + 7) // 8
            there = (octet < groups)[:, None] & in_state[None, :]
            at = (step * groups + octet[:, None]) * hidden + unit[None, :]
            tl.store(bits + at, packed.to(tl.uint8), mask=there)
        if sequence is not None:
            tl.store(sequence + step * batch * hidden + place, h, mask=inside)
    tl.store(last + place, h, mask=inside)


@triton.jit
def _backward(
    x, h0, weight_ih, weight_hh, key, sketch, bits, sequence, grad_output, grad_last,
    grad_x, grad_h0, grad_weight_ih, grad_weight_hh, grad_bias,
    steps, batch, x_step, x_row, decode,
    hidden: tl.constexpr, units: tl.constexpr, rows: tl.constexpr,
    kept: tl.constexpr, signs: tl.constexpr, different: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * rows + tl.arange(0, rows)
    unit = tl.arange(0, units)
    in_batch, in_state = row < batch, unit < hidden
    inside = in_batch[:, None] & in_state[None, :]
    place = row[:, None] * hidden + unit[None, :]

    square = in_state[:, None] & in_state[None, :]
    matrix = unit[:, None] * hidden + unit[None, :]
    w_hh = tl.load(weight_hh + matrix, mask=square, other=0).to(tl.float32)
    if grad_x is not None:
        w_ih = tl.load(weight_ih + unit, mask=in_state, other=0).to(tl.float32)
    drawn_row = row if different else tl.arange(0, 1)
    states_key = fold_in(tl.load(key).to(tl.uint64), 0)
    grad_h = tl.load(grad_last + place, mask=inside, other=0).to(tl.float32)
    sum_hh = tl.zeros((units, units), tl.float32)
    sum_ih = tl.zeros((rows, units), tl.float32)
    sum_b = tl.zeros((rows, units), tl.float32)

    for back in range(steps):
        t = steps - 1 - back
        step = tl.cast(t, tl.int64)
        if grad_output is not None:
            given = grad_output + step * batch * hidden + place
            grad_h += tl.load(given, mask=inside, other=0).to(tl.float32)
        if bits is not None:
            octet = (step * ((batch + 7) // 8) + row[:, None] // 8) * hidden + unit[None, :]
            byte = tl.load(bits + octet, mask=inside, other=0).to(tl.int32)
            active = ((byte >> (row % 8)[:, None]) & 1) != 0
        else:
            h = tl.load(sequence + step * batch * hidden + place, mask=inside, other=0)
            active = (h.to(tl.float32) != 0) & inside
        delta = tl.where(active, grad_h, 0.0)

        if sketch is not None:
            step_key = fold_in(states_key, t)
            before = tl.zeros((rows, units), tl.float32)
            for slot in range(kept):
                at = (step * batch + row) * kept + slot
                value = tl.load(sketch + at, mask=in_batch, other=0).to(tl.float32) * decode
                selected = selector(step_key, drawn_row, unit, slot, hidden, signs)
                before += value[:, None] * selected
            sum_hh = tl.dot(tl.trans(delta), before, acc=sum_hh, input_precision="ieee")
        elif sequence is not None:
            earlier = h0 + place
            if t > 0:
                earlier = sequence + (step - 1) * batch * hidden + place
            before = tl.load(earlier, mask=inside, other=0).to(tl.float32)
            sum_hh = tl.dot(tl.trans(delta), before, acc=sum_hh, input_precision="ieee")
        if x is not None:
            x_t = tl.load(x + step * x_step + row * x_row, mask=in_batch, other=0)
            sum_ih += delta * x_t.to(tl.float32)[:, None]
        if grad_x is not None:
            tl.store(grad_x + step * batch + row, tl.sum(delta * w_ih[None, :], 1), mask=in_batch)
        sum_b += delta
        grad_h = tl.dot(delta, w_hh, input_precision="ieee")

    program = tl.program_id(0)
    tl.store(grad_h0 + place, grad_h, mask=inside)
    tl.store(grad_weight_ih + program * hidden + unit, tl.sum(sum_ih, 0), mask=in_state)
    tl.store(grad_bias + program * hidden + unit, tl.sum(sum_b, 0), mask=in_state)
    tl.store(grad_weight_hh + program * hidden * hidden + matrix, sum_hh, mask=square)


class Kept(NamedTuple):
    """What `forward` leaves for `backward`. Shapes: (T, B, k), (T, ceil(B / 8), H), (T, B, H)."""

    sketch: Tensor | None
    bits: Tensor | None
    sequence: Tensor | None


def forward(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    key: Tensor,
    selected: Selectors | None,
    bits: bool,
    sequence: bool,
) -> tuple[Kept, Tensor]:
    """All steps: what was asked for, and the last state (B, H).

    Shapes: x (T, B, 1), h0 (B, H), weight_ih (H, 1), weight_hh (H, H), bias (H,), of one dtype;
    `selected` None keeps no sketch. Any device that Triton runs on.
    """
    steps, batch, hidden = *x.shape[:2], len(weight_hh)
    kept = Kept(
        x.new_empty(steps, batch, selected.kept) if selected else None,
        x.new_empty(steps, -(-batch // 8), hidden, dtype=torch.uint8) if bits else None,
        x.new_empty(steps, batch, hidden) if sequence else None,
    )
    last = torch.empty_like(h0, memory_format=torch.contiguous_format)
    with torch.cuda.device_of(x):
        _forward[(triton.cdiv(batch, ROWS),)](
            x, h0.contiguous(), weight_ih.contiguous(), weight_hh.contiguous(), bias, key, *kept,
            last, steps, batch, x.stride(0), x.stride(1), selected.encode if selected else 1.0,
            **_sizes(hidden, selected), **OPTIONS,
        )  # fmt: skip
    return kept, last


class Gradients(NamedTuple):
    """Of x (T, B, 1) or None, h0 (B, H), weight_ih (H, 1), weight_hh (H, H), bias (H,): float32."""

    x: Tensor | None
    h0: Tensor
    weight_ih: Tensor
    weight_hh: Tensor
    bias: Tensor


def backward(
    x: Tensor | None,
    h0: Tensor | None,
    weight_ih: Tensor | None,
    weight_hh: Tensor,
    key: Tensor,
    kept: Kept,
    selected: Selectors | None,
    grad_output: Tensor | None,
    grad_last: Tensor,
    steps: int,
) -> Gradients:
    """The gradients, given those of the sequence (T, B, H) or None and of the last state (B, H).

    `weight_ih` given asks for the gradient of x. That of weight_ih is 0 without x; that of
    weight_hh is 0 where `kept` has neither a sketch nor the sequence, which h0 goes with.
    """
    batch, hidden = grad_last.shape
    programs = triton.cdiv(batch, ROWS)
    empty = partial(weight_hh.new_empty, dtype=torch.float32)
    grad_x = None if weight_ih is None else empty(steps, batch, 1)
    grad_h0 = empty(batch, hidden)
    grad_ih, grad_bias = empty(2, programs, hidden)
    grad_hh = empty(programs, hidden, hidden)
    with torch.cuda.device_of(weight_hh):
        _backward[(programs,)](
            x, h0, None if weight_ih is None else weight_ih.contiguous(), weight_hh.contiguous(),
            key, *kept,
            None if grad_output is None else grad_output.contiguous(), grad_last.contiguous(),
            grad_x, grad_h0, grad_ih, grad_hh, grad_bias,
            steps, batch, *((0, 0) if x is None else x.stride()[:2]),
            selected.decode if selected else 1.0, **_sizes(hidden, selected), **OPTIONS,
        )  # fmt: skip
    sum_ih, sum_hh, sum_b = (part.sum(0) for part in (grad_ih, grad_hh, grad_bias))
    return Gradients(grad_x, grad_h0, sum_ih[:, None], sum_hh, sum_b)


def _sizes(hidden: int, selected: Selectors | None) -> dict[str, int | bool]:
    """The kernels' compile-time arguments."""
    return {
        "hidden": hidden,
        "units": max(16, triton.next_power_of_2(hidden)),
        "rows": ROWS,
        "kept": selected.kept if selected else 0,
        "signs": bool(selected and selected.signs),
        "different": bool(selected and selected.different),
    }
