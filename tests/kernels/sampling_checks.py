"""Draws and samples by kernels against torch's operators. Run by test_kernels.py."""

from typing import Any

import pytest
import torch
from kernels.interpreting import DEVICE, integers_that_count, kernels_on  # noqa: F401

from rad.draws import kernels
from rad.draws import reference as random
from rad.kernels import sampling
from rad.kernels import weight_grad as fused
from rad.sketches import DifferentSample, SameSample, Sketch, fold_in, make_key

DRAWS: list[tuple[Any, ...]] = [("words", 9), ("integers", 9, 7), ("integers", 8, (1 << 31) - 1)]
DRAWS += [("integers", 300, 1000), ("integers", 1, 1), ("signs", 130, torch.float32)]
DRAWS += [("signs", 64, torch.float64), ("signs", 3, torch.bfloat16), ("words", 0)]
ROWS = [
    range(0),
    range(1),
    range(3, 20),
    range((1 << 31) - 2, (1 << 31) + 3),
    range(1 << 33, 1 << 33),
]
ROWS += [range(1100)]

SHAPES = [(1, 1, 1.0), (7, 5, 0.3), (3, 300, 0.2), (40, 12, 1.0), (0, 5, 0.3)]
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
KINDS = [SameSample, DifferentSample]


@pytest.mark.parametrize("draw", DRAWS, ids=str)
@pytest.mark.parametrize("each", [False, True])
def test_draws_are_the_same_integers(draw: tuple[Any, ...], each: bool) -> None:
    name, *arguments = draw
    for rows in ROWS[: None if draw[1] < 100 else 4]:
        key = make_key(7, DEVICE)
        key = fold_in(key, torch.arange(len(rows), device=DEVICE)) if each else key
        expected = getattr(random, name)(key, rows, *arguments)
        got = getattr(kernels, name)(key, rows, *arguments)
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
        if expected.numel() > 10 and arguments != [1, 1]:  # the control
            assert not torch.equal(getattr(kernels, name)(key + 1, rows, *arguments), expected)


def both(sketch: Sketch, x: torch.Tensor, dtype: torch.dtype, key: torch.Tensor) -> list[Any]:
    """What is kept and what is read, by torch and by kernels."""
    found = []
    for on in (False, True):
        with kernels_on(on):
            (kept,) = sketch.compress(x, key)
            found.append((kept, sketch.decompress((kept,), x.shape, dtype, key)))
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("rows", "d", "keep"), SHAPES)
def test_samples(rows: int, d: int, keep: float, kind: Any, dtype: torch.dtype) -> None:
    sketch, key = kind(keep), make_key(3, DEVICE)
    torch.manual_seed(0)
    x = torch.randn(rows, d).to(dtype).to(DEVICE)
    (kept, x_hat), (got, read) = both(sketch, x, dtype, key)
    assert got.dtype == read.dtype == dtype
    assert torch.equal(got, kept)
    tolerance = {torch.float64: 1e-13, torch.float32: 1e-5}.get(dtype, 0.02)
    torch.testing.assert_close(read, x_hat, rtol=tolerance, atol=tolerance)
    if rows and d > 100:  # the control
        other = both(sketch, x, dtype, fold_in(key, 0))[1]
        assert not torch.equal(other[0], kept)
        assert not torch.equal(other[1], x_hat)


@pytest.mark.parametrize("kind", KINDS)
def test_views_leading_axes_and_some_of_the_rows(kind: Any) -> None:
    sketch, key = kind(0.4), make_key(3, DEVICE)
    x = torch.randn(7, 3, 2, device=DEVICE).permute(2, 1, 0)[:, 1:]
    (kept, x_hat), (got, read) = both(sketch, x, torch.float32, key)
    assert torch.equal(got, kept)
    assert got.untyped_storage().nbytes() == got.nbytes
    torch.testing.assert_close(read, x_hat)
    for rows in (range(1, 3), range(2, 2)):
        with kernels_on(True):
            part = sketch.decompress((kept,), x.shape, torch.float64, key, rows)
        assert part.dtype == torch.float64
        torch.testing.assert_close(part.float(), x_hat.flatten(0, 1)[rows.start : rows.stop])


def test_sums_of_repeated_columns_are_the_same_every_time() -> None:
    sketch, key = DifferentSample(1.0), make_key(3, DEVICE)
    x = torch.randn(2, 100, device=DEVICE)
    runs = [both(sketch, x, torch.float32, key)[1][1] for _ in range(2)]
    assert torch.equal(*runs)


def test_what_kernels_do_not_do_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("sample", "spread"):
        monkeypatch.setattr(sampling, name, None)
    x, key = torch.randn(2, 9, device=DEVICE), make_key(0, DEVICE)
    for kind in KINDS:
        found = both(kind(0.4, replacement=False), x, torch.float32, key)
        assert torch.equal(found[0][1], found[1][1])
    wide = torch.randn(1, 1025, device=DEVICE)
    with kernels_on(True):
        read = DifferentSample(1.0).decompress((wide,), (1, 1025), torch.float32, key)
    assert read.shape == wide.shape


@pytest.mark.parametrize("sketch", [SameSample(0.3), DifferentSample(0.3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1, 1), (7, 5, 3), (20, 70, 67)], ids=str)
@pytest.mark.parametrize("small", [False, True])
def test_weight_gradients(
    small: bool,
    shape: tuple[int, ...],
    sketch: Sketch,
    dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows, d, out_features = shape
    if small:  # a sketch that is read densely would fail
        if dtype != torch.float64:
            monkeypatch.setattr(Sketch, "contract", None)
    else:
        monkeypatch.setattr(fused, "MAX_WORK", 0)
    torch.manual_seed(0)
    x, grad = (torch.randn(rows, n).to(dtype).to(DEVICE) for n in (d, out_features))
    key = make_key(3, DEVICE)
    kept = sketch.compress(x, key)
    grads = []
    for on in (False, True):
        with kernels_on(on):
            grads.append(sketch.contract(grad, kept, (rows, d), key))
    assert grads[1].dtype == dtype
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 0.01)
    assert (grads[1] - grads[0]).norm() <= tolerance * grads[0].norm()
    if rows > 1:  # the control
        with kernels_on(True):
            other = sketch.contract(grad, kept, (rows, d), fold_in(key, 0))
        assert (other - grads[0]).norm() > 0.3 * grads[0].norm()
