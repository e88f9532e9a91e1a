"""What is kept and read of rounded states: the loops against torch's operators, to the bit."""

import numpy as np
import pytest
import torch
from torch import Tensor

from rad import backends
from rad.packing.codes import pack_codes, unpack_codes
from rad.pde import ReactionDiffusion
from rad.pde.cpu.grid import Grid, lay_out
from rad.pde.cpu.points import EVERY
from rad.pde.cpu.sketches import all_points, keep, read
from rad.sketches import (
    DitheredRounding,
    SampledRounding,
    Sketch,
    StochasticRounding,
    fold_in,
    make_key,
)

KEY, FIRST, COUNT = make_key(4), 17, 5
EVERY_BITS = (1, 2, 3, 4, 8)
ROUNDED = [
    *(kind(bits) for kind in (StochasticRounding, DitheredRounding) for bits in EVERY_BITS),
    StochasticRounding(3, block=20),
    DitheredRounding(3, zero_code=True),
]
SAMPLED = [
    SampledRounding(fraction, bits, dithered)
    for fraction, bits in ((0.1, 3), (0.3, 1), (0.5, 8), (0.9, 3), (1.0, 2), (0.2, 4))
    for dithered in (False, True)
]
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


def example(dtype: torch.dtype) -> tuple[Grid, Tensor]:
    """A grid and some states on it, the second of them constant: (COUNT, points, points - 1)."""
    problem = ReactionDiffusion(points=9, steps=50, dt=0.01, diffusion=0.3, dtype=dtype)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(COUNT, 9, 8, generator=generator, dtype=dtype)
    states[1] = 0.25
    states[2] *= 1e-4
    states[:, [0, -1]] = states[:, :, -1:] = 0
    return lay_out(problem), states


@DTYPES
@pytest.mark.parametrize("sketch", ROUNDED, ids=repr)
def test_states_are_rounded_and_read_as_by_torch(
    sketch: Sketch, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, states = example(dtype)
    kept = keep(sketch, grid, states, FIRST, KEY)
    estimate = read(sketch, grid, kept, FIRST, KEY)
    assert estimate.points is EVERY
    assert (estimate.weight, estimate.residual) == (1.0, False)
    monkeypatch.setattr(backends, "in_loops", lambda x: False)
    rows = all_points(grid, states)
    for s, row in enumerate(rows):
        key = fold_in(KEY, FIRST + s)
        expected = sketch.compress(row[None], key)
        assert all(map(torch.equal, [part[s] for part in kept], expected))
        x_hat = sketch.decompress(expected, (1, len(row)), dtype, key)
        assert np.array_equal(estimate.values[s], x_hat[0].numpy())


@DTYPES
@pytest.mark.parametrize("sketch", SAMPLED, ids=repr)
def test_samples_are_rounded_on_one_grid_and_read_as_by_torch(
    sketch: SampledRounding, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    grid, states = example(dtype)
    *planes, shared = keep(sketch, grid, states, FIRST, KEY)
    estimate = read(sketch, grid, (*planes, shared), FIRST, KEY)
    monkeypatch.setattr(backends, "in_loops", lambda x: False)
    assert torch.equal(shared, sketch.rounding.fit(states.reshape(1, -1)))
    rows = all_points(grid, states)
    k = sketch.kept(rows.shape[1])
    assert estimate.weight == rows.shape[1] / k
    for s, row in enumerate(rows):
        sampling, rounding = sketch.keys(fold_in(KEY, FIRST + s))
        chosen = sketch.sample.indices((1, len(row)), sampling)
        codes = sketch.rounding.round(row[chosen], shared, rounding, range(1))
        packed = pack_codes(codes, sketch.bits)
        assert all(map(torch.equal, [plane[s] for plane in planes], (part[0] for part in packed)))
        levels = unpack_codes(packed, sketch.bits)[:, :k]
        values = sketch.rounding.read(levels, shared, dtype, rounding, range(1))
        assert np.array_equal(estimate.points[s], chosen[0].numpy())
        assert np.array_equal(estimate.values[s], values[0].numpy())


def test_another_key_or_step_rounds_otherwise() -> None:
    grid, states = example(torch.float32)
    for sketch in (StochasticRounding(3), SampledRounding(0.5, 3)):
        codes = keep(sketch, grid, states, FIRST, KEY)[0]
        assert not torch.equal(codes, keep(sketch, grid, states, FIRST + 1, KEY)[0])
        assert not torch.equal(codes, keep(sketch, grid, states, FIRST, fold_in(KEY, 0))[0])
