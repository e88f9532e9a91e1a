"""Recurrent layer, fused over time, whose backward pass remembers a sketch of each state.

Kept between forward and backward: for every step the sketch of the state before it
and one bit per unit; the sketch of the input, or the input itself where it has one
feature; a key; the weights (parameters, kept anyway). Not kept: the states. The
gradient that flows back through time needs weights and bits only, so that of input,
initial state and biases is exact; that of each weight is a sum over the steps of
delta_t^T x_hat_t, unbiased because it is linear in each x_hat_t. It is summed during
the sweep: neither pass holds more than a chunk of steps densely.

Two cases keep the states, once, and no bits: `Identity`, where the kept states show
which units were active; and tanh, whose derivative 1 - h^2 a sketch of h would bias.

On a GPU one kernel runs all the steps of a pass where there is one for the layer
(`rad.functional.recurrent_fused`), with the same draws.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from rad.draws.dispatch import fold_in, step_keys
from rad.dtypes import accumulation_dtype
from rad.functional.arguments import check_biases, product_dtype
from rad.functional.linear_noise import LinearResponse
from rad.functional.modes import without_modes
from rad.functional.recurrent_fused import FusedRNN, can_fuse
from rad.functional.second_order import OF_RNN, refused
from rad.functional.steps import KeptSteps
from rad.packing.bits import pack, packed_bytes, unpack
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity

Nonlinearity = Literal["relu", "tanh"]

CHUNK_BYTES = 1 << 20
"""Size of the buffer that holds the states of a chunk of steps; two or three are held at a time."""

_relu_backward = torch.ops.aten.threshold_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class _Plan(NamedTuple):
    """Sizes, and which of the two states and input is kept how. No tensors."""

    steps: int
    batch: int
    features: int
    hidden: int
    dtype: torch.dtype  # of states and sketches
    nonlinearity: Nonlinearity
    states_sketch: Sketch | None  # None: all states are kept, and no bits
    input_sketch: Sketch | None  # None: the input is kept

    def chunks(self) -> list[range]:
        """The steps, in chunks whose bits fill whole bytes."""
        wide = accumulation_dtype(self.dtype).itemsize
        step_bytes = max(1, self.batch * max(self.features, self.hidden) * wide)
        whole = 8 // math.gcd(8, self.batch * self.hidden)
        size = max(1, CHUNK_BYTES // step_bytes // whole) * whole
        return [range(t, min(t + size, self.steps)) for t in range(0, self.steps, size)]

    def bits(self, steps: range) -> slice:
        """Where the bits of those steps lie, in bytes."""
        units = self.batch * self.hidden
        return slice(steps.start * units // 8, packed_bytes(steps.stop * units))


class _SketchedRNN(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        nonlinearity: Nonlinearity,
        sketch: Sketch,
        key: Tensor,
        return_sequence: bool,
    ) -> tuple[Tensor | None, Tensor]:
        _, _, needs_ih, needs_hh, _, _ = needs = ctx.needs_input_grad[:6]
        exact = isinstance(sketch, Identity)
        keeps_states = nonlinearity == "tanh" or (exact and needs_hh)
        plan = _Plan(
            steps=x.shape[0],
            batch=x.shape[1],
            features=x.shape[2],
            hidden=len(weight_hh),
            dtype=product_dtype(x),
            nonlinearity=nonlinearity,
            states_sketch=None if keeps_states else sketch,
            input_sketch=None if exact or x.shape[2] == 1 else sketch,
        )
        leaves = (x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
        ctx.leaf_dtypes = [None if leaf is None else leaf.dtype for leaf in leaves]
        ctx.plan = plan
        ctx.set_materialize_grads(False)

        x, h0 = x.to(plan.dtype), h0.to(plan.dtype)
        bits = sequence = None
        if any(needs) and not keeps_states:
            bits = x.new_empty(packed_bytes(x.shape[:2].numel() * plan.hidden), dtype=torch.uint8)
        if return_sequence or (any(needs) and keeps_states):
            sequence = x.new_empty(plan.steps, plan.batch, plan.hidden)
        states, inputs = KeptSteps(plan.steps, key, 0), KeptSteps(plan.steps, key, 1)
        with torch.autocast(x.device.type, enabled=False):
            w_ih, w_hh = weight_ih.to(plan.dtype).t(), weight_hh.to(plan.dtype).t()
            bias = w_hh.new_zeros(plan.hidden)
            for part in (bias_ih, bias_hh):
                bias += 0 if part is None else part
            chunks = plan.chunks()
            buffer = x.new_empty(len(chunks[0]) + 1, plan.batch, plan.hidden)
            buffer[0] = h0
            for steps in chunks:
                h, x_now = buffer[: len(steps) + 1], x[steps.start : steps.stop]
                torch.addmm(bias, x_now.flatten(0, 1), w_ih, out=h[1:].view(-1, plan.hidden))
                for before, after in pairwise(h.unbind()):
                    after.addmm_(before, w_hh)
                    after.relu_() if nonlinearity == "relu" else after.tanh_()
                if needs_hh and plan.states_sketch:
                    states.add(plan.states_sketch, h[:-1], steps)
                if needs_ih and plan.input_sketch:
                    inputs.add(plan.input_sketch, x_now, steps)
                if bits is not None:
                    bits[plan.bits(steps)] = pack(h[1:].bool())  # NaN counts as active
                if sequence is not None:
                    sequence[steps.start : steps.stop] = h[1:]
                buffer[0] = h[-1]

        if needs_hh and not plan.states_sketch:
            states.tensors = Identity().compress(h0, key)
        if needs_ih and not plan.input_sketch:
            inputs.tensors = Identity().compress(x, key)
        ctx.states_count = len(states.tensors)
        ctx.save_for_backward(
            key,
            weight_ih if needs[0] else None,
            weight_hh,
            sequence if keeps_states else bits,
            *states.tensors,
            *inputs.tensors,
        )
        return sequence if return_sequence else None, buffer[0].clone()

    @staticmethod
    @refused(OF_RNN)
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        key, weight_ih, weight_hh, bits_or_states, *kept = ctx.saved_tensors
        states, inputs = kept[: ctx.states_count], kept[ctx.states_count :]
        needs_x, _, needs_ih, needs_hh, *needs_bias = needs = ctx.needs_input_grad[:6]
        plan: _Plan = ctx.plan
        states_keys, inputs_keys = (step_keys(fold_in(key, i), plan.steps) for i in (0, 1))
        with torch.autocast(weight_hh.device.type, enabled=False):
            w_hh = weight_hh.to(accumulation_dtype(plan.dtype))
            grad_x = None
            if needs_x:
                w_ih = weight_ih.to(w_hh.dtype)
                shape = plan.steps, plan.batch, plan.features
                grad_x = w_hh.new_empty(shape, dtype=ctx.leaf_dtypes[0])
            grad_w_ih = w_hh.new_zeros(plan.features, plan.hidden)
            grad_w_hh, grad_bias = torch.zeros_like(w_hh), w_hh.new_zeros(plan.hidden)
            grad_h = w_hh.new_zeros(plan.batch, plan.hidden)
            grad_h += 0 if grad_h_n is None else grad_h_n
            grad_h += 0 if grad_output is None else grad_output[-1]
            chunks = plan.chunks()
            buffer = w_hh.new_empty(len(chunks[0]), plan.batch, plan.hidden)
            for steps in reversed(chunks):
                here, delta = slice(steps.start, steps.stop), buffer[: len(steps)]
                if plan.states_sketch:  # read as bytes, which are copied faster than booleans
                    active = unpack(bits_or_states[plan.bits(steps)], delta.shape)
                    delta.copy_(active.view(torch.uint8))
                else:
                    delta.copy_(bits_or_states[here])
                _sweep_back(plan.nonlinearity, steps, delta, grad_h, grad_output, w_hh)
                if needs_hh:
                    if plan.states_sketch:
                        part = tuple(tensor[here] for tensor in states)
                    else:
                        part = (_states_before(bits_or_states, states[0], steps),)
                    sketch = plan.states_sketch or Identity()
                    keys = states_keys[here]
                    shape = (*delta.shape[:2], plan.hidden)
                    grad_w_hh += sketch.contract_steps(delta, part, shape, keys)
                if needs_ih:
                    part = tuple(tensor[here] for tensor in inputs)
                    sketch = plan.input_sketch or Identity()
                    keys = inputs_keys[here]
                    shape = (*delta.shape[:2], plan.features)
                    grad_w_ih += sketch.contract_steps(delta, part, shape, keys)
                if any(needs_bias):
                    grad_bias += delta.sum((0, 1))
                if grad_x is not None:
                    grad_x[here] = delta @ w_ih

        gradients = (grad_x, grad_h, grad_w_ih.t(), grad_w_hh.t(), grad_bias, grad_bias.clone())
        wanted = zip(gradients, ctx.leaf_dtypes, needs, strict=True)
        return *(grad.to(d) if n else None for grad, d, n in wanted), None, None, None, None


def _sweep_back(
    nonlinearity: Nonlinearity,
    steps: range,
    delta: Tensor,
    grad_h: Tensor,
    grad_output: Tensor | None,
    weight_hh: Tensor,
) -> None:
    """delta_t = grad_h_t * act'(t) and grad_h_{t-1} = delta_t W_hh + grad_output_{t-1}, backwards.

    On entry `delta` holds what act'(t) follows from; each is replaced by delta_t. `grad_h` is
    updated in place.
    """
    for t, delta_t in zip(reversed(steps), reversed(delta.unbind()), strict=True):
        if nonlinearity == "relu":
            _relu_backward(grad_h, delta_t, 0, grad_input=delta_t)
        else:
            _tanh_backward(grad_h, delta_t, grad_input=delta_t)
        if grad_output is None or t == 0:
            torch.mm(delta_t, weight_hh, out=grad_h)
        else:
            torch.addmm(grad_output[t - 1].to(delta.dtype), delta_t, weight_hh, out=grad_h)


def _states_before(sequence: Tensor, h0: Tensor, steps: range) -> Tensor:
    """h_{t-1} for those steps."""
    if steps.start:
        return sequence[steps.start - 1 : steps.stop - 1]
    return torch.cat([h0[None], sequence[: steps.stop - 1]])


def rnn(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    nonlinearity: Nonlinearity = "relu",
    sketch: Sketch,
    key: Tensor,
    return_sequence: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """One layer of `torch.nn.RNN` that keeps sketches of the states instead of the states.

    h_t = act(x_t W_ih^T + b_ih + h_{t-1} W_hh^T + b_hh), t = 0..T-1, h_{-1} = h0.
    Step t keeps the sketch of h_{t-1} drawn with `fold_in(fold_in(key, 0), t)` and
    that of x_t drawn with `fold_in(fold_in(key, 1), t)`; the batch elements are its
    rows. Draws of different steps are independent. An input of one feature is kept
    exactly. With tanh all states are kept exactly and W_hh's gradient is exact: only
    the input is sketched.

    Shapes: x (T, B, I), h0 (B, H), weight_ih (H, I), weight_hh (H, H), biases (H,) ->
    the states h_0..h_{T-1} (T, B, H), or None without `return_sequence` (they are then
    not held, except where they are kept), and h_{T-1} (B, H). Under autocast all is
    done and kept in autocast's dtype; backward runs in float32 at least.
    Differentiating twice raises RuntimeError. Raises ValueError for another
    `nonlinearity` and for shapes that do not fit.
    """
    if nonlinearity not in ("relu", "tanh"):
        raise ValueError(f"nonlinearity must be 'relu' or 'tanh', got {nonlinearity!r}")
    hidden, features = weight_ih.shape
    if x.dim() != 3 or x.shape[2] != features or not len(x):
        raise ValueError(f"x must be (T, B, {features}) with T > 0, got {tuple(x.shape)}")
    if h0.shape != (x.shape[1], hidden) or weight_hh.shape != (hidden, hidden):
        raise ValueError(
            f"h0 must be {(x.shape[1], hidden)} and weight_hh {(hidden, hidden)}, "
            f"got {tuple(h0.shape)} and {tuple(weight_hh.shape)}"
        )
    check_biases((bias_ih, bias_hh), hidden)
    leaves = (x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
    dtype = product_dtype(x)
    result: tuple[Tensor | None, Tensor]
    with without_modes(x):
        if can_fuse(x, hidden, nonlinearity, sketch, dtype):
            result = FusedRNN.apply(*leaves, sketch, key, return_sequence, dtype)
        else:
            result = _SketchedRNN.apply(*leaves, nonlinearity, sketch, key, return_sequence)
    return result


def rnn_weight_grad_variance(inputs: Tensor, delta: Tensor, sketch: Sketch) -> Tensor:
    """E |dW_hat - dW|^2 over the keys, dW = sum_t delta_t^T inputs_t, in closed form: shape ().

    The draws of different steps are independent and delta, the gradient with respect
    to what enters the activation, is exact: so the variances of the steps add up,
    each that of a linear layer (`linear_weight_grad_variance`).
    Shapes: delta (T, B, H); inputs (T, B, H) are the states h_{t-1} for W_hh, or
    (T, B, I) the input for W_ih. ReLU; with tanh that of W_hh is 0. Numbers of any size are
    brought into range first; the result is float64.
    """
    steps = zip(inputs, delta, strict=True)
    variance = sum(LinearResponse(x, grad).to_sketch(sketch) for x, grad in steps)
    return torch.tensor(variance, dtype=torch.float64, device=inputs.device)
