import pytest
import torch
from torch import Tensor
from unbiased import check_biased_is_caught, check_one_biased_is_caught, check_unbiased

from rad.errors import UsageError
from rad.functional import matmul
from rad.memory import saved_bytes
from rad.sketches import (
    DifferentSample,
    DitheredRounding,
    Identity,
    Sketch,
    StochasticRounding,
    fold_in,
    make_key,
)

KEY = make_key(5)
SHAPES = [((3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (3, 4, 5)), ((3, 4), (2, 4, 1))]
SKETCHES = [StochasticRounding(3), DitheredRounding(2, block=8), DifferentSample(0.5)]

every_shape = pytest.mark.parametrize("shapes", SHAPES, ids=str)
every_sketch = pytest.mark.parametrize("sketch", SKETCHES, ids=str)


def factors(
    shapes: tuple[tuple[int, ...], tuple[int, ...]], dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    a, b = (torch.randn(shape, dtype=dtype, requires_grad=True) for shape in shapes)
    return a, b


@every_shape
@every_sketch
def test_gradients_are_the_naive_ones_of_the_same_key(
    sketch: Sketch, shapes: tuple[tuple[int, ...], tuple[int, ...]]
) -> None:
    a, b = factors(shapes)
    output = matmul(a, b, sketch=sketch, key=KEY)
    assert torch.equal(output, a @ b)
    g = torch.randn_like(output)

    def read(x: Tensor, number: int) -> Tensor:
        key = fold_in(KEY, number)
        kept = sketch.compress(x.detach(), key)
        return sketch.decompress(kept, x.shape, x.dtype, key)

    a_hat, b_hat = read(a, 0), read(b, 1)
    (want_a,) = torch.autograd.grad(a @ b_hat, a, g)
    (want_b,) = torch.autograd.grad(a_hat @ b, b, g)
    got_a, got_b = torch.autograd.grad(output, (a, b), g)
    torch.testing.assert_close(got_a, want_a)
    torch.testing.assert_close(got_b, want_b)


@every_sketch
def test_both_gradients_are_unbiased(sketch: Sketch) -> None:
    a, b = factors(((2, 3, 4), (2, 4, 5)))
    g = torch.randn(2, 3, 5, dtype=torch.float64)

    def gradients(number: int) -> Tensor:
        output = matmul(a, b, sketch=sketch, key=fold_in(KEY, number))
        return torch.cat([x.flatten() for x in torch.autograd.grad(output, (a, b), g)])

    want = torch.cat([x.flatten() for x in torch.autograd.grad(a @ b, (a, b), g)])
    samples = torch.stack([gradients(number) for number in range(6000)])
    check_unbiased(samples, want)
    check_biased_is_caught(samples, want)
    check_one_biased_is_caught(samples, want)


def test_a_product_by_itself_is_unbiased() -> None:
    """Each of its two gradients reads a draw of its own."""
    x = factors(((4, 4), (4, 4)))[0]
    g = torch.randn(4, 4, dtype=torch.float64)

    def gradient(number: int) -> Tensor:
        output = matmul(x, x, sketch=StochasticRounding(2), key=fold_in(KEY, number))
        return torch.autograd.grad(output, x, g)[0].flatten()

    (want,) = torch.autograd.grad(x @ x, x, g)
    check_unbiased(torch.stack([gradient(n) for n in range(4000)]), want.flatten())


def test_what_is_kept() -> None:
    a, b = torch.randn(8, 64, 32, requires_grad=True), torch.randn(8, 32, 64, requires_grad=True)
    sketch = StochasticRounding(4)

    def kept(a: Tensor, b: Tensor) -> int:
        return saved_bytes(lambda: matmul(a * 1, b * 1, sketch=sketch, key=KEY))

    of_a, of_b = (sketch.nbytes(tuple(x.shape), x.dtype) for x in (a, b))
    assert kept(a, b) == of_a + of_b + 8
    assert kept(a.detach(), b) == of_a + 8
    assert kept(a, b.detach()) == of_b + 8


def test_half_precision_and_autocast() -> None:
    a, b = factors(((2, 3, 4), (2, 4, 5)), torch.bfloat16)
    output = matmul(a, b, sketch=StochasticRounding(8), key=KEY)
    assert {x.dtype for x in (output, *torch.autograd.grad(output.sum(), (a, b)))} == {a.dtype}
    a, b = factors(((2, 3, 4), (2, 4, 5)), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        output = matmul(a, b, sketch=StochasticRounding(8), key=KEY)
        assert torch.equal(output, a @ b)
    grads = torch.autograd.grad(output.float().square().sum(), (a, b))
    assert {x.dtype for x in grads} == {torch.float32}


def test_identity_vectors_and_second_derivatives() -> None:
    a, b = factors(((3, 4), (4, 5)))
    exact = matmul(a, b, sketch=Identity(), key=KEY)
    (first,) = torch.autograd.grad(exact.square().sum(), a, create_graph=True)
    first.sum().backward()
    (first,) = torch.autograd.grad(
        matmul(a, b, sketch=StochasticRounding(4), key=KEY).square().sum(), a, create_graph=True
    )
    with pytest.raises(RuntimeError, match="product of activations"):
        first.sum().backward()
    with pytest.raises(UsageError, match="at least two"):
        matmul(a[0], b, sketch=Identity(), key=KEY)


def test_compiled_gradients_are_those_of_eager() -> None:
    a, b = factors(((2, 3, 4), (2, 4, 5)))

    def product(a: Tensor, b: Tensor) -> Tensor:
        return matmul(a, b, sketch=SKETCHES[0], key=KEY)

    g = torch.randn(2, 3, 5, dtype=torch.float64)
    want = torch.autograd.grad(product(a, b), (a, b), g)
    got = torch.autograd.grad(torch.compile(product, backend="aot_eager")(a, b), (a, b), g)
    assert all(map(torch.equal, got, want))
