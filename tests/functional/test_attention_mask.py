"""A mask that is added to the scores and trained, such as a bias of relative positions."""

import math

import pytest
import torch
import torch.nn.functional as F
from attention_cases import CASES, KEY, SKETCHES, SMALL, Case
from torch import Tensor
from unbiased import check_biased_is_caught, check_one_biased_is_caught, check_unbiased

from rad.functional import attention_nbytes, attention_tiles, scaled_dot_product_attention
from rad.memory import saved_bytes
from rad.sketches import DitheredRounding, Identity, Sketch

every_sketch = pytest.mark.parametrize(("sketch", "keep"), SKETCHES, ids=str)
MASKED = [name for name, case in CASES.items() if case.mask is not None]
MASKED_MORE = {
    **{name: CASES[name] for name in MASKED},
    "number": Case((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), mask=(1, 1)),
    "heads": Case((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), mask=(1, 3, 5, 7)),
    "queries": Case((2, 3, 5, 4), (2, 3, 7, 4), (2, 3, 7, 6), mask=(2, 1, 5, 1)),
}


@pytest.mark.parametrize("name", MASKED_MORE)
@every_sketch
@pytest.mark.parametrize("piece", [attention_tiles.PIECE, SMALL])
def test_the_gradient_is_that_by_the_scores(
    name: str, sketch: Sketch, keep: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_tiles, "PIECE", piece)
    case = MASKED_MORE[name]
    tensors, mask = case.inputs(), case.hidden("added", torch.float64)
    assert mask is not None
    mask.requires_grad_()
    how = {"sketch": sketch, "key": KEY, "keep": keep}
    output = scaled_dot_product_attention(*tensors, mask, **case.options, **how)
    theirs = F.scaled_dot_product_attention(*tensors, mask, **case.options)
    torch.testing.assert_close(output, theirs)
    grad_output = torch.randn_like(output)
    got = torch.autograd.grad(output, (*tensors, mask), grad_output)
    _, expected = case.naive(tensors, mask.detach(), grad_output, sketch, keep)
    for mine, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, reference)
    if keep == "probabilities":
        return
    closer = scaled_dot_product_attention(
        *tensors, mask, **case.options, sketch=DitheredRounding(8), key=KEY, keep=keep
    )
    (close,) = torch.autograd.grad(closer, mask, grad_output)
    (exact,) = torch.autograd.grad(theirs, mask, grad_output)
    assert (close - exact).norm() < 0.02 * exact.norm() + 1e-12


def test_identity_is_torchs() -> None:
    case = CASES["masked"]
    tensors, mask = case.inputs(), case.hidden("added", torch.float64)
    assert mask is not None
    mask.requires_grad_()
    outputs = (
        scaled_dot_product_attention(*tensors, mask, sketch=Identity(), key=KEY),
        F.scaled_dot_product_attention(*tensors, mask),
    )
    got, want = (torch.autograd.grad(x.square().sum(), (*tensors, mask)) for x in outputs)
    assert all(map(torch.equal, got, want))


N = 40_000


@pytest.mark.parametrize(("sketch", "keep"), [SKETCHES[0], SKETCHES[2], SKETCHES[3], SKETCHES[5]])
def test_the_gradient_is_unbiased(sketch: Sketch, keep: str) -> None:
    """2 bits a number; with no correction it would not be, where probabilities are kept."""
    torch.manual_seed(2)
    one = [torch.randn(1, 1, n, d, dtype=torch.float64) for n, d in ((3, 2), (4, 2), (4, 3))]
    bias, grad = torch.randn(3, 4, dtype=torch.float64), torch.randn(1, 1, 3, 3).double()
    bias[0, 1] = -math.inf
    bias.requires_grad_()
    output = F.scaled_dot_product_attention(*one, bias)
    (truth,) = torch.autograd.grad(output, bias, grad)
    many = [x.expand(N // 8, 8, *x.shape[2:]) for x in one]
    biases = bias.detach().expand(N // 8, 8, 3, 4).clone().requires_grad_()
    output = scaled_dot_product_attention(*many, biases, sketch=sketch, key=KEY, keep=keep)
    (samples,) = torch.autograd.grad(output, biases, grad.expand(output.shape))
    samples = samples.flatten(0, 1)
    check_unbiased(samples, truth)
    check_biased_is_caught(samples, truth)
    check_one_biased_is_caught(samples, truth)
    if keep == "probabilities":
        p = (one[0] @ one[1].mT / math.sqrt(2) + bias).softmax(-1)[0, 0].detach()
        seen = bias > -math.inf
        term = (grad @ one[2].mT)[0, 0] * sketch.element_variance(p) * seen  # type: ignore[attr-defined]
        with pytest.raises(AssertionError, match="off by"):
            check_unbiased(samples - term, truth)


@pytest.mark.parametrize("keep", ["probabilities", "inputs", None])
@pytest.mark.parametrize("trained", ["all", "mask"])
def test_bytes(keep: str | None, trained: str) -> None:
    """Beside probabilities a bit for each number of the mask is kept, beside inputs the mask."""
    q, k, v = (torch.randn(2, 2, 64, 8, requires_grad=trained == "all") for _ in range(3))
    mask = torch.randn(1, 2, 64, 64, requires_grad=True)
    how = {"sketch": DitheredRounding(4), "keep": keep}

    def run() -> Tensor:
        return scaled_dot_product_attention(q, k, v, mask * 1, key=KEY, **how)

    predicted = attention_nbytes(q, k, v, **how, attn_mask=mask)
    beside = {"probabilities": mask.numel() // 8, "inputs": mask.nbytes}
    assert saved_bytes(run) == predicted
    if keep is not None:
        without = attention_nbytes(q, k, v, **how) if trained == "all" else None
        assert without is None or predicted - without == beside[keep]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("keep", ["probabilities", "inputs"])
def test_short_types(dtype: torch.dtype, keep: str) -> None:
    case = MASKED_MORE["heads"]
    tensors, mask = case.inputs(dtype), case.hidden("added", dtype)
    assert mask is not None
    mask.requires_grad_()
    sketch = DitheredRounding(4)
    output = scaled_dot_product_attention(*tensors, mask, sketch=sketch, key=KEY, keep=keep)
    grad_output = torch.randn_like(output)
    (got,) = torch.autograd.grad(output, mask, grad_output)
    _, expected = case.naive(tensors, mask.detach(), grad_output, sketch, keep)
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), expected[3], rtol=2**-7, atol=1e-3)


@pytest.mark.parametrize("which", [0, 3])
def test_compiled_is_eager(which: int) -> None:
    torch.compiler.reset()
    sketch, keep = SKETCHES[which]
    case = MASKED_MORE["heads"]
    tensors, mask = case.inputs(torch.float32), case.hidden("added", torch.float32)
    assert mask is not None
    grad_output = torch.randn(2, 3, 5, 6)

    def run(*tensors: Tensor) -> Tensor:
        return scaled_dot_product_attention(*tensors, sketch=sketch, key=KEY, keep=keep)

    found = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        leaves = [x.detach().clone().requires_grad_() for x in (*tensors, mask)]
        output = function(*leaves)
        found.append((output, *torch.autograd.grad(output, leaves, grad_output)))
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference)
