"""The recurrent layer of `rad.functional.recurrent` as one kernel for each pass, on a GPU.

What is kept is what that layer keeps, the same draws included, but that the bits of each unit are
packed over the batch: T * ceil(B / 8) * H bytes. No chunk of the states stands in memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rad import backends
from rad.functional.second_order import OF_RNN, refused
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity


def can_fuse(x: Tensor, hidden: int, nonlinearity: str, sketch: Sketch, dtype: torch.dtype) -> bool:
    """Whether there is a kernel for this layer, x (T, B, I) and the states being of `dtype`.

    There is for ReLU, one input feature, at most 128 units, float32 and bfloat16, where kernels run
    at all, with `Identity` and every sketch made of `Selectors`: those of the paper, drawn with
    replacement.
    """
    if not (backends.use_kernels(x) and nonlinearity == "relu"):
        return False
    return _fits(x.shape[2], hidden, sketch, dtype)


def _fits(features: int, hidden: int, sketch: Sketch, dtype: torch.dtype) -> bool:
    from rad.kernels import recurrent

    selected = sketch.selectors(hidden)
    known = isinstance(sketch, Identity) or (selected is not None and not selected.distinct)
    fits = features == 1 and hidden <= recurrent.MAX_HIDDEN
    return known and fits and dtype in (torch.float32, torch.bfloat16)


class FusedRNN(torch.autograd.Function):
    """`rad.functional.recurrent.rnn` where `can_fuse`, with states of `dtype`.

    Runs wherever Triton does: on the CPU in its interpreter.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        h0: Tensor,
        weight_ih: Tensor,
        weight_hh: Tensor,
        bias_ih: Tensor | None,
        bias_hh: Tensor | None,
        sketch: Sketch,
        key: Tensor,
        return_sequence: bool,
        dtype: torch.dtype,
    ) -> tuple[Tensor | None, Tensor]:
        from rad.kernels import recurrent

        needs_x, _, needs_ih, needs_hh, _, _ = needs = ctx.needs_input_grad[:6]
        exact = isinstance(sketch, Identity)
        keeps_states = exact and needs_hh
        leaves = (x, h0, weight_ih, weight_hh, bias_ih, bias_hh)
        ctx.leaf_dtypes = [None if leaf is None else leaf.dtype for leaf in leaves]
        ctx.steps, ctx.dtype = len(x), dtype
        ctx.selected = sketch.selectors(len(weight_hh)) if needs_hh else None
        ctx.set_materialize_grads(False)

        x, h0 = x.to(dtype), h0.to(dtype)
        bias = h0.new_zeros(len(weight_hh))
        for part in (bias_ih, bias_hh):
            bias += 0 if part is None else part
        kept, last = recurrent.forward(
            x,
            h0,
            weight_ih.to(dtype),
            weight_hh.to(dtype),
            bias,
            key,
            ctx.selected,
            bits=any(needs) and not keeps_states,
            sequence=return_sequence or keeps_states,
        )
        sequence = kept.sequence
        ctx.save_for_backward(
            key,
            Identity().compress(x, key)[0] if needs_ih else None,
            Identity().compress(h0, key)[0] if keeps_states else None,
            weight_ih if needs_x else None,
            weight_hh,
            kept.sketch,
            kept.bits,
            sequence if keeps_states else None,
        )
        return sequence if return_sequence else None, last

    @staticmethod
    @refused(OF_RNN)
    def backward(
        ctx: Any, grad_output: Tensor | None, grad_h_n: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        from rad.kernels import recurrent

        key, x, h0, weight_ih, weight_hh, *kept = ctx.saved_tensors
        if grad_h_n is None:
            assert grad_output is not None
            grad_h_n = torch.zeros_like(grad_output[0])
        grads = recurrent.backward(
            x,
            h0,
            weight_ih,
            weight_hh,
            key,
            recurrent.Kept(*kept),
            ctx.selected,
            grad_output,
            grad_h_n,
            ctx.steps,
        )
        gradients = (*grads, grads.bias.clone())
        wanted = zip(gradients, ctx.leaf_dtypes, ctx.needs_input_grad[:6], strict=True)
        return *(g.to(d) if n and g is not None else None for g, d, n in wanted), *(None,) * 4
