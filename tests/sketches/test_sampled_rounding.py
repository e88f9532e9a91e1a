"""Sampled and rounded numbers by compiled loops, against torch's operators."""

import pytest
import torch
from torch import Tensor

from rad import backends
from rad.sketches import SampledRounding, make_key

KEY = make_key(9)
SKETCHES = [
    SampledRounding(fraction, bits, dithered)
    for fraction, bits in ((0.1, 2), (0.3, 3), (0.5, 1), (0.7, 8), (1.0, 4))
    for dithered in (False, True)
]
SHAPES = [(11, 13), (3, 5, 21), (600, 300), (1, 7), (0, 6), (4, 1)]
"""The third is compressed in several pieces."""


def example(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=dtype).relu()
    if len(x):
        x[0] = 0.5
    return x


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sketch", SKETCHES, ids=repr)
def test_loops_keep_and_read_what_torch_does(
    sketch: SampledRounding,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = example(shape, dtype)
    count = x[..., 0].numel()
    some = range(count // 3, count - count // 4)
    left = torch.randn(count, 5, dtype=torch.promote_types(dtype, torch.float32))

    def forms() -> tuple[tuple[Tensor, ...], list[Tensor], Tensor]:
        kept = sketch.compress(x, KEY)
        read = [sketch.decompress(kept, shape, dtype, KEY, rows) for rows in (None, some)]
        return kept, read, sketch.contract(left, kept, (count, shape[-1]), KEY)

    kept, read, product = forms()
    monkeypatch.setattr(backends, "in_loops", lambda _: False)
    expected = forms()
    assert all(map(torch.equal, kept, expected[0]))
    assert all(map(torch.equal, read, expected[1]))
    torch.testing.assert_close(product, expected[2])


def test_a_gradient_that_is_not_finite_shows_everywhere() -> None:
    """As in a dense product with an estimate that is zero where nothing was kept."""
    sketch, x = SampledRounding(0.1, 2), example((40, 30), torch.float32)
    left = torch.ones(40, 4)
    left[3, 2] = torch.inf
    kept = sketch.compress(x, KEY)
    x_hat = sketch.decompress(kept, (40, 30), torch.float32, KEY)
    found = sketch.contract(left, kept, (40, 30), KEY)
    torch.testing.assert_close(found, left.t() @ x_hat, equal_nan=True)
    assert found[2].isnan().any()
