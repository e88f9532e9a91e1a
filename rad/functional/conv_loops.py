"""A convolution's weight gradient from kept positions alone, in loops compiled by numba.

The gradient by the output is laid out image by image with the outputs of a position side by side,
so that what a kept number is multiplied by is a run of memory. Slices of arrays are vectorised,
computed indices are not.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from rad.draws import loops


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def add_dense_taps(
    key: np.uint64,
    draws: tuple[bool, bool],
    images: tuple[int, int],
    values: np.ndarray,
    grad: np.ndarray,
    space: tuple[int, int],
    padding: tuple[int, int],
    sums: np.ndarray,
) -> bool:
    """Adds the products of the images from the first to before the second; strides are 1.

    values (B C, k): what was kept of rows of height times width positions (`space`), whose
    `draws` are distinct, and those of the first row, or not. grad (images, O, H, W) of those
    images; padding above and on the left; sums (C, rows, columns, O / groups), the columns of the
    kernel from the last to the first. Zeros are passed over, which before finite numbers changes
    nothing: returns False, with sums that mean nothing, where grad is not finite.
    """
    channels, rows, columns, outputs = sums.shape
    groups = grad.shape[1] // outputs
    height, width = space
    high, wide = height + rows - 1, width + columns - 1
    laid = np.zeros((groups, high, wide, outputs), sums.dtype)
    line, length = wide * outputs, columns * outputs
    flat_sums = sums.reshape(channels, rows, length)
    kept = values.shape[1]
    drawn, marks = np.empty(kept, np.int64), np.zeros(height * width, np.bool_)
    starts, numbers = np.empty(kept, np.int64), np.empty(kept, sums.dtype)
    start_of = np.empty(height * width, np.int64)
    for y in range(height):
        for x in range(width):
            start_of[y * width + x] = y * line + x * outputs
    above, left = rows - 1 - padding[0], columns - 1 - padding[1]
    if draws[1]:
        _draw(key, 0, draws[0], height * width, drawn, marks)
    for image in range(images[0], images[1]):
        if not _lay_out(grad[image - images[0]], above, left, laid):
            return False
        for channel in range(channels):
            row = image * channels + channel
            if not draws[1]:
                _draw(key, row, draws[0], height * width, drawn, marks)
            count = 0
            for slot in range(kept):
                starts[count], numbers[count] = start_of[drawn[slot]], values[row, slot]
                count += values[row, slot] != 0
            group = laid[channel * groups // channels].reshape(-1)
            for tap in range(rows):
                shift = (rows - 1 - tap) * line
                _add_runs(group, starts, numbers, count, shift, length, flat_sums[channel, tap])
    return True


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"contract"})
def add_sparse_taps(
    key: np.uint64,
    draws: tuple[bool, bool],
    images: tuple[int, int],
    values: np.ndarray,
    grad: np.ndarray,
    space: tuple[int, int],
    padding: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    sums: np.ndarray,
) -> bool:
    """The same with any strides and dilations; sums (C, rows, columns, O / groups) as in a kernel.

    Along an axis, tap t meets input i at output (i + padding - t dilation) / stride.
    """
    channels, rows, columns, outputs = sums.shape
    groups, high, wide = grad.shape[1] // outputs, grad.shape[2], grad.shape[3]
    height, width = space
    laid = np.zeros((groups, high, wide, outputs), sums.dtype)
    lines = _outputs(height, high, rows, padding[0], stride[0], dilation[0])
    places = _outputs(width, wide, columns, padding[1], stride[1], dilation[1])
    kept = values.shape[1]
    drawn, marks = np.empty(kept, np.int64), np.zeros(height * width, np.bool_)
    starts, numbers = np.empty(kept, np.int64), np.empty(kept, sums.dtype)
    ys, xs, nonzero = np.empty(kept, np.int64), np.empty(kept, np.int64), np.empty_like(numbers)
    y_of, x_of = np.empty(height * width, np.int64), np.empty(height * width, np.int64)
    for y in range(height):
        for x in range(width):
            y_of[y * width + x], x_of[y * width + x] = y, x
    if draws[1]:
        _draw(key, 0, draws[0], height * width, drawn, marks)
    for image in range(images[0], images[1]):
        if not _lay_out(grad[image - images[0]], 0, 0, laid):
            return False
        for channel in range(channels):
            row = image * channels + channel
            if not draws[1]:
                _draw(key, row, draws[0], height * width, drawn, marks)
            group = laid[channel * groups // channels].reshape(-1)
            present = 0
            for slot in range(kept):
                ys[present], xs[present] = y_of[drawn[slot]], x_of[drawn[slot]]
                nonzero[present] = values[row, slot]
                present += values[row, slot] != 0
            for down in range(rows):
                for along in range(columns):
                    count = 0
                    for i in range(present):
                        line, place = lines[down, ys[i]], places[along, xs[i]]
                        starts[count] = (line * wide + place) * outputs
                        numbers[count] = nonzero[i]
                        count += line >= 0 and place >= 0
                    _add_runs(group, starts, numbers, count, 0, outputs, sums[channel, down, along])
    return True


@njit(nogil=True, cache=True, error_model="numpy")
def _outputs(
    inputs: int, outputs: int, taps: int, padding: int, stride: int, dilation: int
) -> np.ndarray:
    """Where along an axis each tap meets each input: (taps, inputs), -1 where it does not."""
    found = np.full((taps, inputs), -1)
    for tap in range(taps):
        for i in range(inputs):
            reach = i + padding - tap * dilation
            if reach >= 0 and reach % stride == 0 and reach // stride < outputs:
                found[tap, i] = reach // stride
    return found


@njit(inline="always")
def _draw(
    key: np.uint64, row: int, distinct: bool, high: int, drawn: np.ndarray, marks: np.ndarray
) -> None:
    """The positions of a row, into drawn (k,)."""
    if distinct:
        loops.distinct_integers(key, row, high, drawn, marks)
    else:
        loops.integers(key, row, high, drawn)


@njit(nogil=True, cache=True, error_model="numpy")
def _lay_out(grad: np.ndarray, above: int, left: int, laid: np.ndarray) -> bool:
    """grad (O, H, W) into laid (groups, high, wide, O / groups), that many lines further down and
    positions to the right (up and to the left where negative); whether all of it is finite."""
    groups, high, wide, outputs = laid.shape
    first, last = max(0, -above), min(grad.shape[1], high - above)
    begin, end = max(0, -left), min(grad.shape[2], wide - left)
    for group in range(groups):
        for y in range(first, last):
            line = laid[group, y + above, begin + left : end + left]
            for output in range(outputs):
                source = grad[group * outputs + output, y, begin:end]
                for x in range(len(source)):
                    line[x, output] = source[x]
    return _nothing(grad.reshape(-1)) == 0


@njit(nogil=True, cache=True, error_model="numpy", fastmath={"reassoc"})
def _nothing(numbers: np.ndarray) -> float:
    """0, or NaN where one of them is not finite."""
    total = numbers[0] * 0
    for i in range(len(numbers)):
        total += numbers[i] * 0
    return total


@njit(inline="always")
def _add_runs(
    numbers_of: np.ndarray,
    starts: np.ndarray,
    factors: np.ndarray,
    count: int,
    shift: int,
    length: int,
    total: np.ndarray,
) -> None:
    """Adds to total (length,) the runs of that length from the starts on, times their factors."""
    fours = count // 4 * 4
    for i in range(0, fours, 4):
        a, b, c, d = starts[i], starts[i + 1], starts[i + 2], starts[i + 3]
        a, b, c, d = a + shift, b + shift, c + shift, d + shift
        run_a, run_b = numbers_of[a : a + length], numbers_of[b : b + length]
        run_c, run_d = numbers_of[c : c + length], numbers_of[d : d + length]
        by_a, by_b, by_c, by_d = factors[i], factors[i + 1], factors[i + 2], factors[i + 3]
        for j in range(length):
            total[j] += by_a * run_a[j] + by_b * run_b[j] + by_c * run_c[j] + by_d * run_d[j]
    for i in range(fours, count):
        run, by = numbers_of[starts[i] + shift : starts[i] + shift + length], factors[i]
        for j in range(length):
            total[j] += by * run[j]
