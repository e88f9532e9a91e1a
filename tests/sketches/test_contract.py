"""The contract that every sketch meets."""

import itertools

import pytest
import torch
from cases import LOSSY, SKETCHES
from unbiased import check_biased_is_caught, check_mean_square, check_unbiased, draws

from rad.sketches import DifferentSample, Identity, Project, SameSample, Sketch, make_key

SHAPES = [(3, 7), (7,), (2, 3, 5), (4, 1), (2, 100)]
every_sketch = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())
lossy_sketch = pytest.mark.parametrize("sketch", LOSSY.values(), ids=LOSSY.keys())


@every_sketch
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_shape_dtype_bytes_and_ownership(
    sketch: Sketch, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, key = torch.randn(shape, dtype=dtype), make_key(0)
    kept = sketch.compress(x, key)
    x_hat = sketch.decompress(kept, shape, dtype, key)
    assert x_hat.shape == x.shape
    assert x_hat.dtype == dtype
    assert sum(t.untyped_storage().nbytes() for t in kept) == sketch.nbytes(shape, dtype)
    if not isinstance(sketch, Identity):
        assert all(t.untyped_storage().data_ptr() != x.untyped_storage().data_ptr() for t in kept)


@every_sketch
def test_a_view_is_not_kept_with_its_whole_storage(sketch: Sketch) -> None:
    part = torch.randn(6, 7)[2:4]
    kept = sketch.compress(part, make_key(0))
    assert sum(t.untyped_storage().nbytes() for t in kept) == sketch.nbytes((2, 7), part.dtype)


@every_sketch
def test_same_key_same_draw_and_rows_read_apart(sketch: Sketch) -> None:
    x, key = torch.randn(2, 4, 7, dtype=torch.float64), make_key(5)
    kept = sketch.compress(x, key)
    assert all(map(torch.equal, kept, sketch.compress(x, key)))
    x_hat = sketch.decompress(kept, x.shape, x.dtype, key)
    rows = sketch.decompress(kept, x.shape, x.dtype, key, range(3, 7))
    torch.testing.assert_close(rows, x_hat.reshape(8, 7)[3:7])


@lossy_sketch
def test_another_key_another_draw(sketch: Sketch) -> None:
    x = torch.randn(3, 50)
    one, *others = (sketch.compress(x, make_key(i))[0] for i in range(5))  # of few rows, few draws
    assert not all(torch.equal(one, other) for other in others)


@lossy_sketch
def test_unbiased_and_variance(sketch: Sketch) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 7, dtype=torch.float64)
    samples = draws(lambda k: sketch.decompress(sketch.compress(x, k), x.shape, x.dtype, k), 12_000)
    check_unbiased(samples, x)
    check_biased_is_caught(samples, x)
    check_mean_square(samples, x, sketch.variance(x).item())


def test_the_average_over_all_samples_is_exact() -> None:
    d, k = 4, 2
    x = torch.randn(d, dtype=torch.float64)
    for outcomes in (itertools.product(range(d), repeat=k), itertools.combinations(range(d), k)):
        estimates = [
            sum(d / k * torch.where(torch.arange(d) == j, x, 0) for j in drawn)
            for drawn in outcomes
        ]
        torch.testing.assert_close(torch.stack(estimates).mean(0), x)  # type: ignore[arg-type]


@pytest.mark.parametrize("replacement", [True, False])
def test_decompress_reads_the_drawn_columns(replacement: bool) -> None:
    x, key = torch.randn(3, 7), make_key(1)
    for sketch in (SameSample(0.5, replacement), DifferentSample(0.5, replacement)):
        indices = sketch.indices(x.shape, key).expand(3, -1)
        expected = torch.zeros_like(x)
        for row, column in itertools.product(range(3), range(4)):
            j = indices[row, column]
            expected[row, j] += 7 / 4 * x[row, j]
        x_hat = sketch.decompress(sketch.compress(x, key), x.shape, x.dtype, key)
        torch.testing.assert_close(x_hat, expected)


def test_projection_uses_its_matrix() -> None:
    x, key = torch.randn(3, 7), make_key(1)
    sketch = Project(0.5)
    read = sketch.matrix(7, x.dtype, key)
    assert read.shape == (7, 4)
    torch.testing.assert_close(read.square(), torch.full_like(read, 0.25))
    x_hat = sketch.decompress(sketch.compress(x, key), x.shape, x.dtype, key)
    torch.testing.assert_close(x_hat, x @ read @ read.t())


@pytest.mark.parametrize("kind", [SameSample, DifferentSample, Project])
@pytest.mark.parametrize("keep_fraction", [0.0, -0.1, 1.1, float("nan")])
def test_bad_keep_fraction(kind: type, keep_fraction: float) -> None:
    with pytest.raises(ValueError, match="keep_fraction"):
        kind(keep_fraction)


@pytest.mark.parametrize(("d", "fraction", "k"), [(784, 0.1, 79), (300, 0.1, 30), (1, 0.1, 1)])
def test_kept_count_is_the_papers(d: int, fraction: float, k: int) -> None:
    assert SameSample(fraction).kept(d) == k


@lossy_sketch
def test_low_precision_is_accumulated_in_float32(sketch: Sketch) -> None:
    # With every entry 1, x_hat is a small integer multiple of d/k or a dot product of
    # signs over k: rounding once to bfloat16 leaves a relative error of 2**-8 at most.
    x, key = torch.ones(2, 64), make_key(0)
    exact = sketch.decompress(sketch.compress(x, key), x.shape, x.dtype, key)
    low = sketch.decompress(sketch.compress(x.bfloat16(), key), x.shape, torch.bfloat16, key)
    assert (low.float() - exact).norm() <= 2**-6 * exact.norm()
