"""Gated recurrent units whose backward pass reads rounded factors, or calculates its gates again.

With gates r and z through the sigmoid function, q = W_hn h_{t-1} + b_hn,
n = tanh(W_in x_t + b_in + r q) and h_t = (1 - z) n + z h_{t-1}. Back in time, number by number,

    dn = dh_t a_n      a_n = (1 - z) (1 - n^2)
    dr = dh_t a_r      a_r = a_n q r (1 - r)
    dz = dh_t a_z      a_z = (h_{t-1} - n) z (1 - z)
    dq = dh_t a_q      a_q = a_n r
    dh_{t-1} = dh_t z + (dr, dz, dq) W_hh

The five factors a_n, a_r, a_z, a_q, z of each unit and step are what `rad.functional.gated`
rounds, or forms again. Within a step none is multiplied with another: products of independent
draws are those of a path from step to step.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rad.functional.cells import Cell
from rad.functional.gated import gated
from rad.sketches.base import Sketch

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class GRUCell(Cell):
    """Work: n, r, z and q. Factors: z, a_n, a_r, a_z, a_q."""

    blocks = 4
    input_blocks, input_order = range(3), (2, 0, 1)
    state_blocks, state_order = range(1, 4), (0, 1, 2)
    factor_count = 5
    has_cells = False

    def advance(self, work: Tensor, h: Tensor, c: Tensor | None, w_hh: Tensor) -> None:
        units = h.shape[2]
        n, r, z, q = work.unflatten(2, (4, units)).unbind(2)
        parts = (work[..., units:], work[..., units : 3 * units], n, r, z, q, h[1:])
        before = h[0]
        for products, gates, n_t, r_t, z_t, q_t, h_t in zip(
            *(part.unbind() for part in parts), strict=True
        ):
            products.addmm_(before, w_hh)
            gates.sigmoid_()
            n_t.addcmul_(r_t, q_t).tanh_()
            before = torch.lerp(n_t, before, z_t, out=h_t)

    def again(self, work: Tensor, h_before: Tensor, c: Tensor | None, w_hh: Tensor) -> None:
        units = h_before.shape[2]
        n, r, _, q = work.unflatten(2, (4, units)).unbind(2)
        work.flatten(0, 1)[:, units:].addmm_(h_before.flatten(0, 1), w_hh)
        work[..., units : 3 * units].sigmoid_()
        n.addcmul_(r, q).tanh_()

    def factors(self, work: Tensor, h_before: Tensor, c: Tensor | None, out: Tensor) -> None:
        n, r, z, q = work.unflatten(2, (4, h_before.shape[2])).unbind(2)
        keep, a_n, a_r, a_z, a_q = out.unbind(1)
        _tanh_backward(1 - z, n, grad_input=a_n)
        torch.mul(a_n, r, out=a_q)
        _sigmoid_backward(a_n * q, r, grad_input=a_r)
        _sigmoid_backward(h_before - n, z, grad_input=a_z)
        keep.copy_(z)

    def sweep(
        self,
        factors: Tensor,
        delta: Tensor,
        grad_h: Tensor,
        grad_c: Tensor | None,
        outer: list[Tensor | None],
        w_hh: Tensor,
    ) -> None:
        blocks = delta.unflatten(2, (4, -1)).transpose(1, 2)  # (n, 4, B, H)
        parts = (factors[:, 0], factors[:, 1:], blocks, delta[..., grad_h.shape[1] :])
        steps = list(zip(*(part.unbind() for part in parts), outer, strict=True))
        for z_t, a_t, blocks_t, of_state_t, outer_t in reversed(steps):
            torch.mul(a_t, grad_h, out=blocks_t)
            if outer_t is None:
                grad_h.mul_(z_t)
            else:
                torch.addcmul(outer_t, grad_h, z_t, out=grad_h)
            grad_h.addmm_(of_state_t, w_hh)


GRU_CELL = GRUCell()


def gru(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    sketch: Sketch,
    key: Tensor,
    return_sequence: bool = True,
) -> tuple[Tensor | None, Tensor]:
    """One layer of `torch.nn.GRU` that keeps less (`rad.functional.gated`).

    Draws, what is kept and gradients: as of `rad.functional.lstm`, with five factors a step.
    Shapes: x (T, B, I), h0 (B, H), weight_ih (3 H, I), weight_hh (3 H, H), biases (3 H,) -> the
    states h_0..h_{T-1} (T, B, H), or None without `return_sequence`, and h_{T-1} (B, H).
    Differentiating twice raises RuntimeError. Raises ValueError for shapes that do not fit.
    """
    leaves = (x, h0, None, weight_ih, weight_hh, bias_ih, bias_hh)
    sequence, h_n, _ = gated(GRU_CELL, *leaves, sketch, key, return_sequence)
    return sequence, h_n
