"""Rounding: its expectation over all noise, its edges, its codes."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from unbiased import check_biased_is_caught, check_mean_square, check_unbiased, draws

from rad import backends
from rad.draws.reference import words
from rad.errors import UsageError
from rad.sketches import (
    DitheredRounding,
    SampledRounding,
    StochasticRounding,
    blockwise,
    make_key,
    rounding,
    sampled_rounding,
)
from rad.sketches.blockwise import Rounding
from rad.sketches.grid import NEAR, uniform

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BITS = [1, 2, 3, 4, 8]
PLAIN = [kind(bits) for kind in (StochasticRounding, DitheredRounding) for bits in BITS]
ZEROS = [kind(b, None, True) for kind in (StochasticRounding, DitheredRounding) for b in (2, 3)]
every_rounding = pytest.mark.parametrize("sketch", PLAIN + ZEROS, ids=str)
PARTS = 2048


@pytest.fixture
def all_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row i of PARTS rows gets the noise (i + 1/2) / PARTS: every value, equally often."""

    def spread(key: Tensor, rows: range, slots: int, bits: int) -> Tensor:
        middle = (torch.arange(rows.start, rows.stop) * 2 + 1) * ((1 << bits) // (2 * PARTS))
        return middle.to(torch.int32)[:, None].repeat(1, slots)

    for module in (blockwise, rounding):
        monkeypatch.setattr(module, "uniform", spread)
    # The compiled loops draw by themselves; test_rounding_loops.py has them equal to the bit.
    monkeypatch.setattr(backends, "in_loops", lambda x: False)


def there_and_back(sketch: Rounding | SampledRounding, x: Tensor, seed: int = 0) -> Tensor:
    key = make_key(seed)
    return sketch.decompress(sketch.compress(x, key), x.shape, x.dtype, key)


def step_of(sketch: Rounding, x: Tensor) -> Tensor:
    """Of each row."""
    return 2 * sketch.fit(x)[:, 1:].to(torch.float64)


SCALES = [1.0, 1e-30, 1e30, 1e-39]


@pytest.mark.usefixtures("all_noise")
@every_rounding
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_the_average_over_all_noise_is_exact(sketch: Rounding, scale: float, offset: float) -> None:
    torch.manual_seed(0)
    x = ((torch.randn(1, 23) + offset) * scale).expand(PARTS, -1)
    bias = there_and_back(sketch, x).double().mean(0) - x[0].double()
    step = step_of(sketch, x[:1])
    tolerance = step / PARTS + 1e-7 * (offset * scale + step) + 5e-45
    assert (bias.abs() <= tolerance).all()
    assert (tolerance < 0.002 * step).all()


@pytest.mark.usefixtures("all_noise")
@every_rounding
def test_the_mean_square_over_all_noise_is_the_stated_variance(sketch: Rounding) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 23, dtype=torch.float64).relu().expand(PARTS, -1)
    mean_square = (there_and_back(sketch, x) - x).square().mean(0)
    expected = sketch.element_variance(x[:1])[0]
    assert ((mean_square - expected).abs() <= 1e-3 * step_of(sketch, x[:1]) ** 2).all()
    torch.testing.assert_close(sketch.variance(x[:1]), expected.sum())


@pytest.mark.parametrize("outlier", [1e8, 1e10, 1e13])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "sketch", [StochasticRounding(3), StochasticRounding(8), ZEROS[0]], ids=str
)
def test_a_number_beside_an_outlier_is_unbiased(
    sketch: Rounding, dtype: torch.dtype, outlier: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lies y parts of a step above the lowest: its upper level has a chance of y parts."""
    x = torch.tensor([[0.0, 1.0, 2.0, outlier]], dtype=dtype).expand(PARTS, -1)
    scales, unit = sketch.fit(x), 1 << sketch.fraction_bits
    low, step = scales[0, 0].double(), 2 * scales[0, 1].double()
    y = ((x[0, 2].double() - low) / step * unit).item()
    whole = math.floor(y)
    drawn = ((torch.arange(PARTS) * 2 + 1) / (2 * PARTS))[:, None]
    monkeypatch.setattr(blockwise, "part", lambda key, rows, slots, kind: drawn.to(kind))
    monkeypatch.setattr(backends, "in_loops", lambda x: False)

    def raised(by: int) -> float:
        """How often a draw raises it that raises whole numbers of more than `by` parts."""
        draw = torch.full((PARTS, 4), unit - 1 - by, dtype=torch.int32)
        for module in (blockwise, rounding):
            monkeypatch.setattr(module, "uniform", lambda *_: draw)
        codes = sketch.round(x, scales, make_key(0), range(PARTS))[:, 2]
        return (codes - int(sketch.zero_code)).double().mean().item()

    assert raised(whole + 1) == 0
    assert whole == 0 or raised(whole - 1) == 1
    if dtype == torch.float64 or y < NEAR:
        assert abs(raised(whole) - (y - whole)) <= 1 / PARTS + 1e-6 * y


def test_a_constant_is_exact_and_so_are_values_on_levels() -> None:
    for sketch in PLAIN + ZEROS:
        x = torch.tensor([[3.3], [0.0], [-1e-40]]).expand(3, 9)
        assert torch.equal(there_and_back(sketch, x), x)
        assert sketch.variance(x) == 0
    binary = torch.randint(2, (5, 40)) * 7.5
    for seed in range(20):
        torch.testing.assert_close(there_and_back(StochasticRounding(1), binary, seed), binary)


@pytest.mark.parametrize("bits", BITS)
def test_zeros_of_a_relu_stay_zeros(bits: int) -> None:
    x = torch.randn(50, 40).relu()
    x_hat = there_and_back(StochasticRounding(bits), x)
    assert not x_hat[x == 0].any()
    assert (StochasticRounding(bits).element_variance(x)[x == 0] == 0).all()


@pytest.mark.parametrize("sketch", ZEROS, ids=str)
@pytest.mark.parametrize("sign", [1.0, -1.0, 0.0])
def test_a_zero_code_tells_zeros_from_the_rest(sketch: Rounding, sign: float) -> None:
    x = torch.randn(30, 41)
    x = torch.where(torch.rand(x.shape) < 0.5, x.abs() * sign if sign else x, 0.0)
    x[3], x[4, 5] = 0.0, math.nan
    kept = sketch.compress(x, make_key(0))
    assert torch.equal(sketch.active(kept, x.shape), x != 0)
    x_hat = sketch.decompress(kept, x.shape, x.dtype, make_key(0))
    assert not x_hat[x == 0].any()
    assert x_hat[4][x[4] != 0].isnan().all()


@pytest.mark.parametrize("sketch", ZEROS, ids=str)
def test_a_zero_code_is_unbiased_with_the_stated_variance(sketch: Rounding) -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 8, dtype=torch.float64).relu()
    samples = draws(lambda k: sketch.decompress(sketch.compress(x, k), x.shape, x.dtype, k), 10_000)
    check_unbiased(samples, x)
    check_biased_is_caught(samples, x)
    check_mean_square(samples, x, sketch.variance(x).item())


@pytest.mark.parametrize("dithered", [True, False])
def test_sampled_rounding_of_a_relus_output(dithered: bool) -> None:
    torch.manual_seed(0)
    x, sketch = torch.randn(3, 8, dtype=torch.float64).relu(), SampledRounding(0.4, 2, dithered)
    samples = draws(lambda k: sketch.decompress(sketch.compress(x, k), x.shape, x.dtype, k), 10_000)
    check_unbiased(samples, x)
    check_biased_is_caught(samples, x)
    check_mean_square(samples, x, sketch.variance(x).item())


@given(
    st.sampled_from(PLAIN),
    st.sampled_from(DTYPES),
    st.integers(-300, 300),
    st.sampled_from([0.0, 1.0, 1000.0]),
    st.integers(1, 30),
    st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_nothing_is_clipped(
    sketch: Rounding, dtype: torch.dtype, exponent: int, offset: float, d: int, seed: int
) -> None:
    """No number moves by more than a step, at any scale that its type can hold."""
    low, high = math.log10(torch.finfo(dtype).tiny) + 3, math.log10(torch.finfo(dtype).max) - 5
    scale = 10.0 ** min(max(exponent, low), high)
    torch.manual_seed(seed)
    x = ((torch.randn(2, d, dtype=torch.float64) + offset) * scale).to(dtype)
    x_hat, step = there_and_back(sketch, x, seed).double(), step_of(sketch, x)
    tolerance = torch.finfo(dtype).eps * x.double().abs().amax()
    assert ((x_hat - x.double()).abs() <= step * (1 + 1e-6) + 2 * tolerance).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bits", BITS)
def test_the_range_of_huge_numbers_does_not_overflow(bits: int, dtype: torch.dtype) -> None:
    most = 0.98 * torch.finfo(dtype).max
    most = torch.tensor(most, dtype=dtype).item()
    x = torch.tensor([[-most, most, 0.0, most / 3, -most / 7]], dtype=dtype)
    for seed in range(10):
        x_hat = there_and_back(StochasticRounding(bits), x, seed)
        assert x_hat[:, 0] == -most
        error = (x_hat.double() / most - x.double() / most).abs()  # no difference overflows
        assert (error <= 2 / ((1 << bits) - 1) * 1.01).all()


@every_rounding
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_shows_in_its_row_only(sketch: Rounding, poison: float) -> None:
    x = torch.randn(3, 20)
    x[1, 7] = poison
    x_hat = there_and_back(sketch, x)
    assert not x_hat[1].isfinite().any()
    assert x_hat[[0, 2]].isfinite().all()
    assert not sketch.variance(x).isfinite()
    sampled = there_and_back(SampledRounding(0.3, 2), x)
    assert not sampled[1][sampled[1] != 0].isfinite().any()


@every_rounding
@pytest.mark.parametrize("shape", [(0, 7), (3, 0), (1, 1), (5,)], ids=str)
def test_small_and_empty_shapes(sketch: Rounding, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    kept = sketch.compress(x, make_key(0))
    assert there_and_back(sketch, x).shape == x.shape
    assert sum(t.nbytes for t in kept) == sketch.nbytes(shape, x.dtype)
    assert sketch.variance(x).shape == ()


@pytest.mark.parametrize("block", [1, 3, 8, 20, 64, 1000])
def test_blocks_have_grids_of_their_own_and_rows_are_read_apart(block: int) -> None:
    x = torch.randn(13, 20, dtype=torch.float64)
    for sketch in (StochasticRounding(3, block), DitheredRounding(8, block)):
        kept = sketch.compress(x, make_key(0))
        stored = sum(t.untyped_storage().nbytes() for t in kept)
        assert stored == sketch.nbytes(x.shape, x.dtype)
        assert kept[-1].shape == (-(-260 // block), 2)
        for number, part in enumerate(x.flatten().split(block)):
            assert kept[-1][number, 0] == part.min()
        x_hat = there_and_back(sketch, x)
        for first, last in itertools.combinations(range(0, 14, 3), 2):
            rows = range(first, last)
            got = sketch.decompress(kept, x.shape, x.dtype, make_key(0), rows)
            assert torch.equal(got, x_hat[first:last])
    assert torch.equal(there_and_back(StochasticRounding(2, 1), x), x)


@pytest.mark.parametrize(
    "sketch", [*PLAIN, StochasticRounding(3, 7), SampledRounding(0.4, 3)], ids=str
)
def test_pieces_are_the_whole(
    sketch: Rounding | SampledRounding, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, key = torch.randn(37, 11), make_key(3)
    whole = sketch.compress(x, key)
    for module in (blockwise, sampled_rounding):
        monkeypatch.setattr(module, "PIECE", 64)
    assert all(map(torch.equal, whole, sketch.compress(x, key)))


def test_bytes() -> None:
    shape = (150, 784)
    assert StochasticRounding(3).nbytes(shape, torch.float32) == 150 * (784 * 3 // 8 + 8)
    assert DitheredRounding(1, 256).nbytes(shape, torch.bfloat16) == 150 * 98 + 460 * 4
    assert StochasticRounding(8).nbytes(shape, torch.float16) == 150 * (784 + 8)
    assert SampledRounding(0.5, 2).nbytes(shape, torch.float32) == 150 * (98 + 8)


def test_what_cannot_be_is_refused() -> None:
    for bits in (0, 5, 16):
        with pytest.raises(UsageError, match="choose one of 1, 2, 3, 4, 8"):
            StochasticRounding(bits)
    with pytest.raises(UsageError, match="bits"):
        SampledRounding(0.5, 7)
    with pytest.raises(ValueError, match="keep_fraction"):
        SampledRounding(0.0, 2)
    with pytest.raises(UsageError, match="block"):
        DitheredRounding(2, block=0)
    with pytest.raises(UsageError, match="at least 2 bits"):
        StochasticRounding(1, zero_code=True)
    plain = StochasticRounding(2)
    with pytest.raises(UsageError, match="zero_code"):
        plain.active(plain.compress(torch.ones(3), make_key(0)), (3,))


@given(st.integers(0, (1 << 63) - 1), st.integers(16, 30), st.integers(1, 9))
def test_uniform_takes_lanes_and_low_bits_of_words(key: int, bits: int, slots: int) -> None:
    drawn = uniform(torch.tensor(key), range(5, 6), slots, bits)[0].tolist()
    count = -(-slots // 4)
    low = int(words(torch.tensor(key), range(5, 6), count + 1)[0, -1]) >> 48 & 0xFFFF
    for slot, value in enumerate(drawn):
        word = int(words(torch.tensor(key), range(5, 6), count)[0, slot // 4])
        lane = (word >> 16 * (slot % 4) & 0xFFFF) ^ 0x8000
        assert value == (lane << bits - 16) + (low & (1 << bits - 16) - 1)
        assert 0 <= value < 1 << bits
