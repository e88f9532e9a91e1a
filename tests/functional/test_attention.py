import math

import pytest
import torch
import torch.nn.functional as F
from attention_cases import CASES, KEY, SKETCHES, SMALL, Case
from torch import Tensor
from unbiased import check_biased_is_caught, check_one_biased_is_caught, check_unbiased

from rad import backends
from rad.errors import UsageError
from rad.functional import attention_nbytes, attention_tiles, scaled_dot_product_attention
from rad.memory import peak_bytes, saved_bytes
from rad.sketches import (
    DitheredRounding,
    Identity,
    Sketch,
    StochasticRounding,
)

every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_sketch = pytest.mark.parametrize(("sketch", "keep"), SKETCHES, ids=str)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@every_case
@pytest.mark.parametrize("mask", ["bool", "added"])
def test_identity_is_torchs(case: Case, mask: str) -> None:
    tensors, hidden = case.inputs(), case.hidden(mask, torch.float64)
    mine = scaled_dot_product_attention(
        *tensors, hidden, **case.options, sketch=Identity(), key=KEY
    )
    theirs = F.scaled_dot_product_attention(*tensors, hidden, **case.options)
    assert torch.equal(mine, theirs)
    grad_output = torch.randn_like(theirs)
    got, want = (torch.autograd.grad(o, tensors, grad_output) for o in (mine, theirs))
    assert all(torch.equal(a, e) for a, e in zip(got, want, strict=True))


@every_case
@every_sketch
@pytest.mark.parametrize("mask", ["bool", "added"])
@pytest.mark.parametrize("piece", [attention_tiles.PIECE, SMALL])
def test_forward_is_torchs_and_gradients_read_the_sketches(
    case: Case,
    sketch: Sketch,
    keep: str,
    mask: str,
    piece: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if mask == "added" and case.mask is None:
        return
    monkeypatch.setattr(attention_tiles, "PIECE", piece)
    tensors, hidden = case.inputs(), case.hidden(mask, torch.float64)
    output = scaled_dot_product_attention(
        *tensors, hidden, **case.options, sketch=sketch, key=KEY, keep=keep
    )
    theirs = F.scaled_dot_product_attention(*tensors, hidden, **case.options)
    torch.testing.assert_close(output, theirs)
    grad_output = torch.randn_like(output)
    got = torch.autograd.grad(output, tensors, grad_output)
    result, expected = case.naive(tensors, hidden, grad_output, sketch, keep)
    torch.testing.assert_close(output, result)
    for mine, reference in zip(got, expected, strict=False):
        torch.testing.assert_close(mine, reference)


@pytest.mark.parametrize("name", ["causal", "masked", "grouped"])
@pytest.mark.parametrize(("sketch", "keep"), [SKETCHES[0], SKETCHES[3], SKETCHES[5]], ids=str)
@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("loops", [True, False], ids=["loops", "operators"])
def test_other_types(
    name: str,
    sketch: Sketch,
    keep: str,
    dtype: torch.dtype,
    loops: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not loops:
        monkeypatch.setattr(backends, "in_loops", lambda x: False)
    case = CASES[name]
    tensors, hidden = case.inputs(dtype), case.hidden("added", dtype)
    output = scaled_dot_product_attention(
        *tensors, hidden, **case.options, sketch=sketch, key=KEY, keep=keep
    )
    grad_output = torch.randn_like(output)
    got = torch.autograd.grad(output, tensors, grad_output)
    result, expected = case.naive(tensors, hidden, grad_output, sketch, keep)
    steps = {torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float16: 2**-10}
    step = steps[dtype]  # torch's kernel, for the inputs, rounds its probabilities, too
    torch.testing.assert_close(output.float(), result, rtol=2 * step, atol=step)
    for mine, reference in zip(got, expected, strict=False):
        assert mine.dtype == dtype
        torch.testing.assert_close(mine.float(), reference, rtol=step, atol=1e-3)


@pytest.mark.parametrize("name", ["causal", "masked_each", "grouped"])
@pytest.mark.parametrize(("sketch", "keep"), [SKETCHES[0], SKETCHES[3]], ids=str)
def test_dropout_drops_the_same_in_both_passes(name: str, sketch: Sketch, keep: str) -> None:
    case = CASES[name]
    tensors, hidden = case.inputs(), case.hidden("bool", torch.float64)

    def run() -> Tensor:
        how = {"sketch": sketch, "key": KEY, "keep": keep}
        return scaled_dot_product_attention(*tensors, hidden, 0.3, **case.options, **how)

    output = run()
    grad_output = torch.randn_like(output)
    got = torch.autograd.grad(output, tensors, grad_output)
    result, expected = case.naive(tensors, hidden, grad_output, sketch, keep, 0.3)
    torch.testing.assert_close(output, result)
    for mine, reference in zip(got, expected, strict=True):
        torch.testing.assert_close(mine, reference)
    with torch.no_grad():
        torch.testing.assert_close(run(), result)  # as activation checkpointing needs
    assert not torch.equal(output, F.scaled_dot_product_attention(*tensors, hidden, **case.options))


N = 40_000
"""Samples: heads of equal numbers in one call, each with draws of its own."""


@pytest.mark.parametrize(
    ("which", "causal"), [(0, False), (0, True), (2, False), (3, False), (3, True), (5, False)]
)
def test_all_three_gradients_are_unbiased(which: int, causal: bool) -> None:
    """2 bits a number; without the correction those by q and k would not be."""
    sketch, keep = SKETCHES[which]
    torch.manual_seed(2)
    one = [torch.randn(1, 1, n, d, dtype=torch.float64) for n, d in ((3, 2), (4, 2), (4, 3))]
    one[0] *= 2
    grad = torch.randn(1, 1, 3, 3, dtype=torch.float64)
    exact = [x.clone().requires_grad_() for x in one]
    output = F.scaled_dot_product_attention(*exact, is_causal=causal)
    truths = torch.autograd.grad(output, exact, grad)
    many = [x.expand(N // 8, 8, *x.shape[2:]).clone().requires_grad_() for x in one]
    options = {"is_causal": causal, "sketch": sketch, "key": KEY, "keep": keep}
    output = scaled_dot_product_attention(*many, **options)
    found = torch.autograd.grad(output, many, grad.expand(output.shape))
    for samples, truth, name in zip(found, truths, "qkv", strict=True):
        samples = samples.flatten(0, 1)
        check_unbiased(samples, truth[0, 0])
        if (keep, name) != ("inputs", "v"):  # that one is exact
            check_biased_is_caught(samples, truth[0, 0])
            check_one_biased_is_caught(samples, truth[0, 0])
    if keep == "inputs" or causal:
        return
    p = (one[0] @ one[1].mT / math.sqrt(2)).softmax(-1)
    term = (grad @ one[2].mT) * sketch.element_variance(p[0, 0])  # type: ignore[attr-defined]
    bias_q, bias_k = term @ one[1] / math.sqrt(2), term.mT @ one[0] / math.sqrt(2)
    for samples, truth, bias in zip(found, truths, (bias_q, bias_k), strict=False):
        with pytest.raises(AssertionError, match="off by"):
            check_unbiased(samples.flatten(0, 1) - bias[0, 0], truth[0, 0])


@every_case
@every_sketch
@pytest.mark.parametrize("needed", ["qkv", "q", "kv", "v"])
def test_bytes(case: Case, sketch: Sketch, keep: str, needed: str) -> None:
    options = {k: v for k, v in case.options.items() if k != "scale"}
    tensors = case.inputs(torch.float32)
    for x, name in zip(tensors, "qkv", strict=True):
        x.requires_grad_(name in needed)

    def kept(sketch: Sketch, **how: object) -> tuple[int, int]:
        """Measured and predicted bytes."""
        how = {"sketch": sketch, **options, **how}
        run = lambda: scaled_dot_product_attention(*tensors, **how, key=KEY)  # noqa: E731
        return saved_bytes(run), attention_nbytes(*tensors, **how)

    measured, predicted = kept(sketch, keep=keep)
    assert measured == predicted
    ways = ["inputs", "probabilities"] if isinstance(sketch, DitheredRounding) else ["inputs"]
    least = min(kept(sketch, keep=way)[1] for way in ways)
    assert kept(sketch) == (least, least)
    assert kept(Identity())[1] == 0


def test_bytes_decide_and_a_mask_is_kept_as_it_was_given() -> None:
    sketch = DitheredRounding(4)
    short, long = (torch.randn(1, 2, n, 32, requires_grad=True) for n in (64, 1024))
    for x, keep in ((short, "probabilities"), (long, "inputs")):
        assert attention_nbytes(x, x, x, sketch=sketch) == attention_nbytes(
            x, x, x, sketch=sketch, keep=keep
        )
    mask = torch.rand(64, 64) < 0.5
    kept = saved_bytes(
        lambda: scaled_dot_product_attention(short, short, short, mask, sketch=sketch, key=KEY)
    )
    assert kept == attention_nbytes(short, short, short, sketch=sketch) + mask.nbytes
    whole, causal = (
        attention_nbytes(long, long, long, is_causal, sketch=sketch, keep="probabilities")
        for is_causal in (False, True)
    )
    assert whole - causal > 0.43 * 2 * 1024 * 1024 * 4 / 8


@pytest.mark.parametrize("keep", ["probabilities", "inputs"])
def test_no_more_than_some_probabilities_stand_in_memory(
    keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attention_tiles, "PIECE", 1 << 15)
    q, k, v = (torch.randn(2, 8, 256, 16, requires_grad=True) for _ in range(3))
    how = {"sketch": DitheredRounding(2), "key": KEY, "keep": keep}

    def step() -> None:
        output = scaled_dot_product_attention(q, k, v, **how)
        torch.autograd.grad(output, (q, k, v), torch.ones_like(output))

    step()  # loops are compiled
    kept = attention_nbytes(q, k, v, sketch=how["sketch"], keep=keep)
    in_and_out = 8 * q.nbytes  # the result and its gradient, three gradients and their factors
    assert peak_bytes(step) < kept + in_and_out + 4 * (1 << 15) * 4
    assert in_and_out + 4 * (1 << 15) * 4 < 2 * 8 * 256 * 256 * 4


def test_parts_of_one_tensor_keep_no_more_than_is_read() -> None:
    packed = torch.randn(2, 40, 3, 4, 8, requires_grad=True)
    q, k, v = (packed * 1).permute(2, 0, 3, 1, 4)
    for keep in ("probabilities", "inputs"):
        how = {"sketch": DitheredRounding(4), "keep": keep}
        kept = saved_bytes(lambda how=how: scaled_dot_product_attention(q, k, v, key=KEY, **how))
        assert kept == attention_nbytes(q, k, v, **how)


@pytest.mark.parametrize("keep", ["probabilities", "inputs"])
def test_queries_that_see_no_key_have_zeros_as_torchs(keep: str) -> None:
    case = CASES["masked_each"]
    tensors, hidden = case.inputs(), case.hidden("bool", torch.float64)
    hidden[0, 1, 2] = False
    how = {"sketch": DitheredRounding(4), "key": KEY, "keep": keep}
    output = scaled_dot_product_attention(*tensors, hidden, **how)
    torch.testing.assert_close(output, F.scaled_dot_product_attention(*tensors, hidden))
    grads = torch.autograd.grad(output, tensors, torch.randn_like(output))
    assert all(grad.isfinite().all() for grad in grads)
    assert (grads[0][0, 1, 2] == 0).all()


def test_other_leading_axes_layouts_and_autocast() -> None:
    torch.manual_seed(3)
    sketch = DitheredRounding(8)
    q = torch.randn(2, 3, 6, 2, 8).transpose(2, 3).requires_grad_()
    k, v = (torch.randn(3, 1, 7, 8, requires_grad=True) for _ in range(2))
    mask = torch.rand(2, 1, 1, 6, 7) < 0.8
    mask[..., 0] = True
    for keep in ("probabilities", "inputs"):
        for autocast in (False, True):
            with torch.autocast("cpu", enabled=autocast):
                how = {"sketch": sketch, "key": KEY, "keep": keep}
                mine = scaled_dot_product_attention(q, k, v, mask, **how)
                exact = F.scaled_dot_product_attention(q, k, v, mask)
            assert (mine.dtype, mine.shape) == (exact.dtype, exact.shape)
            torch.testing.assert_close(mine, exact, rtol=2**-6, atol=2**-7)
            grad_output = torch.randn_like(exact)
            for a, e in zip(
                torch.autograd.grad(mine, (q, k, v), grad_output),
                torch.autograd.grad(exact, (q, k, v), grad_output),
                strict=True,
            ):
                assert (a - e).norm() < 0.05 * e.norm()


def test_what_is_left_to_torch() -> None:
    sketch = DitheredRounding(4)
    q, k, v = CASES["four_axes"].inputs()
    how = {"sketch": sketch, "key": KEY}
    with torch.no_grad():
        exact = F.scaled_dot_product_attention(q, k, v)
        assert torch.equal(scaled_dot_product_attention(q, k, v, **how), exact)
    for wrong in ((q, k[..., :3], v), (q, k, v[:, :, :3]), (q[:, :2], k, v), (q[0, 0, 0], k, v)):
        with pytest.raises((RuntimeError, IndexError)):
            scaled_dot_product_attention(*wrong, **how)
    with pytest.raises(RuntimeError):
        scaled_dot_product_attention(q, k, v, torch.ones(5, 7, dtype=torch.bool), 0, True, **how)
    empty = torch.zeros(0, 2, 5, 4, requires_grad=True)
    output = scaled_dot_product_attention(empty, empty, empty, **how)
    assert torch.autograd.grad(output.sum(), empty)[0].shape == empty.shape


def test_what_is_refused() -> None:
    q, k, v = CASES["four_axes"].inputs()
    with pytest.raises(UsageError, match="use DitheredRounding"):
        scaled_dot_product_attention(
            q, k, v, sketch=StochasticRounding(4), key=KEY, keep="probabilities"
        )
    with pytest.raises(UsageError, match="unknown keep"):
        scaled_dot_product_attention(q, k, v, sketch=DitheredRounding(4), key=KEY, keep="output")
    with pytest.raises(ValueError, match="dropout probability"):
        scaled_dot_product_attention(q, k, v, None, 1.5, sketch=DitheredRounding(4), key=KEY)
    with pytest.raises(TypeError, match="complex"):
        scaled_dot_product_attention(
            q.to(torch.complex64), k, v, sketch=DitheredRounding(4), key=KEY
        )
    for keep in ("probabilities", "inputs"):
        output = scaled_dot_product_attention(
            q, k, v, sketch=DitheredRounding(4), key=KEY, keep=keep
        )
        (grad,) = torch.autograd.grad(output.square().sum(), q, create_graph=True)
        with pytest.raises(RuntimeError, match="no second derivative"):
            grad.sum().backward()


@pytest.mark.parametrize(("which", "dropout_p"), [(0, 0.2), (3, 0.0), (5, 0.0)])
def test_compiled_is_eager(which: int, dropout_p: float) -> None:
    torch.compiler.reset()
    sketch, keep = SKETCHES[which]
    case = CASES["grouped"]
    tensors, hidden = case.inputs(torch.float32), case.hidden("bool", torch.float32)
    grad_output = torch.randn(2, 6, 5, 6)

    def run(*tensors: Tensor) -> Tensor:
        how = {"sketch": sketch, "key": KEY, "keep": keep}
        return scaled_dot_product_attention(*tensors, hidden, dropout_p, **case.options, **how)

    found = []
    for function in (run, torch.compile(run, backend="aot_eager", fullgraph=True)):
        leaves = [x.detach().clone().requires_grad_() for x in tensors]
        output = function(*leaves)
        found.append((output, *torch.autograd.grad(output, leaves, grad_output)))
    for mine, reference in zip(*found, strict=True):
        torch.testing.assert_close(mine, reference)
