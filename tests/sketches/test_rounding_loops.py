"""The compiled loops against the torch operators that they stand for, to the bit."""

import itertools

import pytest
import torch
from torch import Tensor

from rad import backends
from rad.sketches import (
    DitheredRounding,
    StochasticRounding,
    compiled_rounding,
    fold_in,
    make_key,
)
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


LONG = 5003
"""More numbers than a chunk of the loops, and no whole groups of codes."""


@pytest.mark.parametrize("shape", [(0, 4), (3, 0), (1, 1), (3, LONG), (LONG, 3)], ids=str)
@pytest.mark.parametrize("block", [None, 1, 6, 2100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_number_of_chunks_and_blocks(
    shape: tuple[int, int], block: int | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, key = torch.randn(shape, dtype=dtype), make_key(2)
    sketches = StochasticRounding(3, block), DitheredRounding(2, block, zero_code=True)

    def both() -> list[Tensor]:
        kept = [sketch.compress(x, key) for sketch in sketches]
        read = [s.decompress(k, shape, dtype, key) for s, k in zip(sketches, kept, strict=True)]
        return [*(part for parts in kept for part in parts), *read]

    in_loops = both()
    monkeypatch.setattr(backends, "in_loops", lambda x: False)
    assert all(map(torch.equal, in_loops, both()))


@pytest.mark.parametrize("sketch", SKETCHES, ids=repr)
def test_some_rows_columns_and_steps(sketch: Rounding, monkeypatch: pytest.MonkeyPatch) -> None:
    rows, d, key = 31, 13, make_key(7)
    x = torch.randn(rows, d).relu_()
    short, steps = x.to(torch.bfloat16), torch.randn(4, 5, d)
    keys = fold_in(key, torch.arange(len(steps)))
    left = torch.randn(rows, 6)

    def read() -> list[Tensor]:
        kept, of_short = sketch.compress(x, key), sketch.compress(short, key)
        of_steps = sketch.compress_steps(steps, keys)
        some = [
            sketch.decompress(saved, (rows, d), torch.float32, key, range(first, last))
            for saved in (kept, of_short)
            for first, last in ((0, rows), (3, 4), (9, 30), (5, 5))
        ]
        return [*of_steps, sketch.decompress_steps(of_steps, steps.shape, x.dtype, keys), *some]

    in_loops, kept = read(), sketch.compress(x, key)
    x_hat = sketch.decompress(kept, (rows, d), x.dtype, key)
    monkeypatch.setattr(compiled_rounding, "SMALL_BYTES", 0)
    gradients = [sketch.contract(part, kept, (rows, d), key) for part in (left, left[:, :1])]
    monkeypatch.setattr(compiled_rounding, "PIECE_BYTES", 0)
    gradients += [sketch.contract(left, kept, (rows, d), key)]
    for part, gradient in zip((left, left[:, :1], left), gradients, strict=True):
        torch.testing.assert_close(gradient, part.t() @ x_hat)
    monkeypatch.setattr(backends, "in_loops", lambda x: False)
    assert all(map(torch.equal, in_loops, read()))


def test_a_product_that_is_differentiated() -> None:
    sketch, x, key = StochasticRounding(3), torch.randn(5, 8), make_key(0)
    left, kept = torch.randn(5, 3, requires_grad=True), sketch.compress(x, key)
    sketch.contract(left, kept, (5, 8), key).sum().backward()
    assert left.grad is not None
    x_hat = sketch.decompress(kept, (5, 8), x.dtype, key)
    torch.testing.assert_close(left.grad, x_hat.sum(1, keepdim=True).expand(5, 3))


def test_a_key_for_each_block(monkeypatch: pytest.MonkeyPatch) -> None:
    sketch, x = DitheredRounding(3), inputs(torch.float32)["normal"]
    keys, blocks = fold_in(make_key(0), torch.arange(len(x))), range(len(x))
    scales = sketch.fit(x)
    levels = sketch.round(x, scales, keys, blocks)
    x_hat = sketch.read(levels, scales, x.dtype, keys, blocks)
    monkeypatch.setattr(backends, "in_loops", lambda x: False)
    assert torch.equal(levels, sketch.round(x, scales, keys, blocks))
    assert torch.equal(x_hat, sketch.read(levels, scales, x.dtype, keys, blocks))
