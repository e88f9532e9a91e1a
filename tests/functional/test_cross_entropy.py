import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unbiased import check_biased_is_caught, check_one_biased_is_caught, check_unbiased

from rad.errors import UsageError
from rad.functional import cross_entropy
from rad.memory import saved_bytes
from rad.sketches import (
    DitheredRounding,
    Identity,
    Sketch,
    StochasticRounding,
    fold_in,
    make_key,
)

KEY = make_key(3)
TARGET = torch.tensor([0, 4, -100, 2, 6])


def logits(dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(0)
    return (2 * torch.randn(5, 7, dtype=dtype)).requires_grad_()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_forward_is_torchs(dtype: torch.dtype, reduction: str) -> None:
    x = logits(dtype)
    ours = cross_entropy(x, TARGET, reduction=reduction, sketch=StochasticRounding(4), key=KEY)
    assert torch.equal(ours, F.cross_entropy(x, TARGET, reduction=reduction))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("sketch", [StochasticRounding(3), DitheredRounding(4, block=8)], ids=str)
def test_the_gradient_is_the_naive_one_of_the_same_key(sketch: Sketch, reduction: str) -> None:
    x = logits()
    loss = 3 * cross_entropy(x, TARGET, -100, reduction, sketch=sketch, key=KEY)
    (got,) = torch.autograd.grad(loss, x)
    kept = sketch.compress(x.detach().softmax(1), KEY)
    p = sketch.decompress(kept, x.shape, x.dtype, KEY)
    want = p - F.one_hot(TARGET.clamp(0), 7)
    want[2] = 0
    torch.testing.assert_close(got, want * 3 / (4 if reduction == "mean" else 1))


@pytest.mark.parametrize("sketch", [StochasticRounding(2), DitheredRounding(2)], ids=str)
def test_the_gradient_is_unbiased(sketch: Sketch) -> None:
    x = logits()

    def gradient(number: int) -> Tensor:
        loss = cross_entropy(x, TARGET, sketch=sketch, key=fold_in(KEY, number))
        return torch.autograd.grad(loss, x)[0].flatten()

    (want,) = torch.autograd.grad(F.cross_entropy(x, TARGET), x)
    samples = torch.stack([gradient(number) for number in range(4000)])
    check_unbiased(samples, want.flatten())
    check_biased_is_caught(samples, want.flatten())
    check_one_biased_is_caught(samples, want.flatten())


def test_targets_of_bytes_and_rows_that_do_not_count_are_as_in_torch() -> None:
    x, target, sketch = logits(), torch.tensor([0, 4, 1, 2, 6]), StochasticRounding(8)
    found = [
        torch.autograd.grad(cross_entropy(x, each, sketch=sketch, key=KEY), x)[0]
        for each in (target, target.to(torch.uint8))
    ]
    assert torch.equal(*found)
    loss = cross_entropy(x, torch.full_like(target, -100), sketch=sketch, key=KEY)
    assert loss.isnan()
    assert not torch.autograd.grad(loss, x)[0].any()


def test_what_is_kept() -> None:
    x, target = torch.randn(64, 500, requires_grad=True), torch.randint(500, (64,))
    sketch = StochasticRounding(4)
    kept = saved_bytes(lambda: cross_entropy(x * 1, target, sketch=sketch, key=KEY))
    assert kept == sketch.nbytes(tuple(x.shape), x.dtype) + target.nbytes + 8
    assert 7 * kept < saved_bytes(lambda: F.cross_entropy(x * 1, target))


def test_identity_is_torchs_and_a_second_derivative_is_refused() -> None:
    x = logits()
    exact = cross_entropy(x, TARGET, sketch=Identity(), key=KEY)
    (first,) = torch.autograd.grad(exact, x, create_graph=True)
    torch.autograd.grad(first.sum(), x)
    rounded = cross_entropy(x, TARGET, sketch=StochasticRounding(4), key=KEY)
    (first,) = torch.autograd.grad(rounded, x, create_graph=True)
    with pytest.raises(RuntimeError, match="cross entropy"):
        first.sum().backward()


def test_what_it_does_not_take() -> None:
    with pytest.raises(UsageError, match="mean or sum"):
        cross_entropy(logits(), TARGET, reduction="none", sketch=Identity(), key=KEY)
    with pytest.raises(UsageError, match="rows, classes"):
        cross_entropy(logits()[0], TARGET[0], sketch=Identity(), key=KEY)


def test_compiled_gradients_are_those_of_eager() -> None:
    x, sketch = logits(), StochasticRounding(4)

    def loss(x: Tensor) -> Tensor:
        return cross_entropy(x, TARGET, sketch=sketch, key=KEY)

    (want,) = torch.autograd.grad(loss(x), x)
    (got,) = torch.autograd.grad(torch.compile(loss, backend="aot_eager")(x), x)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
