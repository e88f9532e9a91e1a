"""What compiled loops sample and sum is what torch's operators do, in every layout and type."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from rad.sketches import DifferentSample, SameSample, make_key, sampled_columns

SAMPLES = [
    *(SameSample(0.3), SameSample(0.95), SameSample(0.3, False), SameSample(1.0, False)),
    *(DifferentSample(0.1), DifferentSample(0.3), DifferentSample(0.95)),
    *(DifferentSample(0.3, False), DifferentSample(0.9, False), DifferentSample(1.0, False)),
]
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x,
    "transposed": lambda x: x.t().contiguous().t(),
    "part": lambda x: torch.cat([x, x], 1)[:, : x.shape[1]],
    "steps": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "expanded": lambda x: x[:1, :1].expand(x.shape),
    "parameter": torch.nn.Parameter,
}
SIZES = [(1, 1, 1), (1, 30, 5), (7, 1, 3), (5, 33, 1), (0, 6, 4), (40, 37, 400), (1100, 20, 33)]
ROUNDING = {torch.float32: 1e-6, torch.float64: 1e-14, torch.bfloat16: 2**-7}
Sampled = SameSample | DifferentSample

every_sample = pytest.mark.parametrize("sketch", SAMPLES, ids=str)


@pytest.fixture(params=["kept alone", "dense products"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of summing a weight gradient, whatever it costs."""
    alone = request.param == "kept alone"
    monkeypatch.setattr(sampled_columns, "pays", lambda *_: alone)


def by_torch(sketch: Sampled, left: Tensor, x: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    """What is kept, and the weight gradient, in torch's operators."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampled_columns, "loops_take", lambda *_: False)
        kept = sketch.compress(x, key)
        return kept[0], sketch.contract(left, kept, tuple(x.shape), key)


def by_loops(sketch: Sampled, left: Tensor, x: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
    kept = sketch.compress(x, key)
    return kept[0], sketch.contract(left, kept, tuple(x.shape), key)


@every_sample
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("dtype", ROUNDING, ids=str)
def test_sizes_and_types(sketch: Sampled, dtype: torch.dtype, sizes: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    (rows, d, m), key = sizes, make_key(3)
    x, left = torch.randn(rows, d, dtype=dtype).relu(), torch.randn(rows, m, dtype=dtype)
    check(sketch, left, x, key)


@pytest.mark.parametrize("sketch", [SameSample(0.3), DifferentSample(0.3)], ids=str)
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("of_left", LAYOUTS)
@pytest.mark.parametrize("of_x", LAYOUTS)
def test_layouts(sketch: Sampled, of_x: str, of_left: str) -> None:
    torch.manual_seed(0)
    x, left = LAYOUTS[of_x](torch.randn(9, 21)), LAYOUTS[of_left](torch.randn(9, 5))
    with torch.no_grad():
        check(sketch, left, x, make_key(5))


def check(sketch: Sampled, left: Tensor, x: Tensor, key: Tensor) -> None:
    kept, gradient = by_loops(sketch, left, x, key)
    expected_kept, expected = by_torch(sketch, left, x, key)
    assert torch.equal(kept, expected_kept)
    assert not kept.requires_grad
    assert (gradient.dtype, gradient.shape) == (expected.dtype, expected.shape)
    assert (gradient - expected).norm() <= ROUNDING[x.dtype] * expected.norm()


@every_sample
@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["x", "left", "both"])
def test_what_is_not_finite_shows_where_it_did(sketch: Sampled, where: str, poison: float) -> None:
    torch.manual_seed(0)
    for seed in range(5):
        x, left = torch.randn(6, 11).relu(), torch.randn(6, 4).relu()
        if where != "left":
            x[2, 3] = poison
        if where != "x":
            left[4, 1] = poison
        _, gradient = by_loops(sketch, left, x, make_key(seed))
        _, expected = by_torch(sketch, left, x, make_key(seed))
        torch.testing.assert_close(gradient, expected, equal_nan=True)


@pytest.mark.parametrize("sketch", [SameSample(0.4), DifferentSample(0.4, False)], ids=str)
def test_leading_axes_and_what_is_negated_lazily(sketch: Sampled) -> None:
    x, key = torch.randn(3, 4, 10), make_key(1)
    flat = sketch.compress(x.view(12, 10), key)[0]
    assert torch.equal(sketch.compress(x, key)[0], flat.view(3, 4, -1))
    negated = torch.imag(torch.view_as_complex(torch.randn(5, 10, 2)).conj())
    assert torch.equal(sketch.compress(negated, key)[0], sketch.compress(negated.clone(), key)[0])


@pytest.mark.parametrize("sketch", [SameSample(0.4), DifferentSample(0.4)], ids=str)
def test_under_vmap_torch_samples(sketch: Sampled) -> None:
    x, key = torch.randn(3, 4, 10), make_key(1)
    together = torch.vmap(lambda x: sketch.compress(x, key)[0])(x)
    assert torch.equal(together, torch.stack([sketch.compress(part, key)[0] for part in x]))


def test_what_pays() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert sampled_columns.pays(150, 300, 784, 79)
        assert not sampled_columns.pays(150, 300, 784, 393)
        assert not sampled_columns.pays(150, 10, 300, 30)
        assert not sampled_columns.pays(0, 300, 784, 79)
    finally:
        torch.set_num_threads(threads)
