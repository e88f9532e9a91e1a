import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from unbiased import (
    check_biased_is_caught,
    check_mean_square,
    check_one_biased_is_caught,
    check_unbiased,
)

from rad import backends
from rad.dtypes import accumulation_dtype
from rad.errors import UsageError
from rad.functional import dithered, softmax, softmax_grad_variance, softmax_nbytes
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
    make_key,
)

KEY = make_key(5)
CASES = [((3, 4, 7), -1), ((5, 7), 1), ((3, 4, 5), 1), ((4, 3, 2, 3), 0), ((9,), 0), ((6, 1), -1)]
every_case = pytest.mark.parametrize(("shape", "dim"), CASES, ids=str)
SKETCHES = [DitheredRounding(2), DitheredRounding(3, block=4), DitheredRounding(2, zero_code=True)]
every_sketch = pytest.mark.parametrize("sketch", SKETCHES, ids=str)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def naive(p: Tensor, dim: int, grad_output: Tensor, sketch: DitheredRounding) -> Tensor:
    """The formula with everything dense, float32 at least."""
    wide = accumulation_dtype(p.dtype)
    p, g = (t.detach().to(wide).movedim(dim, -1).contiguous() for t in (p, grad_output))
    q = sketch.decompress(sketch.compress(p, KEY), p.shape, wide, KEY)
    v = sketch.element_variance(p)
    return (q * (g - (q * g).sum(-1, keepdim=True)) + g * v).movedim(-1, dim)


@every_case
@every_dtype
def test_identity_is_torchs(shape: tuple[int, ...], dim: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=dtype, requires_grad=True)
    mine, theirs = softmax(x, dim, sketch=Identity(), key=KEY), F.softmax(x, dim)
    assert torch.equal(mine, theirs)
    grad_output = torch.randn_like(theirs)
    (a,), (e,) = (torch.autograd.grad(o, x, grad_output) for o in (mine, theirs))
    assert torch.equal(a, e)


@every_case
@every_sketch
@every_dtype
@pytest.mark.parametrize("loops", [True, False], ids=["loops", "operators"])
@pytest.mark.parametrize("piece", [dithered.PIECE, 24])
def test_forward_is_torchs_and_the_gradient_reads_the_sketch(
    shape: tuple[int, ...],
    dim: int,
    sketch: DitheredRounding,
    dtype: torch.dtype,
    piece: int,
    loops: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dithered, "PIECE", piece)
    if not loops:
        monkeypatch.setattr(backends, "in_loops", lambda x: False)
    torch.manual_seed(0)
    x = (2 * torch.randn(shape, dtype=dtype)).requires_grad_()
    output = softmax(x, dim, sketch=sketch, key=KEY)
    assert torch.equal(output, F.softmax(x, dim))
    grad_output = torch.randn_like(output)
    (got,) = torch.autograd.grad(output, x, grad_output)
    expected = naive(output, dim, grad_output, sketch)
    assert got.dtype == dtype
    if dtype in (torch.bfloat16, torch.float16):  # at random to one of the two around it
        step = 2**-7 if dtype == torch.bfloat16 else 2**-10
        torch.testing.assert_close(got.float(), expected, rtol=step, atol=1e-4)
    else:
        torch.testing.assert_close(got, expected)


N = 100_000
"""Samples: equal rows in one call, each with draws of its own."""


@every_sketch
def test_the_gradient_is_unbiased_with_the_stated_variance(sketch: DitheredRounding) -> None:
    """2 or 3 bits a number; without the correction it would not be."""
    torch.manual_seed(1)
    d = 8 if sketch.block else 6  # whole blocks: all samples have the same grids
    x, grad = 1.5 * torch.randn(2, 1, d, dtype=torch.float64)
    if sketch.zero_code:
        x[0, 1] = -torch.inf
    many = x.repeat(N, 1).requires_grad_()
    output = softmax(many, -1, sketch=sketch, key=KEY)
    (samples,) = torch.autograd.grad(output, many, grad.expand(N, d))
    x.requires_grad_()
    (truth,) = torch.autograd.grad(F.softmax(x, -1), x, grad)
    check_unbiased(samples, truth[0])
    check_biased_is_caught(samples, truth[0])
    check_one_biased_is_caught(samples, truth[0])
    check_mean_square(samples, truth[0], softmax_grad_variance(x, grad, sketch).item())
    v = sketch.element_variance(F.softmax(x, -1))
    with pytest.raises(AssertionError, match="off by"):
        check_unbiased(samples - grad * v, truth[0])


def test_variance_along_other_axes_and_of_identity() -> None:
    torch.manual_seed(2)
    sketch, (x, grad) = DitheredRounding(2), torch.randn(2, 5, 4, dtype=torch.float64)
    one = softmax_grad_variance(x, grad, sketch)
    assert torch.allclose(softmax_grad_variance(x.t(), grad.t(), sketch, 0), one)
    assert softmax_grad_variance(x, grad, Identity()) == 0
    with pytest.raises(UsageError, match="DitheredRounding"):
        softmax_grad_variance(x, grad, StochasticRounding(2))


def test_masked_gradients_are_zero_exactly_with_a_zero_code_and_on_average_without() -> None:
    torch.manual_seed(3)
    x, hidden = torch.randn(2000, 6, dtype=torch.float64), torch.arange(6) > 3
    x = x[:1].repeat(2000, 1).masked_fill(hidden, -torch.inf).requires_grad_()
    grad_output = torch.randn(1, 6, dtype=torch.float64).expand(2000, 6)
    found = {}
    for sketch in (DitheredRounding(4), DitheredRounding(4, zero_code=True)):
        output = softmax(x, -1, sketch=sketch, key=KEY)
        assert (output[:, hidden] == 0).all()
        (found[sketch.zero_code],) = torch.autograd.grad(output, x, grad_output)
    assert (found[True][:, hidden] == 0).all()
    noisy = found[False][:, hidden]
    assert (noisy != 0).all()
    assert (noisy.mean(0).abs() < 6 * noisy.std(0) / 2000**0.5).all()


@every_case
def test_bytes(shape: tuple[int, ...], dim: int) -> None:
    sketch = DitheredRounding(4)
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(shape, dtype=dtype, requires_grad=True)
        kept = saved_bytes(lambda x=x: softmax(x, dim, sketch=sketch, key=KEY))
        assert kept == softmax_nbytes(x, dim, sketch)
        assert saved_bytes(lambda x=x: softmax(x, dim, sketch=Identity(), key=KEY)) == x.nbytes
        assert softmax_nbytes(x, dim, Identity()) == x.nbytes
        assert saved_bytes(lambda x=x: softmax(x.detach(), dim, sketch=sketch, key=KEY)) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_shows(value: float) -> None:
    x = torch.randn(3, 5, dtype=torch.float64)
    x[1, 2] = value
    x.requires_grad_()
    output = softmax(x, -1, sketch=DitheredRounding(4), key=KEY)
    (grad,) = torch.autograd.grad(output, x, torch.randn_like(output))
    assert not grad[1].isfinite().any()
    assert grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize(
    "sketch",
    [
        StochasticRounding(4),
        DifferentSample(0.5),
        Project(0.5),
        SampledRounding(0.5, 4),
        RotatedRounding(4),
    ],
    ids=str,
)
def test_what_would_bias_is_refused(sketch: Sketch) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]*use DitheredRounding[^\n]*$"):
        softmax(torch.randn(3, 4), -1, sketch=sketch, key=KEY)


def test_a_second_derivative_complex_numbers_and_missing_axes_are_refused() -> None:
    x, sketch = torch.randn(3, 4, requires_grad=True), DitheredRounding(4)
    output = softmax(x, -1, sketch=sketch, key=KEY)
    (grad,) = torch.autograd.grad(output.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()
    with pytest.raises(TypeError, match="complex"):
        softmax(x.to(torch.complex64), -1, sketch=sketch, key=KEY)
    with pytest.raises(IndexError):
        softmax(x, 2, sketch=sketch, key=KEY)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (2, 0, 3)], ids=str)
def test_no_numbers(shape: tuple[int, ...]) -> None:
    x = torch.zeros(shape, requires_grad=True)
    output = softmax(x, -1, sketch=DitheredRounding(2), key=KEY)
    assert torch.autograd.grad(output.sum(), x)[0].shape == shape


def test_layouts_autocast_and_a_number() -> None:
    sketch = DitheredRounding(8)
    x = torch.randn(7, 4, 5).permute(2, 0, 1).requires_grad_()
    for autocast in (False, True):
        for dim in (0, 1, 2):
            short = x.to(torch.bfloat16) if autocast else x
            with torch.autocast("cpu", enabled=autocast):
                mine = softmax(short, dim, sketch=sketch, key=KEY)
                exact = F.softmax(short, dim)
            assert mine.dtype == exact.dtype
            assert torch.equal(mine, exact)
            grad_output = torch.randn_like(exact)
            (a,), (e,) = (torch.autograd.grad(o, x, grad_output) for o in (mine, exact))
            assert (a - e).norm() < 0.02 * e.norm()
    one = torch.tensor(2.0, requires_grad=True)
    assert softmax(one, 0, sketch=sketch, key=KEY) == 1


def test_compiled_is_eager() -> None:
    torch.compiler.reset()
    sketch = DitheredRounding(3)
    x, grad_output = torch.randn(2, 6, 5, 4)

    def run(x: Tensor) -> Tensor:
        return softmax(x, 1, sketch=sketch, key=KEY)

    found = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        leaf = x.clone().requires_grad_()
        output = function(leaf)
        found.append((output, *torch.autograd.grad(output, leaf, grad_output)))
    for mine, reference in zip(*found, strict=True):
        assert torch.equal(mine, reference)
