import math

import pytest
import torch
from torch import Tensor, nn
from unbiased import (
    check_biased_is_caught,
    check_mean_square,
    check_one_biased_is_caught,
    check_unbiased,
)

from rad.dtypes import accumulation_dtype
from rad.functional import dithered, elementwise, multiply, multiply_grad_variances, multiply_nbytes
from rad.functional.elementwise import derivative_rows
from rad.memory import saved_bytes
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Identity,
    Project,
    RotatedRounding,
    SampledRounding,
    Sketch,
    StochasticRounding,
    fold_in,
    make_key,
)
from rad.sketches.blockwise import Rounding

KEY = make_key(6)
SHAPES = [
    ((5, 40), (5, 40)),
    ((3, 4, 24), (3, 4, 24)),
    ((2, 3, 5, 8), (2, 3, 5, 8)),
    ((30,), (30,)),
    ((4, 3, 24), (3, 24)),  # the second is repeated along the first axis
    ((3, 24), (4, 3, 24)),
    ((4, 1, 24), (4, 5, 24)),
    ((1, 5, 24), (4, 5, 24)),
    ((4, 5, 24), (4, 5, 1)),  # one number a row is kept as it is
    ((4, 5, 1), (1, 24)),
    ((4, 24), ()),
]
every_pair = pytest.mark.parametrize(("left", "right"), SHAPES, ids=str)
SKETCHES = [StochasticRounding(2), DitheredRounding(3, block=4), DifferentSample(0.5)]
every_sketch = pytest.mark.parametrize("sketch", SKETCHES, ids=str)
DTYPES = [torch.float64, torch.float32, torch.bfloat16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def factors(
    left: tuple[int, ...], right: tuple[int, ...], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    x, y = (torch.randn(shape, dtype=dtype) for shape in (left, right))
    return x.requires_grad_(), y.requires_grad_()


def read(x: Tensor, sketch: Sketch, key: Tensor) -> Tensor:
    """What is read of a factor: the factor itself, where a sketch would not be shorter."""
    rows = derivative_rows(x.detach())
    if sketch.nbytes(tuple(rows.shape), x.dtype) >= x.nbytes:
        return x.detach().to(accumulation_dtype(x.dtype))
    kept = sketch.compress(rows, key)
    return sketch.decompress(kept, rows.shape, accumulation_dtype(x.dtype), key).view(x.shape)


@every_pair
@every_dtype
def test_identity_is_torchs(
    left: tuple[int, ...], right: tuple[int, ...], dtype: torch.dtype
) -> None:
    x, y = factors(left, right, dtype)
    mine, theirs = multiply(x, y, sketch=Identity(), key=KEY), x * y
    assert torch.equal(mine, theirs)
    grad_output = torch.randn_like(theirs)
    got, want = (torch.autograd.grad(o, (x, y), grad_output) for o in (mine, theirs))
    assert all(torch.equal(a, e) for a, e in zip(got, want, strict=True))


@every_pair
@every_sketch
@every_dtype
@pytest.mark.parametrize("piece", [dithered.PIECE, 100])
def test_forward_is_torchs_and_gradients_read_the_sketches(
    left: tuple[int, ...],
    right: tuple[int, ...],
    sketch: Sketch,
    dtype: torch.dtype,
    piece: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dithered, "PIECE", piece)
    x, y = factors(left, right, dtype)
    output = multiply(x, y, sketch=sketch, key=KEY)
    assert torch.equal(output, x * y)
    grad_output = torch.randn_like(output)
    got = torch.autograd.grad(output, (x, y), grad_output)
    g = grad_output.to(accumulation_dtype(dtype))
    others = read(y, sketch, fold_in(KEY, 0)), read(x, sketch, fold_in(KEY, 1))
    for factor, other, grad in zip((x, y), others, got, strict=True):
        expected = (g * other).sum_to_size(factor.shape)
        assert (grad.dtype, grad.shape) == (factor.dtype, factor.shape)
        if dtype == torch.bfloat16:
            terms = output.numel() // max(1, factor.numel())
            torch.testing.assert_close(
                grad.to(g.dtype), expected, rtol=2**-6, atol=2**-6 * math.sqrt(terms)
            )
        else:
            torch.testing.assert_close(grad, expected)


@every_sketch
@pytest.mark.parametrize(
    ("left", "right"), [((3, 24), (3, 24)), ((4, 2, 24), (2, 24)), ((2, 24), (4, 1, 24))], ids=str
)
def test_gradients_are_unbiased_with_the_stated_variances(
    sketch: Sketch, left: tuple[int, ...], right: tuple[int, ...]
) -> None:
    x, y = factors(left, right)
    grad_output = torch.randn((x * y).shape, dtype=torch.float64)
    truths = torch.autograd.grad(x * y, (x, y), grad_output)

    def gradients(key: Tensor) -> Tensor:
        output = multiply(x, y, sketch=sketch, key=key)
        return torch.cat([g.flatten() for g in torch.autograd.grad(output, (x, y), grad_output)])

    n = 7_000 if isinstance(sketch, DifferentSample) else 2_000
    samples = torch.stack([gradients(key) for key in fold_in(make_key(0), torch.arange(n))])
    parts = samples.split([x.numel(), y.numel()], 1)
    for sample, truth in zip(parts, truths, strict=True):
        check_unbiased(sample, truth.flatten())
        check_biased_is_caught(sample, truth.flatten())
        if isinstance(sketch, Rounding):
            check_one_biased_is_caught(sample, truth.flatten())
    if isinstance(sketch, DifferentSample):
        return
    variances = multiply_grad_variances(x, y, grad_output, sketch)
    for sample, truth, variance in zip(parts, truths, variances, strict=True):
        check_mean_square(sample, truth.flatten(), variance.item())


def test_a_square_keeps_one_sketch_and_is_unbiased() -> None:
    torch.manual_seed(1)
    sketch = DitheredRounding(2)
    x = torch.randn(3, 8, dtype=torch.float64, requires_grad=True)
    grad_output = torch.randn(3, 8, dtype=torch.float64)

    def gradient(key: Tensor) -> Tensor:
        output = multiply(x, x, sketch=sketch, key=key)
        return torch.autograd.grad(output, x, grad_output)[0]

    samples = torch.stack([gradient(key) for key in fold_in(make_key(0), torch.arange(4_000))])
    truth = 2 * grad_output * x.detach()
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)
    kept = saved_bytes(lambda: multiply(x, x, sketch=sketch, key=KEY))
    assert kept == multiply_nbytes(x, x, sketch) == sketch.nbytes(x.shape, x.dtype) + 8


def test_the_factors_have_draws_of_their_own() -> None:
    """So that the product of the two gradients, number by number, is unbiased, too."""
    torch.manual_seed(2)
    x = torch.randn(1, 8, dtype=torch.float64)
    many = [x.repeat(20_000, 1).requires_grad_() for _ in range(2)]
    output = multiply(*many, sketch=DitheredRounding(1), key=KEY)
    by_x, by_y = torch.autograd.grad(output.sum(), many)
    check_unbiased(by_x * by_y, x[0].square())
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(by_x * by_x, x[0].square())


@every_pair
def test_bytes(left: tuple[int, ...], right: tuple[int, ...]) -> None:
    sketch = DitheredRounding(4)
    for needed in ((True, True), (True, False), (False, True)):
        x, y = factors(left, right, torch.float32)
        for factor, is_needed in zip((x, y), needed, strict=True):
            factor.requires_grad_(is_needed)
        kept = saved_bytes(lambda x=x, y=y: multiply(x, y, sketch=sketch, key=KEY))
        assert kept == multiply_nbytes(x, y, sketch)
        smallest = sum(
            min(sketch.nbytes(tuple(derivative_rows(t).shape), t.dtype), t.nbytes)
            for t, is_read in ((y, needed[0]), (x, needed[1]))
            if is_read
        )
        assert smallest <= kept <= smallest + 8


def test_a_parameter_costs_nothing_and_a_part_of_a_larger_tensor_not_all_of_it() -> None:
    sketch = StochasticRounding(4)
    x, scale = torch.randn(6, 32, requires_grad=True), nn.Parameter(torch.randn(6, 32))
    kept = saved_bytes(lambda: multiply(x, scale, sketch=sketch, key=KEY))
    assert kept == sketch.nbytes(x.shape, x.dtype) + 8 == multiply_nbytes(x, scale, sketch)
    both = torch.randn(4, 64, requires_grad=True)
    a, b = (both * 1).chunk(2, 1)
    assert saved_bytes(lambda: multiply(a, b, sketch=sketch, key=KEY)) == multiply_nbytes(
        a, b, sketch
    )
    column = torch.randn(6, 2, requires_grad=True)[:, :1]
    kept = saved_bytes(lambda: multiply(x, column, sketch=sketch, key=KEY))
    assert kept == multiply_nbytes(x, column, sketch) == sketch.nbytes(x.shape, x.dtype) + 24 + 8


def test_factors_of_two_types_layouts_and_a_backward_pass_after_changes_in_place() -> None:
    sketch = DitheredRounding(8)
    x = torch.randn(24, 6).t().requires_grad_()
    y = torch.randn(6, 24, dtype=torch.bfloat16, requires_grad=True)
    for a, b in ((x, y), (y, x), (x, x.detach().double().requires_grad_())):
        mine, exact = multiply(a, b, sketch=sketch, key=KEY), a * b
        assert mine.dtype == exact.dtype
        assert torch.equal(mine, exact)
        grad_output = torch.randn_like(exact).t().contiguous().t()
        for got, want in zip(
            torch.autograd.grad(mine, (a, b), grad_output),
            torch.autograd.grad(exact, (a, b), grad_output),
            strict=True,
        ):
            assert got.dtype == want.dtype
            assert (got - want).norm() < 0.02 * want.norm()
    z = x.detach().clone().requires_grad_()
    moved = z * 1
    output = multiply(moved, x, sketch=sketch, key=KEY)
    moved.add_(1)  # torch's own product would refuse its backward pass
    assert torch.autograd.grad(output.sum(), x)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(0, 4), (4, 0)], ids=str)
def test_no_numbers(shape: tuple[int, ...]) -> None:
    x, y = torch.zeros(shape, requires_grad=True), torch.zeros(4, *shape, requires_grad=True)
    output = multiply(x, y, sketch=StochasticRounding(2), key=KEY)
    for grad, factor in zip(torch.autograd.grad(output.sum(), (x, y)), (x, y), strict=True):
        assert grad.shape == factor.shape


def test_a_second_derivative_other_numbers_and_unknown_variances_are_refused() -> None:
    x, y = factors((3, 24), (3, 24))
    output = multiply(x, y, sketch=StochasticRounding(4), key=KEY)
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()
    for wrong in (x.to(torch.complex64), x.to(torch.int64)):
        with pytest.raises(TypeError, match="cannot sketch"):
            multiply(wrong, y, sketch=StochasticRounding(4), key=KEY)
    with pytest.raises(RuntimeError, match="must match"):
        multiply(x, y[:, :5], sketch=StochasticRounding(4), key=KEY)
    for sketch in (Project(0.5), SampledRounding(0.5, 2), RotatedRounding(2)):
        with pytest.raises(TypeError, match="closed-form"):
            multiply_grad_variances(x, y, x, sketch)
    assert multiply_grad_variances(x, y, x, Identity()) == (0, 0)


def test_with_an_activation_function_it_is_a_gated_unit() -> None:
    """Two operators in a row, each with draws of its own."""
    torch.manual_seed(3)
    x = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    gate = torch.randn(2, 8, dtype=torch.float64, requires_grad=True)
    grad_output, sketch = torch.randn(2, 8, dtype=torch.float64), StochasticRounding(3)

    def gradient(key: Tensor) -> Tensor:
        active = elementwise(gate, torch.nn.functional.silu, sketch=sketch, key=fold_in(key, 7))
        output = multiply(active, x, sketch=sketch, key=fold_in(key, 8))
        return torch.stack(torch.autograd.grad(output, (gate, x), grad_output))

    samples = torch.stack([gradient(key) for key in fold_in(make_key(1), torch.arange(3_000))])
    exact = torch.nn.functional.silu(gate) * x
    truth = torch.stack(torch.autograd.grad(exact, (gate, x), grad_output))
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)


def test_compiled_is_eager() -> None:
    torch.compiler.reset()
    scale, (x, grad_output) = torch.randn(5, 24), torch.randn(2, 6, 5, 24)

    def run(x: Tensor, y: Tensor, sketch: Sketch) -> Tensor:
        return multiply(multiply(x, y, sketch=sketch, key=KEY), x, sketch=sketch, key=KEY + 1)

    compiled = torch.compile(run, backend="aot_eager", fullgraph=True)
    for sketch in (DitheredRounding(3), DifferentSample(0.3)):
        found = []
        for function in (run, compiled):
            leaves = [t.clone().requires_grad_() for t in (x, scale)]
            output = function(*leaves, sketch)
            found.append((output, *torch.autograd.grad(output, leaves, grad_output)))
        for mine, reference in zip(*found, strict=True):
            assert torch.equal(mine, reference)
