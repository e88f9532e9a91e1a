"""Principal projections: what is kept, the directions that are found, and the rescaled rest."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from unbiased import check_biased_is_caught, check_mean_square, check_unbiased, draws

import rad
from rad.errors import UsageError
from rad.sketches import PrincipalProject, Project, fold_in, make_key
from rad.sketches.directions import leading_directions


def decaying(rows: int, d: int, power: float = 1.0, seed: int = 0) -> Tensor:
    """Rows whose principal directions, which are no columns, have variances that decay."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    turn, _ = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))
    return (normal * torch.arange(1, d + 1) ** -power) @ turn


SHAPES = [(1, 40), (3, 7), (6, 9), (50, 40), (40, 400), (1000, 20), (0, 5), (4, 1)]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_never_more_bytes_than_a_projection_and_more_with_more(
    shape: tuple[int, int], share: float
) -> None:
    rows, d = shape
    before = -1
    for k in range(1, d + 1):
        sketch = PrincipalProject(k / d, share)
        exact, random = sketch.sizes(rows, d)
        assert exact >= 0 < random
        taken = sketch.nbytes(shape, torch.float32)
        most = Project(k / d).nbytes(shape, torch.float32)
        assert most - 4 * rows < taken <= most or taken == most == 0
        assert exact * (rows + d) <= share * most / 4
        assert taken > before or rows == 0
        before = taken
    assert PrincipalProject(1.0, share).sizes(rows, d) == (0, d)


def test_one_row_has_no_directions_and_many_have() -> None:
    assert PrincipalProject(0.5).sizes(1, 100) == (0, 50)
    assert PrincipalProject(0.1).sizes(150, 784) == (6, 41)
    assert PrincipalProject(0.1).sizes(10**9, 784) == (39, 39)


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("shape", [(300, 60), (40, 90)], ids=str)
def test_directions_are_nearly_the_leading_ones(shape: tuple[int, int], power: float) -> None:
    x = decaying(*shape, power)
    found = leading_directions(x[None], 8)[0]
    torch.testing.assert_close(found.t() @ found, torch.eye(8, dtype=x.dtype))
    least = torch.linalg.svdvals(x)[8:].square().sum()
    rest = (x - x @ found @ found.t()).square().sum()
    assert least * (1 - 1e-9) <= rest < 1.1 * least


def test_directions_do_not_depend_on_the_key_or_the_scale() -> None:
    x, sketch = decaying(30, 20).float(), PrincipalProject(0.5)
    first, second = (sketch.compress(x, make_key(seed)) for seed in (0, 1))
    assert sketch.sizes(30, 20).exact == 3
    assert torch.equal(first[1], second[1])
    assert not torch.equal(first[0], second[0])
    scaled = sketch.compress(x * 2.0**-70, make_key(0))
    assert torch.equal(scaled[1], first[1])
    assert torch.equal(scaled[0], first[0] * 2.0**-70)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_rows_of_as_many_directions_are_exact(dtype: torch.dtype) -> None:
    """But for the rounding of the type: directions in bfloat16 are no longer those of the rows."""
    sketch, generator = PrincipalProject(0.5), torch.Generator().manual_seed(1)
    factors = [torch.randn(s, generator=generator, dtype=torch.float64) for s in ((60, 4), (4, 30))]
    x = (factors[0] @ factors[1]).to(dtype)
    assert sketch.sizes(60, 30).exact == 5
    x_hat = sketch.decompress(sketch.compress(x, make_key(0)), x.shape, torch.float64, make_key(0))
    error = {torch.float64: 1e-13, torch.float32: 1e-5, torch.bfloat16: 0.03}[dtype]
    assert (x_hat - x).norm() < error * x.norm()
    assert sketch.variance(x) <= error**2 * x.double().square().sum()
    assert sketch.variance(decaying(60, 30)) > 0.01


@pytest.mark.parametrize("share", [0.0, 0.5, 0.8])
def test_unbiased_with_the_stated_variances(share: float) -> None:
    """Several exact and several random directions."""
    sketch, x = PrincipalProject(0.6, share), decaying(12, 10, 0.5)
    assert sketch.sizes(12, 10) == {0.0: (0, 6), 0.5: (1, 4), 0.8: (2, 2)}[share]
    grad = torch.randn(12, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)

    def estimate(key: Tensor) -> Tensor:
        return sketch.decompress(sketch.compress(x, key), x.shape, x.dtype, key)

    samples = draws(estimate, 20_000)
    check_unbiased(samples, x)
    check_biased_is_caught(samples, x)
    check_mean_square(samples, x, sketch.variance(x).item())
    layer = rad.convert(nn.Linear(10, 3).double(), sketch)
    variance = layer.weight_grad_variance(x, grad, sketch)
    check_mean_square(grad.t() @ samples, grad.t() @ x, variance.item())


def test_the_variance_of_a_convolution_beside_exact_directions() -> None:
    torch.manual_seed(0)
    layer = rad.convert(nn.Conv2d(3, 2, 2, padding=1).double(), PrincipalProject(0.6))
    x = decaying(12, 9, 0.5).view(4, 3, 3, 3)
    assert layer.sketch.sizes(12, 9) == (1, 4)
    output = layer(x)
    grad = torch.randn_like(output)
    rows, key = x.flatten(2).flatten(0, 1), make_key(5)

    def weight_grad(x: Tensor) -> Tensor:
        return torch.nn.grad.conv2d_weight(x, layer.weight.shape, grad, padding=1)

    def estimate(key: Tensor) -> Tensor:
        kept = layer.sketch.compress(rows, key)
        return layer.sketch.decompress(kept, rows.shape, rows.dtype, key)

    basis = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    matrix = torch.stack([weight_grad(each).flatten() for each in basis])
    truth = weight_grad(x).flatten()
    torch.testing.assert_close(
        estimate(key).flatten() @ matrix, weight_grad(estimate(key).view(x.shape)).flatten()
    )
    samples = draws(estimate, 20_000).flatten(1) @ matrix
    check_unbiased(samples, truth)
    check_mean_square(samples, truth, layer.weight_grad_variance(x, grad, layer.sketch).item())


def test_without_the_rescaling_the_bias_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    sketch, x = PrincipalProject(0.6), decaying(12, 10, 0.5)
    monkeypatch.setattr(
        PrincipalProject, "_factors", lambda self, rows, d, like: like.new_ones(like.shape[-1])
    )
    samples = draws(lambda k: sketch.decompress(sketch.compress(x, k), x.shape, x.dtype, k), 20_000)
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(samples, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_all_steps_at_once_are_the_steps_one_by_one(dtype: torch.dtype) -> None:
    sketch = PrincipalProject(0.6)
    x = torch.stack([decaying(12, 10, 0.5, seed=s) for s in range(3)]).to(dtype)
    keys = fold_in(make_key(0), torch.arange(3))
    left = torch.randn(3, 12, 2, dtype=torch.float32 if dtype == torch.bfloat16 else dtype)
    saved = sketch.compress_steps(x, keys)
    one_by_one = [sketch.compress(x_s, key) for x_s, key in zip(x, keys, strict=True)]
    tolerance = {} if dtype != torch.bfloat16 else {"rtol": 2e-2, "atol": 2e-2}
    for together, apart in zip(saved, zip(*one_by_one, strict=True), strict=True):
        assert together.dtype == dtype
        torch.testing.assert_close(together, torch.stack(apart), **tolerance)
    read = sketch.decompress_steps(saved, x.shape, left.dtype, keys)
    torch.testing.assert_close(
        read, rad.Sketch.decompress_steps(sketch, saved, x.shape, left.dtype, keys)
    )
    found = sketch.contract_steps(left, saved, x.shape, keys)
    torch.testing.assert_close(found, rad.Sketch.contract_steps(sketch, left, saved, x.shape, keys))
    torch.testing.assert_close(found, read.flatten(0, 1).t() @ left.flatten(0, 1))


def test_what_cannot_be_used_is_refused() -> None:
    for share in (-0.1, 1.0, float("nan")):
        with pytest.raises(UsageError, match="principal_fraction"):
            PrincipalProject(0.5, share)
    with pytest.raises(ValueError, match="keep_fraction"):
        PrincipalProject(1.5)
    with pytest.raises(TypeError, match="depends on x"):
        PrincipalProject(0.5).relative_variance(10)
