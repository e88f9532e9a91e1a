"""Gated recurrent layers as plain programs whose derivatives, number by number, are rounded."""

from __future__ import annotations

import torch
from torch import Tensor

from rad.functional import linear
from rad.sketches import Identity, Sketch, fold_in

Weights = list[Tensor | None]


def _rounded(
    value: Tensor, arguments: list[Tensor], derivatives: list[Tensor], detached: list[Tensor]
) -> Tensor:
    """`value`, whose derivative by each argument is what is given, number by number."""
    moved = zip(arguments, derivatives, detached, strict=True)
    return value.detach() + sum(d * (a - b) for a, d, b in moved)  # type: ignore[return-value]


def _step_lstm(gates: Tensor, h: Tensor, c: Tensor, read: _Read) -> tuple[Tensor, Tensor]:
    inner = [*gates.chunk(4, 1), c]
    i, f, g, o, before = fresh = [t.detach().requires_grad_() for t in inner]
    after = f.sigmoid() * before + i.sigmoid() * g.tanh()
    cell = after.detach().requires_grad_()
    state = o.sigmoid() * cell.tanh()
    b_i, b_f, b_g, forget = torch.autograd.grad(after.sum(), [i, f, g, before])
    a, b_o = torch.autograd.grad(state.sum(), [cell, o])
    a, forget, b_o, b_i, b_f, b_g = read([a, forget, b_o, b_i, b_f, b_g])
    of_cell = [inner[0], inner[1], inner[2], inner[4]]
    base = [fresh[0].detach(), fresh[1].detach(), fresh[2].detach(), fresh[4].detach()]
    c = _rounded(after, of_cell, [b_i, b_f, b_g, forget], base)
    h = _rounded(state, [c, inner[3]], [a, b_o], [cell.detach(), o.detach()])
    return h, c


def _step_gru(of_x: Tensor, of_h: Tensor, h: Tensor, read: _Read) -> Tensor:
    (r_x, z_x, n_x), (r_h, z_h, q) = of_x.chunk(3, 1), of_h.chunk(3, 1)
    inner = [n_x, r_x + r_h, z_x + z_h, q, h]
    n, r, z, product, before = fresh = [t.detach().requires_grad_() for t in inner]
    new = torch.tanh(n + r.sigmoid() * product)
    state = (1 - z.sigmoid()) * new + z.sigmoid() * before
    a_n, a_r, a_z, a_q, keep = torch.autograd.grad(state.sum(), fresh)
    keep, a_n, a_r, a_z, a_q = read([keep, a_n, a_r, a_z, a_q])
    return _rounded(state, inner, [a_n, a_r, a_z, a_q, keep], [t.detach() for t in fresh])


class _Read:
    """What the derivatives of a step, rounded together, are read as."""

    def __init__(self, sketch: Sketch, key: Tensor) -> None:
        self.sketch, self.key = sketch, key

    def __call__(self, derivatives: list[Tensor]) -> list[Tensor]:
        rows = torch.cat(derivatives)
        kept = self.sketch.compress(rows, self.key)
        read = self.sketch.decompress(kept, tuple(rows.shape), rows.dtype, self.key)
        return list(read.chunk(len(derivatives)))


def unrolled(
    x: Tensor, states: list[Tensor], weights: Weights, sketch: Sketch, key: Tensor
) -> tuple[Tensor, ...]:
    """The sequence and the last states of an LSTM (two states) or GRU (one), as `sketch` has them.

    `weights` are those by input and state, and their biases.
    """
    weight_ih, weight_hh, bias_ih, bias_hh = (*weights, None, None)[:4]
    assert weight_ih is not None
    assert weight_hh is not None
    shape = x.shape[1:]
    of_input = sketch if sketch.nbytes(shape, x.dtype) < x[0].nbytes else Identity()
    h, *rest = states
    sequence = []
    for t, x_t in enumerate(x):
        key_h, key_x, key_f = (fold_in(fold_in(key, place), t) for place in range(3))
        of_x = linear(x_t, weight_ih, bias_ih, sketch=of_input, key=key_x)
        of_h = linear(h, weight_hh, bias_hh, sketch=sketch, key=key_h)
        read = _Read(sketch, key_f)
        if rest:
            h, rest[0] = _step_lstm(of_x + of_h, h, rest[0], read)
        else:
            h = _step_gru(of_x, of_h, h, read)
        sequence.append(h)
    return torch.stack(sequence), h, *rest
