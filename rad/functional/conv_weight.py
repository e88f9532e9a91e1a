"""A convolution's weight gradient from the kept positions alone, without a dense input.

A sampled input is zero but for the kept positions, half of which are zero, too, after a ReLU: at a
keep fraction of 0.1 the products that are left are a twentieth of all. The gradient is that of a
dense reading up to the order of sums.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from rad import backends
from rad.draws.selectors import Selectors
from rad.dtypes import accumulation_dtype
from rad.functional.geometry import Geometry
from rad.packing.pieces import pieces

MOST = 0.4
"""Of all positions, those kept, up to which loops were measured faster than torch's dense ones,
where no kept number is zero: at 0.4 they take 0.55 to 0.97 of their time, at 0.2 0.33 to 0.79, for
1 x 1 to 5 x 5 kernels on 16 to 128 channels and one thread; after a ReLU 0.35 to 0.81 and 0.24 to
0.67. Zeros that are drawn do not count: a dense reading stands in memory, and what a layer needs is
not to depend on a draw."""

MOST_WITH_GAPS = 0.2
"""The same with strides or dilations, where each tap of the kernel is a run of its own: 0.94 of the
time at 0.2, 1.09 at 0.25."""

SHORTEST = 16
"""Numbers in a run below which loops do not pay, as in depthwise convolutions."""

IMAGES = 8
"""For each thread, below which starting another takes longer than it saves."""

PIECES = 5
"""Into how many parts a gradient is cut that has to be cast or laid out for the loops."""

Pair = tuple[int, int]


def weight_grad_from_positions(
    drawn: Selectors,
    grad_output: Tensor,
    kept: Tensor,
    weight: Tensor,
    shape: torch.Size,
    geometry: Geometry,
    key: Tensor,
) -> Tensor | None:
    """The gradient of a weight (O, C / groups, *kernel), from what was kept (rows, k) of an input.

    Of the dtype in which sums run. None where a dense reading is faster or has to be: for other
    selectors than one-hot ones, other devices and paddings, transposed convolutions, three axes,
    many kept numbers, and a grad_output that is not finite somewhere, which the zeros of a dense
    reading turn into NaN.
    """
    if drawn.signs or geometry.is_transposed or not shape.numel():
        return None
    in_loops = all(map(backends.in_loops, (grad_output, kept, key)))
    if not in_loops or weight.dim() > 4 or geometry.padding_mode != "constant":
        return None
    joined = geometry.has_unit_steps
    run = len(weight) // geometry.groups * (weight.shape[-1] if joined else 1)
    share = kept.numel() / shape.numel()
    if run < SHORTEST or share > (MOST if joined else MOST_WITH_GAPS):
        return None
    wide = accumulation_dtype(grad_output.dtype)
    values = kept.reshape(-1, drawn.kept).to(wide)
    sums = _sums(drawn, grad_output, values, weight, shape, geometry, key)
    if sums is None:
        return None
    sums *= drawn.decode
    kernel = (sums.flip(2) if joined else sums).unflatten(0, (geometry.groups, -1))
    return kernel.permute(0, 4, 1, 2, 3).reshape(weight.shape)


def _sums(
    drawn: Selectors,
    grad_output: Tensor,
    values: Tensor,
    weight: Tensor,
    shape: torch.Size,
    geometry: Geometry,
    key: Tensor,
) -> Tensor | None:
    """The loops' sums (C, rows, columns, O / groups); None where a gradient is not finite.

    The images are divided among torch's threads, each with sums of its own.
    """
    from rad.draws.loops import key_word
    from rad.functional.conv_loops import add_dense_taps, add_sparse_taps

    draws = (key_word(key), (drawn.distinct, not drawn.different))
    place = (_pair(shape[2:], 1), _pair(geometry.before, 0))
    steps = (_pair(geometry.stride, 1), _pair(geometry.dilation, 1))
    size = (shape[1], *_pair(weight.shape[2:], 1), len(weight) // geometry.groups)
    ready = grad_output.dtype == values.dtype and grad_output.is_contiguous()

    def of_images(images: range) -> Tensor | None:
        sums = values.new_zeros(size)
        for part in pieces(images, len(images) if ready else -(-len(images) // PIECES)):
            grad = grad_output[part.start : part.stop].to(values.dtype).contiguous()
            lines = grad.view(len(grad), grad.shape[1], *_pair(grad.shape[2:], 1))
            arrays = (values.numpy(), lines.detach().numpy())
            given = (*draws, (part.start, part.stop), *arrays, *place)
            if geometry.has_unit_steps:
                finite = add_dense_taps(*given, sums.numpy())
            else:
                finite = add_sparse_taps(*given, *steps, sums.numpy())
            if not finite:
                return None
        return sums

    threads = max(1, min(torch.get_num_threads(), shape[0] // IMAGES))
    parts = pieces(range(shape[0]), -(-shape[0] // threads))
    if len(parts) == 1:
        return of_images(parts[0])
    with ThreadPoolExecutor(len(parts)) as pool:
        found = list(pool.map(of_images, parts))
    total = found[0]
    for sums in found[1:]:
        total = None if total is None or sums is None else total.add_(sums)
    return total


def _pair(sizes: tuple[int, ...], absent: int) -> Pair:
    """Those of two axes; of one, with `absent` for lines, of which there is one."""
    return (absent, sizes[0]) if len(sizes) == 1 else (sizes[0], sizes[1])
