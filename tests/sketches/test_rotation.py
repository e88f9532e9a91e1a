"""The rotation, and what rounding gains by it."""

import pytest
import torch

from rad.errors import UsageError
from rad.sketches import DitheredRounding, RotatedRounding, fold_in, make_key
from rad.sketches.rotation import hadamard, rotate, unrotate


@pytest.mark.parametrize("d", [1, 2, 7, 8, 300])
def test_the_rotation_is_orthogonal(d: int) -> None:
    matrix = rotate(torch.eye(d, dtype=torch.float64))
    torch.testing.assert_close(matrix @ matrix.t(), torch.eye(d, dtype=torch.float64))
    x = torch.randn(3, 2, d)
    torch.testing.assert_close(rotate(x).double(), x.double() @ matrix, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(unrotate(rotate(x)), x)
    if d > 2:
        assert (matrix.abs() > 0).sum(1).max() > d / 2  # numbers are spread


def test_an_empty_row() -> None:
    assert unrotate(rotate(torch.empty(3, 0))).shape == (3, 0)


def test_hadamard_of_four() -> None:
    signs = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1.0]])
    torch.testing.assert_close(hadamard(torch.eye(4)), signs / 2)


def test_outliers_cost_less_and_zeros_more() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 256)
    x[:, 3] = 100
    plain, rotated = DitheredRounding(3), RotatedRounding(3)
    assert rotated.nbytes(x.shape, x.dtype) == plain.nbytes(x.shape, x.dtype)
    assert rotated.variance(x) < 0.1 * plain.variance(x)
    ones = torch.ones(5, 256)
    assert rotated.variance(ones) > plain.variance(ones)


def test_what_is_not_finite_is_seen() -> None:
    x = torch.randn(2, 16)
    x[0, 5] = float("inf")
    sketch, key = RotatedRounding(4), make_key(0)
    x_hat = sketch.decompress(sketch.compress(x, key), x.shape, x.dtype, key)
    assert not x_hat[0].isfinite().any()
    assert x_hat[1].isfinite().all()


def test_fields_that_cannot_be_used() -> None:
    with pytest.raises(UsageError, match="bits is 5: choose one of"):
        RotatedRounding(5)
    with pytest.raises(UsageError, match="block"):
        RotatedRounding(3, block=0)


@pytest.mark.parametrize("dithered", [True, False])
def test_rows_of_a_short_type_are_not_rounded_to_it_when_rotated(dithered: bool) -> None:
    """Their rotation has more digits than bfloat16, and dropping them would bias every draw."""
    torch.manual_seed(0)
    x, draws = torch.randn(2, 64).bfloat16(), 2000
    sketch = RotatedRounding(8, dithered=dithered)
    keys = [fold_in(make_key(1), i) for i in range(draws)]
    read = [sketch.decompress(sketch.compress(x, k), x.shape, torch.float64, k) for k in keys]
    samples = torch.stack(read)
    errors = (samples.mean(0) - x.double()) / (samples.std(0) / draws**0.5)
    assert errors.abs().max() < 6
    shift = x.double() * 2**-9 / (samples.std(0) / draws**0.5)  # half a last digit: the control
    assert (errors + shift).abs().max() > 6
