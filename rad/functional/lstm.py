"""Long short-term memory whose backward pass reads rounded factors, or calculates its gates again.

With gates i, f, g, o (g through tanh, the others through the sigmoid function),
c_t = f c_{t-1} + i g and h_t = o tanh(c_t). Back in time, number by number,

    dc_t += dh_t a       a = o (1 - tanh^2 c_t)
    do = dh_t b_o        b_o = tanh(c_t) o (1 - o)
    di = dc_t b_i        b_i = g i (1 - i)
    df = dc_t b_f        b_f = c_{t-1} f (1 - f)
    dg = dc_t b_g        b_g = i (1 - g^2)
    dc_{t-1} = dc_t f    dh_{t-1} = (di, df, dg, do) W_hh

The six factors a, b_i, b_f, b_g, b_o, f of each unit and step are what `rad.functional.gated`
rounds, or forms again. Of two that are multiplied with each other there are a b_i, a b_f, a b_g
within a step, and those of a path from step to step: all of independent draws. In the product of
two, relative errors e and e' become e + e' + e e': what rounding adds at each step, not what it
multiplies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rad import backends
from rad.functional.cells import Cell
from rad.functional.gated import gated
from rad.sketches.base import Sketch

_sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
_tanh_backward = torch.ops.aten.tanh_backward.grad_input


class LSTMCell(Cell):
    """Work: the gates o, i, f, g, and tanh(c). Factors: a, f, b_o, b_i, b_f, b_g."""

    blocks = 5
    input_blocks = state_blocks = range(4)
    input_order = state_order = (3, 0, 1, 2)
    factor_count = 6
    has_cells = True

    def advance(self, work: Tensor, h: Tensor, c: Tensor | None, w_hh: Tensor) -> None:
        assert c is not None
        units = h.shape[2]
        if _in_loops(work):
            self._advance_in_loops(work, h, c, w_hh)
            return
        parts = (work[..., : 4 * units], work[..., : 3 * units], *_blocks(work, units))
        steps = zip(*(part.unbind() for part in parts), strict=True)
        before_h, before_c = h[0], c[0]
        after = zip(h[1:].unbind(), c[1:].unbind(), strict=True)
        for (products, sigmoids, o, i, f, g, tanh_c), (h_t, c_t) in zip(steps, after, strict=True):
            products.addmm_(before_h, w_hh)
            sigmoids.sigmoid_()
            g.tanh_()
            torch.mul(i, g, out=c_t).addcmul_(f, before_c)
            torch.tanh(c_t, out=tanh_c)
            torch.mul(o, tanh_c, out=h_t)
            before_h, before_c = h_t, c_t

    def _advance_in_loops(self, work: Tensor, h: Tensor, c: Tensor, w_hh: Tensor) -> None:
        from rad.functional import lstm_loops

        arrays = work.numpy(), c.numpy(), h.numpy()
        products = work[..., : 4 * h.shape[2]]
        steps = zip(products.unbind(), h[:-1].unbind(), strict=True)
        for t, (products_t, before) in enumerate(steps):
            products_t.addmm_(before, w_hh)
            lstm_loops.activate(*arrays, t)

    def again(self, work: Tensor, h_before: Tensor, c: Tensor | None, w_hh: Tensor) -> None:
        assert c is not None
        units = h_before.shape[2]
        work.flatten(0, 1)[:, : 4 * units].addmm_(h_before.flatten(0, 1), w_hh)
        if _in_loops(work):
            from rad.functional import lstm_loops

            lstm_loops.activate_again(work.numpy(), c.numpy())
            return
        _, i, f, g, tanh_c = _blocks(work, units)
        work[..., : 3 * units].sigmoid_()
        g.tanh_()
        torch.mul(i, g, out=c[1:])
        before, *after = c.unbind()
        for f_t, c_t in zip(f.unbind(), after, strict=True):
            before = c_t.addcmul_(f_t, before)
        torch.tanh(c[1:], out=tanh_c)

    def factors(self, work: Tensor, h_before: Tensor, c: Tensor | None, out: Tensor) -> None:
        assert c is not None
        if _in_loops(work):
            from rad.functional import lstm_loops

            lstm_loops.factors(work.numpy(), c.numpy(), out.numpy())
            return
        o, i, f, g, tanh_c = _blocks(work, h_before.shape[2])
        a, forget, b_o, b_i, b_f, b_g = out.unbind(1)
        _tanh_backward(o, tanh_c, grad_input=a)
        forget.copy_(f)
        _sigmoid_backward(tanh_c, o, grad_input=b_o)
        _sigmoid_backward(g, i, grad_input=b_i)
        _sigmoid_backward(c[:-1], f, grad_input=b_f)
        _tanh_backward(i, g, grad_input=b_g)

    def sweep(
        self,
        factors: Tensor,
        delta: Tensor,
        grad_h: Tensor,
        grad_c: Tensor | None,
        outer: list[Tensor | None],
        w_hh: Tensor,
    ) -> None:
        assert grad_c is not None
        if _in_loops(delta):
            self._sweep_in_loops(factors, delta, grad_h, grad_c, outer, w_hh)
            return
        blocks = delta.unflatten(2, (4, -1)).transpose(1, 2)  # (n, 4, B, H)
        of_state, of_cell = blocks[:, 0], blocks[:, 1:]
        a, forget, b_o = factors[:, :3].unbind(1)
        parts = (a, forget, b_o, factors[:, 3:], of_state, of_cell, delta)
        steps = list(zip(*(part.unbind() for part in parts), outer, strict=True))
        for a_t, f_t, b_o_t, b_t, of_state_t, of_cell_t, delta_t, outer_t in reversed(steps):
            grad_c.addcmul_(grad_h, a_t)
            torch.mul(grad_h, b_o_t, out=of_state_t)
            torch.mul(b_t, grad_c, out=of_cell_t)
            grad_c.mul_(f_t)
            _step_back(delta_t, w_hh, outer_t, grad_h)

    def _sweep_in_loops(
        self,
        factors: Tensor,
        delta: Tensor,
        grad_h: Tensor,
        grad_c: Tensor,
        outer: list[Tensor | None],
        w_hh: Tensor,
    ) -> None:
        from rad.functional import lstm_loops

        arrays = factors.numpy(), grad_h.numpy(), grad_c.numpy(), delta.numpy()
        steps = list(zip(delta.unbind(), outer, strict=True))
        for t, (delta_t, outer_t) in reversed(list(enumerate(steps))):
            lstm_loops.back(*arrays, t)
            _step_back(delta_t, w_hh, outer_t, grad_h)


def _in_loops(x: Tensor) -> bool:
    return x.dtype == torch.float32 and backends.in_loops(x)


def _step_back(delta: Tensor, w_hh: Tensor, outer: Tensor | None, grad_h: Tensor) -> None:
    """The gradient by the state before a step, into `grad_h`."""
    if outer is None:
        torch.mm(delta, w_hh, out=grad_h)
    else:
        torch.addmm(outer, delta, w_hh, out=grad_h)


def _blocks(work: Tensor, units: int) -> tuple[Tensor, ...]:
    """The blocks of the work of all steps, (n, B, H) each."""
    return work.unflatten(2, (-1, units)).unbind(2)


LSTM_CELL = LSTMCell()


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    sketch: Sketch,
    key: Tensor,
    return_sequence: bool = True,
) -> tuple[Tensor | None, Tensor, Tensor]:
    """One layer of `torch.nn.LSTM`, without projection, that keeps less (`rad.functional.gated`).

    With a `StochasticRounding` or `DitheredRounding`, step t keeps that of h_{t-1} drawn with
    `fold_in(fold_in(key, 0), t)`, of x_t with `fold_in(fold_in(key, 1), t)` and of its six factors
    with `fold_in(fold_in(key, 2), t)`, whose rows are the examples, factor after factor. All
    gradients are unbiased. An input whose grids would take more than they save is kept as it is.
    With any other sketch the states and the input are kept, nothing is drawn, and all gradients are
    exact.

    Shapes: x (T, B, I), h0 and c0 (B, H), weight_ih (4 H, I), weight_hh (4 H, H), biases (4 H,) ->
    the states h_0..h_{T-1} (T, B, H), or None without `return_sequence` (they are then not held,
    except where they are kept), and h_{T-1} and c_{T-1} (B, H). Under autocast all is done and kept
    in autocast's dtype; gradients flow in float32 at least. Differentiating twice raises
    RuntimeError. Raises ValueError for shapes that do not fit.
    """
    leaves = (x, h0, c0, weight_ih, weight_hh, bias_ih, bias_hh)
    sequence, h_n, c_n = gated(LSTM_CELL, *leaves, sketch, key, return_sequence)
    assert c_n is not None
    return sequence, h_n, c_n
