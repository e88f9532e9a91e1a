"""ReLU and 2 x 2 average pooling in one pass over memory, compiled by numba.

Images (count, height, width) come as addresses (`rad.backends.addresses`); `zero` tells their type.
The operations of `rad.functional.relu_pool` in their order, so that results are the same to the
bit; its four bits an output pass through a short buffer of bytes, two of which make one.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rad.backends.addresses import numbers_at

_U8, _FOUR = np.uint8(0), np.uint16(4)


@njit(nogil=True, cache=True, error_model="numpy")
def relu_avg_pool(
    images: int, out: int, packed: int, count: int, height: int, width: int, zero: np.generic
) -> None:
    """Means (count, height // 2, width // 2) of what is above 0, and which inputs are."""
    rows, w = height // 2, width // 2
    x, y = numbers_at(images, count * height * width, zero), numbers_at(out, count * rows * w, zero)
    octets = numbers_at(packed, (count * rows * w + 1) // 2, _U8)
    pairs = np.zeros(w // 2 + 1, np.uint16)
    active, quarter, nothing = pairs.view(np.uint8), x.dtype.type(0.25), x.dtype.type(0)
    waiting, done = 0, 0
    for number in range(count * rows):
        start = (number // rows * height + number % rows * 2) * width
        above, below = x[start : start + width], x[start + width : start + 2 * width]
        mean, bits = y[number * w : number * w + w], active[waiting : waiting + w]
        for j in range(w):
            a, b, c, d = above[2 * j], above[2 * j + 1], below[2 * j], below[2 * j + 1]
            total = nothing + (nothing if a < 0 else a)
            total = total + (nothing if b < 0 else b)
            total = total + (nothing if c < 0 else c)
            mean[j] = (total + (nothing if d < 0 else d)) * quarter
            upper = np.uint8(not a <= 0) | (np.uint8(not b <= 0) << 1)
            lower = np.uint8(not c <= 0) | (np.uint8(not d <= 0) << 1)
            bits[j] = np.uint8(upper | (lower << 2))
        waiting += w
        whole = waiting // 2
        place = octets[done : done + whole]
        for i in range(whole):
            place[i] = np.uint8(pairs[i] | (pairs[i] >> _FOUR))
        done, waiting = done + whole, waiting % 2
        active[0] = active[2 * whole]
    if waiting:
        octets[done] = active[0]


@njit(nogil=True, cache=True, error_model="numpy")
def relu_avg_pool_backward(
    packed: int, grad_output: int, out: int, count: int, height: int, width: int, zero: np.generic
) -> None:
    """A quarter of each mean's gradient to its active inputs, others 0: (count, height, width)."""
    rows, w = height // 2, width // 2
    grad = numbers_at(grad_output, count * rows * w, zero)
    y, octets = (
        numbers_at(out, count * height * width, zero),
        numbers_at(packed, (count * rows * w + 1) // 2, _U8),
    )
    pairs, nothing = np.zeros(w // 2 + 2, np.uint16), y.dtype.type(0)
    active, quarter = pairs.view(np.uint8), y.dtype.type(0.25)
    for image in range(count):
        for row in range(rows):
            first = (image * rows + row) * w
            place = octets[first // 2 : (first + w + 1) // 2]
            for i in range(len(place)):
                both = np.uint16(place[i])
                pairs[i] = (both | (both << _FOUR)) & np.uint16(0x0F0F)
            bits, source = active[first % 2 :], grad[first : first + w]
            start = (image * height + 2 * row) * width
            above, below = y[start : start + width], y[start + width : start + 2 * width]
            for j in range(w):
                share, which = source[j] * quarter, bits[j]
                above[2 * j] = share if which & 1 else nothing
                above[2 * j + 1] = share if which & 2 else nothing
                below[2 * j] = share if which & 4 else nothing
                below[2 * j + 1] = share if which & 8 else nothing
            if width % 2:
                above[width - 1] = below[width - 1] = nothing
        if height % 2:
            y[((image + 1) * height - 1) * width : (image + 1) * height * width] = nothing
