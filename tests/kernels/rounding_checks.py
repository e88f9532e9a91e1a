"""Rounding by kernels against torch's operators. Run by test_kernels.py."""

import subprocess
import sys
from itertools import pairwise
from typing import Any

import pytest
import torch
from kernels.interpreting import DEVICE, integers_that_count, kernels_on  # noqa: F401

from rad import backends
from rad.kernels import weight_grad as fused
from rad.sketches import DitheredRounding, Sketch, StochasticRounding, fold_in, make_key
from rad.sketches.blockwise import Rounding

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(7, 5), (2, 3, 16), (1, 1), (0, 5), (5,)]
CASES = [(shape, torch.float32) for shape in (*SHAPES, (3, 300))]
LONG = ((2, 2100), torch.float32)
SKETCHES = [
    *(kind(bits) for kind in (StochasticRounding, DitheredRounding) for bits in (1, 2, 3, 4, 8)),
    StochasticRounding(3, 70),
    DitheredRounding(8, 1000),
    DitheredRounding(2, 64, zero_code=True),
    StochasticRounding(4, zero_code=True),
]
SOME = [SKETCHES[2], *SKETCHES[-4:]]
OTHER_DTYPES = [((3, 300), dtype) for dtype in DTYPES[1:]]


def numbers(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Some zeros, a constant row, and rows of very different size."""
    torch.manual_seed(0)
    x = torch.randn(shape).relu_() if len(shape) > 1 else torch.randn(shape)
    if len(x) > 2:
        x[0] = 0.3
        x[1] *= 1e4
        x[2] = torch.randn_like(x[2]) * 1e-4
        x[1].view(-1)[0] = 6e4  # an outlier of float16, too
    return x.to(dtype).to(DEVICE)


def both(sketch: Rounding, x: torch.Tensor, key: torch.Tensor) -> list[Any]:
    """What is kept and what is read, by torch and by kernels."""
    found = []
    for on in (False, True):
        with kernels_on(on), pytest.MonkeyPatch.context() as patch:
            patch.setattr(backends, "in_loops", lambda x: False)
            kept = sketch.compress(x, key)
            found.append((kept, sketch.decompress(kept, x.shape, x.dtype, key)))
    return found


@pytest.mark.parametrize(
    ("sketch", "shape", "dtype"),
    [
        *((sketch, *case) for sketch in SKETCHES for case in CASES),
        *((sketch, *case) for sketch in [SKETCHES[0], *SOME] for case in OTHER_DTYPES),
        *((sketch, *LONG) for sketch in SOME),
    ],
    ids=str,
)
def test_grids_codes_and_estimates_are_the_same(
    sketch: Rounding, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, key = numbers(shape, dtype), make_key(3, DEVICE)
    (want, want_read), (got, got_read) = both(sketch, x, key)
    for one, other in zip(got, want, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    assert sum(t.untyped_storage().nbytes() for t in got) == sketch.nbytes(shape, dtype)
    assert got_read.dtype == dtype
    assert got_read.shape == x.shape
    assert torch.equal(got_read, want_read)
    if x.numel() > 100:  # the control
        assert not torch.equal(both(sketch, x, fold_in(key, 0))[1][1], want_read)


@pytest.mark.parametrize("sketch", SOME, ids=str)
def test_rows_are_read_apart_and_strided_inputs_are_rounded(sketch: Rounding) -> None:
    x, key = numbers((20, 9), torch.float32).t(), make_key(4, DEVICE)
    (want, want_read), (got, got_read) = both(sketch, x, key)
    assert all(map(torch.equal, want, got))
    assert torch.equal(got_read, want_read)
    with kernels_on(True):
        for first, last in pairwise((0, 1, 4, 4, 9)):
            rows = range(first, last)
            read = sketch.decompress(got, x.shape, x.dtype, key, rows)
            assert torch.equal(read, want_read[first:last])


@pytest.mark.parametrize("poison", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("sketch", [StochasticRounding(2), DitheredRounding(3, zero_code=True)])
def test_what_is_not_finite_shows(sketch: Rounding, poison: float) -> None:
    x = torch.randn(3, 20, device=DEVICE)
    x[1, 7] = poison
    with kernels_on(True):
        key = make_key(0, DEVICE)
        x_hat = sketch.decompress(sketch.compress(x, key), x.shape, x.dtype, key)
    assert not x_hat[1].isfinite().any()
    assert x_hat[[0, 2]].isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("rows", "d", "outputs"), [(7, 5, 3), (50, 41, 70), (0, 5, 3)])
@pytest.mark.parametrize("sketch", SOME, ids=str)
def test_weight_gradients_without_a_dense_buffer(
    sketch: Rounding, rows: int, d: int, outputs: int, dtype: torch.dtype
) -> None:
    x, key = numbers((rows, d), dtype), make_key(5, DEVICE)
    grad = torch.randn(outputs, rows).to(dtype).to(DEVICE).t()
    with kernels_on(True):
        kept = sketch.compress(x, key)
        assert fused.rounded_pays(grad, d)
        want = Sketch.contract(sketch, grad.double(), kept, (rows, d), key).float()
        got = sketch.contract(grad, kept, (rows, d), key)
        other = fused.rounded(grad, kept, fold_in(key, 0), d, sketch.blocks(d))
    assert got.dtype == dtype
    assert got.shape == (outputs, d)
    close = 1e-5 if dtype == torch.float32 else 2**-6
    assert (got.float() - want).norm() <= close * want.norm()
    if rows and sketch.dithered and sketch.bits < 8:  # the control
        assert (other.float() - want).norm() > 2 * close * want.norm()


PRECISIONS = (
    ("torch.backends.cuda.matmul.fp32_precision = 'tf32'", "tf32"),
    ("torch.backends.cuda.matmul.fp32_precision = 'ieee'", "ieee"),
    ("torch.backends.fp32_precision = 'tf32'", "tf32"),
)
IN_FORKS = f"""
import os, torch
from rad.kernels.weight_grad import _precision
for setting, _ in {PRECISIONS}:
    if os.fork():
        os.wait()
    else:
        exec(setting)
        print(_precision(), flush=True)
        os._exit(0)
"""


def test_products_are_as_exact_as_torch_is_set() -> None:
    """Each in a process of its own: what torch is set to stays. They fork off one that has loaded
    torch."""
    done = subprocess.run([sys.executable, "-c", IN_FORKS], capture_output=True, text=True)
    assert done.stdout.split() == [expected for _, expected in PRECISIONS], done.stderr


def test_large_weight_gradients_are_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "rounded", None)
    monkeypatch.setattr(fused, "MAX_READS", 100)
    x, key, sketch = numbers((7, 20), torch.float32), make_key(5, DEVICE), StochasticRounding(2)
    with kernels_on(True):
        kept = sketch.compress(x, key)
        left = torch.ones(7, 3, device=DEVICE)
        assert sketch.contract(left, kept, (7, 20), key).shape == (3, 20)
