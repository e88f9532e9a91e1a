"""The compiled loops against the torch operators that they stand for, to the bit."""

import itertools

import pytest
import torch
from torch import Tensor

from rad import backends
from rad.sketches import DitheredRounding, StochasticRounding, fold_in, make_key
from rad.sketches.blockwise import Rounding

SKETCHES = [
    cls(bits, block, zero_code)
    for cls, bits, block, zero_code in itertools.product(
        (StochasticRounding, DitheredRounding), (1, 2, 3, 4, 8), (None, 5), (False, True)
    )
    if not (zero_code and bits == 1)
]


def inputs(dtype: torch.dtype) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(7, 21, generator=generator, dtype=dtype)
    special = normal.relu()
    special[1] = 0
    special[2] = -0.25
    special[3, 3], special[3, 4] = -0.0, 0.0
    special[4, 0], special[5, 20] = 3e38, -1e-42
    outlier = normal.abs()
    outlier[:, 3] = 1e7
    outlier[3:, 3] = 1e10
    tiny = {f"{scale}": normal * scale for scale in (1e-39, 1e30)}
    return tiny | {
        "normal": normal,
        "special": special,
        "outlier": outlier,
        "strided": normal.t()[:, :6],
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("sketch", SKETCHES, ids=repr)
def test_codes_grids_and_estimates(
    sketch: Rounding, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = make_key(5)

    def both(x: Tensor) -> tuple[Tensor, ...]:
        kept = sketch.compress(x, key)
        return *kept, sketch.decompress(kept, x.shape, dtype, key)

    in_loops = {name: both(x) for name, x in inputs(dtype).items()}
    monkeypatch.setattr(backends, "in_loops", lambda x: False)
    for name, x in inputs(dtype).items():
        for got, expected in zip(in_loops[name], both(x), strict=True):
            assert torch.equal(got, expected), name


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("sketch", SKETCHES, ids=repr)
def test_what_is_not_finite_does_not_hide(sketch: Rounding, value: float) -> None:
    x = torch.ones(3, 10)
    x[1, 4] = value
    x_hat = sketch.decompress(sketch.compress(x, make_key(0)), x.shape, x.dtype, make_key(0))
    assert not x_hat[1].isfinite().all()
    if sketch.block is None:
        assert torch.equal(x_hat[[0, 2]], x[[0, 2]])


def test_a_key_for_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    sketch, x = DitheredRounding(3), inputs(torch.float32)["normal"]
    keys, blocks = fold_in(make_key(0), torch.arange(len(x))), range(len(x))
    scales = sketch.fit(x)
    levels = sketch.round(x, scales, keys, blocks)
    x_hat = sketch.read(levels, scales, x.dtype, keys, blocks)
    monkeypatch.setattr(backends, "in_loops", lambda x: False)
    assert torch.equal(levels, sketch.round(x, scales, keys, blocks))
    assert torch.equal(x_hat, sketch.read(levels, scales, x.dtype, keys, blocks))
