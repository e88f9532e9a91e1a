"""The sketches of many time steps at once.

A recurrent sweep sketches the rows of every step with that step's own key. One step
is little work, so that calling the sketch for each costs more than what it does:
here a chunk of steps is drawn, compressed and read back together. Draws and values
are those of the sketch called step by step.
"""

from __future__ import annotations

from functools import singledispatch

import torch
from torch import Tensor

from rad.draws.casting import KEPT, cast_at_random
from rad.draws.reference import ROW, fold_in, signed
from rad.dtypes import accumulation_dtype
from rad.functional.linear import weight_grad
from rad.sketches.base import Sketch
from rad.sketches.identity import Identity
from rad.sketches.projection import DifferentProject, Project
from rad.sketches.rounding import Rounding
from rad.sketches.sampled_rounding import SampledRounding
from rad.sketches.sampling import DifferentSample, SameSample


def step_keys(key: Tensor, steps: int) -> Tensor:
    """`fold_in(key, t)` for t = 0..steps-1: int64, (steps,)."""
    return fold_in(key, torch.arange(steps, device=key.device))


@singledispatch
def compress_steps(sketch: Sketch, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    """What is kept of x (steps, rows, d): `sketch.compress(x[s], keys[s])`, stacked over s."""
    kept = [sketch.compress(x_s, key) for x_s, key in zip(x.unbind(), keys.unbind(), strict=True)]
    return tuple(torch.stack(parts) for parts in zip(*kept, strict=True))


@compress_steps.register
def _(sketch: SameSample, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    indices = _indices(sketch, x.shape[1], x.shape[2], keys)
    return (x.detach().gather(2, indices.expand(-1, x.shape[1], -1)),)


@compress_steps.register
def _(sketch: DifferentSample, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    return (x.detach().gather(2, _indices(sketch, x.shape[1], x.shape[2], keys)),)


@compress_steps.register
def _(sketch: Project, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    wide = accumulation_dtype(x.dtype)
    kept = torch.bmm(x.detach().to(wide), _matrices(sketch, x.shape[2], wide, keys))
    if kept.dtype == x.dtype:
        return (kept,)
    of_rows = row_keys(fold_in(keys, KEPT), x.shape[1])
    return (cast_at_random(kept, x.dtype, of_rows),)


@compress_steps.register
def _(sketch: Rounding, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    flat, size = x.detach().flatten(1), sketch.block_size(x.shape[2])
    each = -(-flat.shape[1] // size)
    return sketch.encode(flat, size, row_keys(keys, each), range(len(x) * each))


@compress_steps.register
def _(sketch: SampledRounding, x: Tensor, keys: Tensor) -> tuple[Tensor, ...]:
    rows = x.shape[1]
    sampling, rounding = (row_keys(each, rows) for each in sketch.keys(keys))
    return sketch.encode(x.detach(), (sampling, rounding), range(len(x) * rows))


@singledispatch
def weight_grad_steps(
    sketch: Sketch, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, keys: Tensor
) -> Tensor:
    """sum_s x_hat_s^T grad_output_s, for the x_hat_s that kept[s] is a sketch of.

    The transpose of a weight's gradient. Shapes: grad_output (steps, rows,
    out_features), of the dtype in which sums run; x_hat (steps, rows, d) ->
    (d, out_features). Without a shortcut for the sketch, one step at a time.
    """
    total = kept[0].new_zeros(d, grad_output.shape[2], dtype=grad_output.dtype)
    for grad, key, *parts in zip(grad_output, keys, *kept, strict=True):
        total = total.add_(weight_grad(sketch, grad, tuple(parts), d, key).t())
    return total


@weight_grad_steps.register
def _(
    sketch: Identity, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, keys: Tensor
) -> Tensor:
    return kept[0].to(grad_output.dtype).flatten(0, 1).t() @ grad_output.flatten(0, 1)


@weight_grad_steps.register
def _(
    sketch: SameSample, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, keys: Tensor
) -> Tensor:
    columns = kept[0].to(grad_output.dtype)  # (steps, rows, k)
    indices = _indices(sketch, 1, d, keys)
    product = torch.bmm(columns.mT, grad_output).flatten(0, 1)
    total = product.new_zeros(d, product.shape[1])
    return total.index_add_(0, indices.flatten(), product.mul_(d / columns.shape[2]))


@weight_grad_steps.register
def _(
    sketch: DifferentSample, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, keys: Tensor
) -> Tensor:
    values = kept[0].to(grad_output.dtype)  # (steps, rows, k)
    x_hat = values.new_zeros(*values.shape[:2], d)
    x_hat.scatter_add_(2, _indices(sketch, values.shape[1], d, keys), values)
    return (x_hat.flatten(0, 1).t() @ grad_output.flatten(0, 1)).mul_(d / values.shape[2])


@weight_grad_steps.register
def _(
    sketch: Project, grad_output: Tensor, kept: tuple[Tensor, ...], d: int, keys: Tensor
) -> Tensor:
    product = torch.bmm(kept[0].to(grad_output.dtype).mT, grad_output)  # (steps, k, out)
    matrices = _matrices(sketch, d, grad_output.dtype, keys)
    return matrices.transpose(0, 1).flatten(1) @ product.flatten(0, 1)


@weight_grad_steps.register(Rounding)
@weight_grad_steps.register(SampledRounding)
def _(
    sketch: Rounding | SampledRounding,
    grad_output: Tensor,
    kept: tuple[Tensor, ...],
    d: int,
    keys: Tensor,
) -> Tensor:
    x_hat = decode_steps(sketch, kept, grad_output.shape[1], d, grad_output.dtype, keys)
    return x_hat.t() @ grad_output.flatten(0, 1)


def decode_steps(
    sketch: Rounding | SampledRounding,
    kept: tuple[Tensor, ...],
    rows: int,
    d: int,
    dtype: torch.dtype,
    keys: Tensor,
) -> Tensor:
    """The estimate of the x (steps, rows, d) that `compress_steps` kept: (steps * rows, d)."""
    each = kept[-1].shape[1]  # grids of a step
    blocks = range(len(keys) * each)
    if isinstance(sketch, SampledRounding):
        sampling, rounding = (row_keys(part, rows) for part in sketch.keys(keys))
        return sketch.decode(kept, 0, d, dtype, (sampling, rounding), blocks)
    of_blocks, size = row_keys(keys, each), sketch.block_size(d)
    return sketch.decode(kept, range(rows * d), size, dtype, of_blocks, blocks).reshape(-1, d)


def _indices(sketch: SameSample | DifferentSample, rows: int, d: int, keys: Tensor) -> Tensor:
    """The columns that `sketch.indices((rows, d), keys[s])` draws: (steps, rows or 1, k)."""
    if isinstance(sketch, SameSample):  # draws as the first row of a DifferentSample
        sketch, rows = DifferentSample(sketch.keep_fraction, sketch.replacement), 1
    drawn = sketch.indices((len(keys) * rows, d), row_keys(keys, rows))
    return drawn.view(len(keys), rows, drawn.shape[-1])


def _matrices(sketch: Project, d: int, dtype: torch.dtype, keys: Tensor) -> Tensor:
    """`sketch.matrix(d, dtype, keys[s])`: (steps, d, k)."""
    each = DifferentProject(sketch.keep_fraction)  # whose first row draws as a Project
    return each.matrices(d, dtype, row_keys(keys, d), range(len(keys)))


def row_keys(keys: Tensor, rows: int) -> Tensor:
    """A key for each of the rows of all steps in one sequence: (steps * rows,).

    The words of row s * rows + r under its key are those of row r under keys[s]: a
    word depends on key + ROW * row alone.
    """
    step = torch.arange(len(keys), device=keys.device)
    return (keys - step * signed(rows * ROW)).repeat_interleave(rows)
