"""The fused loss against torch's two operators, in values, gradients, types and bytes."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rad.errors import UsageError
from rad.functional import linear_cross_entropy
from rad.memory import peak_bytes, saved_bytes

ROWS, WIDTH, WORDS = 37, 6, 11
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "sum": {"reduction": "sum"},
    "ignored": {"ignore_index": 3},
    "smoothed": {"label_smoothing": 0.3},
    "everything": {"label_smoothing": 0.1, "reduction": "sum", "ignore_index": 0},
}
TOLERANCE = {
    torch.float64: {"rtol": 1e-12, "atol": 1e-13},
    torch.float32: {"rtol": 1e-5, "atol": 1e-6},
    torch.bfloat16: {"rtol": 2e-2, "atol": 2e-3},
    torch.float16: {"rtol": 4e-3, "atol": 2e-4},
}
every_option = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())


def leaves(
    dtype: torch.dtype = torch.float64, bias: bool = True, rows: tuple[int, ...] = (ROWS,)
) -> tuple[list[Tensor], Tensor]:
    """x, weight and bias, and targets."""
    torch.manual_seed(0)
    shapes = [(*rows, WIDTH), (WORDS, WIDTH), *([(WORDS,)] if bias else [])]
    tensors = [torch.randn(shape, dtype=dtype).requires_grad_() for shape in shapes]
    return tensors, torch.randint(WORDS, rows)


def fused(tensors: list[Tensor], targets: Tensor, **options: Any) -> Tensor:
    x, weight, *bias = tensors
    return linear_cross_entropy(x, weight, targets, *bias, **options)


def plain(tensors: list[Tensor], targets: Tensor, **options: Any) -> Tensor:
    x, *parameters = tensors
    logits = F.linear(x, *parameters)
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), **options)


def check_equal(
    tensors: list[Tensor], targets: Tensor, options: dict[str, Any], chunk: int | None
) -> None:
    expected = plain(tensors, targets, **options)
    actual = fused(tensors, targets, **options, chunk=chunk)
    assert actual.dtype == expected.dtype
    tolerance = TOLERANCE[tensors[0].dtype]
    torch.testing.assert_close(actual, expected, **tolerance)
    grad_output = torch.tensor(1.7, dtype=expected.dtype)
    want = torch.autograd.grad(expected, tensors, grad_output)
    got = torch.autograd.grad(actual, tensors, grad_output)
    for mine, theirs in zip(got, want, strict=True):
        size = theirs.abs().max().item()
        torch.testing.assert_close(mine, theirs, **(tolerance | {"atol": tolerance["rtol"] * size}))


@every_option
@pytest.mark.parametrize("chunk", [3, 37, None])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients_are_torchs(
    dtype: torch.dtype, bias: bool, chunk: int | None, options: dict[str, Any]
) -> None:
    check_equal(*leaves(dtype, bias), options, chunk)


@pytest.mark.parametrize("rows", [(3, 5), (2, 3, 4), (1,)], ids=str)
def test_all_axes_but_the_last_are_rows(rows: tuple[int, ...]) -> None:
    check_equal(*leaves(rows=rows), {"label_smoothing": 0.2}, 4)


def test_a_single_vector() -> None:
    (x, weight, bias), _ = leaves()
    got = linear_cross_entropy(x[0], weight, torch.tensor(2), bias)
    torch.testing.assert_close(got, F.cross_entropy(F.linear(x[0], weight, bias), torch.tensor(2)))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32], ids=str)
def test_classes_of_any_integer_type(dtype: torch.dtype) -> None:
    tensors, targets = leaves()
    assert torch.equal(fused(tensors, targets.to(dtype)), fused(tensors, targets))


@pytest.mark.parametrize("ignored", [-100, 3])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("rows", [0, 5])
def test_where_no_row_counts(rows: int, reduction: str, ignored: int) -> None:
    tensors, _ = leaves(rows=(rows,))
    targets = torch.full((rows,), ignored)
    options = {"reduction": reduction, "ignore_index": ignored}
    losses = [loss(tensors, targets, **options) for loss in (plain, fused)]
    assert losses[0].isnan() == (reduction == "mean")
    torch.testing.assert_close(losses[1], losses[0], equal_nan=True)
    want, got = (torch.autograd.grad(loss, tensors) for loss in losses)
    assert all(map(torch.equal, got, want))


@every_option
def test_gradcheck(options: dict[str, Any]) -> None:
    tensors, targets = leaves(rows=(5,))

    def loss(*tensors: Tensor) -> Tensor:
        return fused(list(tensors), targets, **options, chunk=2)

    assert torch.autograd.gradcheck(loss, tensors)
    assert torch.autograd.gradgradcheck(loss, tensors)


def test_large_logits() -> None:
    tensors, targets = leaves(torch.float32)
    scaled = [(t.detach() * 100).requires_grad_() for t in tensors]
    check_equal(scaled, targets, {}, 10)


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_what_is_frozen_has_no_gradient(frozen: int) -> None:
    tensors, targets = leaves()
    wanted = [t for i, t in enumerate(tensors) if i != frozen]
    expected = torch.autograd.grad(plain(tensors, targets), wanted)
    tensors[frozen].requires_grad_(False)
    fused(tensors, targets).backward()
    assert tensors[frozen].grad is None
    for tensor, want in zip(wanted, expected, strict=True):
        torch.testing.assert_close(tensor.grad, want)


def test_two_backward_passes_agree() -> None:
    tensors, targets = leaves()
    loss = fused(tensors, targets)
    first = torch.autograd.grad(loss, tensors, retain_graph=True)
    assert all(map(torch.equal, torch.autograd.grad(loss, tensors), first))


def test_autocast() -> None:
    tensors, targets = leaves(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected, actual = plain(tensors, targets), fused(tensors, targets, chunk=10)
    assert actual.dtype == expected.dtype == torch.float32
    torch.testing.assert_close(actual, expected)
    want, got = (torch.autograd.grad(loss, tensors) for loss in (expected, actual))
    for mine, theirs in zip(got, want, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - theirs).norm() <= 1e-2 * theirs.norm()


def test_compiled_in_one_graph() -> None:
    torch.compiler.reset()
    tensors, targets = leaves(torch.float32)

    def loss(*tensors: Tensor) -> Tensor:
        return fused(list(tensors), targets, chunk=20, label_smoothing=0.1)

    expected = loss(*tensors)
    actual = torch.compile(loss, backend="aot_eager", fullgraph=True)(*tensors)
    torch.testing.assert_close(actual, expected)
    want, got = (torch.autograd.grad(each, tensors) for each in (expected, actual))
    torch.testing.assert_close(got, want)


def test_kept_are_the_input_a_number_a_row_and_the_targets() -> None:
    torch.manual_seed(0)
    x, targets = torch.randn(512, 64), torch.randint(8000, (512,))
    weight = torch.nn.Parameter(torch.randn(8000, 64))
    kept = saved_bytes(lambda: linear_cross_entropy(x, weight, targets))
    assert kept == x.nbytes + targets.nbytes + 512 * 4 == 137_216
    assert saved_bytes(lambda: plain([x, weight], targets)) == 16_519_172


def test_the_peak_is_that_of_a_chunk_of_logits_and_of_the_gradients() -> None:
    torch.manual_seed(0)
    x, targets = torch.randn(512, 64), torch.randint(8000, (512,))
    tensors = [x.requires_grad_(), torch.randn(8000, 64).requires_grad_()]
    theirs, ours = (
        peak_bytes(lambda: torch.autograd.grad(loss(tensors, targets), tensors))  # noqa: B023
        for loss in (plain, fused)
    )
    logits = 512 * 8000 * 4
    assert theirs > 3 * logits
    assert ours < (1 << 22) + sum(t.nbytes for t in tensors) + (1 << 16)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"targets": torch.rand(ROWS, WORDS)}, "class probabilities"),
        ({"targets": torch.zeros(ROWS + 1, dtype=torch.int64)}, "for each vector"),
        ({"reduction": "none"}, "'mean' or 'sum'"),
        ({"label_smoothing": 1.5}, "from 0 to 1"),
        ({"chunk": 0}, "at least 1"),
        ({"chunk": 2.5}, "a whole number of at least 1"),
    ],
    ids=["probabilities", "shape", "reduction", "smoothing", "chunk", "half"],
)
def test_what_is_not_served_is_refused(arguments: dict[str, Any], words: str) -> None:
    tensors, targets = leaves()
    with pytest.raises(UsageError, match=words):
        fused(tensors, **({"targets": targets} | arguments))


def test_complex_numbers_are_refused() -> None:
    x = torch.ones(2, 3, dtype=torch.complex64)
    with pytest.raises(TypeError, match="view_as_real"):
        linear_cross_entropy(x, x, torch.zeros(2, dtype=torch.int64))


def test_a_target_that_is_no_class_is_refused() -> None:
    tensors, targets = leaves()
    with pytest.raises(RuntimeError, match="out of bounds"):
        fused(tensors, targets + WORDS)
