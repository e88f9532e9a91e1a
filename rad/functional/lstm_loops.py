"""The equations of an LSTM's steps in one pass over memory each, compiled by numba, in float32.

The sigmoid function is 1 / (1 + exp(-x)) with Cephes' polynomial for the exponential function, the
hyperbolic tangent a rational function of x (13th over 6th degree, as in Eigen): good to a few units
in the last place. Written without branches, so that loops become vector instructions. NaN stays so.

Arrays: work (n, B, 5 H), blocks o, i, f, g, tanh(c); h and c (n + 1, B, H); factors (n, 6, B, H);
delta (n, B, 4 H), gradients by the products of o, i, f, g.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Numbers = NDArray[np.float32]
Integers = NDArray[np.int32]

_F = np.float32
_ZERO, _ONE = _F(0), _F(1)
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.44269504088896341), _F(0.693359375), _F(-2.12194440e-4)
_E = tuple(
    _F(each)
    for each in (
        1.9875691500e-4,
        1.3981999507e-3,
        8.3334519073e-3,
        4.1665795894e-2,
        1.6666665459e-1,
        5.0000001201e-1,
    )
)
_LARGEST = _F(87)
_A = tuple(
    _F(each)
    for each in (
        -2.76076847742355e-16,
        2.00018790482477e-13,
        -8.60467152213735e-11,
        5.12229709037114e-08,
        1.48572235717979e-05,
        6.37261928875436e-04,
        4.89352455891786e-03,
    )
)
_B = tuple(
    _F(each)
    for each in (
        1.19825839466702e-06,
        1.18534705686654e-04,
        2.26843463243900e-03,
        4.89352518554385e-03,
    )
)
_SATURATED, _LINEAR = _F(7.90531110763549805), _F(0.0004)


@njit(inline="always")
def _tanh(x: np.float32) -> np.float32:
    near = _SATURATED if x > _SATURATED else (-_SATURATED if x < -_SATURATED else x)
    square = near * near
    p = _A[0] * square + _A[1]
    p = p * square + _A[2]
    p = p * square + _A[3]
    p = p * square + _A[4]
    p = p * square + _A[5]
    p = p * square + _A[6]
    q = _B[0] * square + _B[1]
    q = q * square + _B[2]
    q = q * square + _B[3]
    return x if abs(x) < _LINEAR else near * p / q


@njit(inline="always")
def _sigmoids(x: Numbers, bits: Integers, powers: Numbers) -> None:
    """Of a row, in place; `bits` and `powers` are one piece of memory, as long."""
    for j in range(len(x)):
        y = -x[j]
        y = _LARGEST if y > _LARGEST else (-_LARGEST if y < -_LARGEST else y)
        whole = np.floor(y * _LOG2E + _F(0.5))
        y = y - whole * _LN2_HIGH - whole * _LN2_LOW
        p = _E[0] * y + _E[1]
        p = p * y + _E[2]
        p = p * y + _E[3]
        p = p * y + _E[4]
        p = p * y + _E[5]
        x[j] = p * y * y + y + _ONE
        bits[j] = (np.int32(whole) + np.int32(127)) << np.int32(23)
    for j in range(len(x)):
        x[j] = _ONE / (_ONE + x[j] * powers[j])


@njit(inline="always")
def _gates(row: Numbers, before: Numbers, after: Numbers, bits: Integers, powers: Numbers) -> None:
    """From products to gates, the cell after them and its tanh. Short loops are vectorised."""
    units = len(before)
    _sigmoids(row[: 3 * units], bits, powers)
    i, f = row[units : 2 * units], row[2 * units : 3 * units]
    g, tanh_c = row[3 * units : 4 * units], row[4 * units :]
    for j in range(units):
        g[j] = _tanh(g[j])
    for j in range(units):
        after[j] = f[j] * before[j] + i[j] * g[j]
    for j in range(units):
        tanh_c[j] = _tanh(after[j])


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def activate(work: Numbers, c: Numbers, h: Numbers, t: int) -> None:
    """From the products of step t to its gates, c[t + 1], h[t + 1]."""
    batch, units = c.shape[1:]
    bits = np.empty(3 * units, np.int32)
    powers = bits.view(np.float32)
    for b in range(batch):
        row, state = work[t, b], h[t + 1, b]
        _gates(row, c[t, b], c[t + 1, b], bits, powers)
        o, tanh_c = row[:units], row[4 * units :]
        for j in range(units):
            state[j] = o[j] * tanh_c[j]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def activate_again(work: Numbers, c: Numbers) -> None:
    """The same of all steps, whose states are known."""
    batch, units = c.shape[1:]
    bits = np.empty(3 * units, np.int32)
    powers = bits.view(np.float32)
    for t in range(len(work)):
        for b in range(batch):
            _gates(work[t, b], c[t, b], c[t + 1, b], bits, powers)


@njit(inline="always")
def _by_sigmoid(factor: Numbers, value: Numbers, out: Numbers) -> None:
    for j in range(len(out)):
        out[j] = factor[j] * value[j] * (_ONE - value[j])


@njit(inline="always")
def _by_tanh(factor: Numbers, value: Numbers, out: Numbers) -> None:
    for j in range(len(out)):
        out[j] = factor[j] * (_ONE - value[j] * value[j])


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def factors(work: Numbers, c: Numbers, out: Numbers) -> None:
    """a, f, b_o, b_i, b_f, b_g of all steps."""
    steps, _, batch, units = out.shape
    for t in range(steps):
        for b in range(batch):
            row = work[t, b]
            o, i, f = row[:units], row[units : 2 * units], row[2 * units : 3 * units]
            g, tanh_c = row[3 * units : 4 * units], row[4 * units :]
            _by_tanh(o, tanh_c, out[t, 0, b])
            out[t, 1, b, :] = f
            _by_sigmoid(tanh_c, o, out[t, 2, b])
            _by_sigmoid(g, i, out[t, 3, b])
            _by_sigmoid(c[t, b], f, out[t, 4, b])
            _by_tanh(i, g, out[t, 5, b])


@njit(inline="always")
def _product(a: Numbers, b: Numbers, out: Numbers) -> None:
    for j in range(len(out)):
        out[j] = a[j] * b[j]


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def back(factors: Numbers, grad_h: Numbers, grad_c: Numbers, delta: Numbers, t: int) -> None:
    """Gradients by the products of step t, from those by its h and c; grad_c becomes c[t]'s."""
    batch, units = grad_h.shape
    for b in range(batch):
        of_h, of_c, row = grad_h[b], grad_c[b], delta[t, b]
        a, forget = factors[t, 0, b], factors[t, 1, b]
        for j in range(units):
            of_c[j] += of_h[j] * a[j]
        _product(of_h, factors[t, 2, b], row[:units])
        _product(of_c, factors[t, 3, b], row[units : 2 * units])
        _product(of_c, factors[t, 4, b], row[2 * units : 3 * units])
        _product(of_c, factors[t, 5, b], row[3 * units :])
        for j in range(units):
            of_c[j] *= forget[j]
