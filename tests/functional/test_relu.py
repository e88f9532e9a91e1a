import pytest
import torch
import torch.nn.functional as F

from rad import backends
from rad.functional import relu
from rad.memory import saved_bytes


@pytest.mark.parametrize("mask", ["packed", "output"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("shape", [(5, 7), (3, 2, 5, 3), (1,), (0, 3)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_equals_torch(mask: str, inplace: bool, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x = torch.randn(shape, dtype=dtype)
    if x.numel() > 4:
        x.view(-1)[:4] = torch.tensor([0.0, -0.0, float("nan"), float("inf")])
    x.requires_grad_()
    grad_output = torch.randn(shape, dtype=dtype)
    expected, actual = F.relu(x), relu(x * 1, mask, inplace=inplace)  # type: ignore[arg-type]
    assert torch.equal(actual.nan_to_num(7), expected.nan_to_num(7))
    if x.numel():
        grad_output.view(-1)[0] = float("inf")
    (want,) = torch.autograd.grad(expected, x, grad_output)
    (got,) = torch.autograd.grad(actual, x, grad_output)
    assert torch.equal(got, want)


SPECIAL = torch.tensor([0.0, -0.0, torch.nan, -torch.nan, torch.inf, -torch.inf, 1e-45, -1e-45])
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("form", ["loops", "torch"])
@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("count", [0, 8, 13, 4096, 5001])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_form_equals_torch_to_the_bit(
    form: str, inplace: bool, count: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    if form == "torch":
        monkeypatch.setattr(backends, "in_loops", lambda x: False)
    x, grad_output = torch.randn(count).to(dtype), torch.randn(count).to(dtype)
    x[: len(SPECIAL)] = SPECIAL[:count].to(dtype)
    grad_output[::3] = torch.nan
    grad_output[1::5] = -torch.inf
    x.requires_grad_()
    expected, actual = F.relu(x), relu(x * 1, inplace=inplace)
    (want,) = torch.autograd.grad(expected, x, grad_output)
    (got,) = torch.autograd.grad(actual, x, grad_output)
    for theirs, ours in ((expected, actual), (want, got)):
        assert torch.equal(ours.nan_to_num(7), theirs.nan_to_num(7))
        assert torch.equal(ours.isnan(), theirs.isnan())
        assert torch.equal(ours.nan_to_num().signbit(), theirs.nan_to_num().signbit())


@pytest.mark.parametrize("inplace", [False, True])
def test_any_order_in_memory(inplace: bool) -> None:
    for x in (
        torch.randn(2, 5, 3, 7).contiguous(memory_format=torch.channels_last),
        torch.randn(6, 5, 7).permute(2, 0, 1),
        torch.randn(9, 8)[:, ::2],
        torch.randn(()),
    ):
        x.requires_grad_()
        expected, actual = F.relu(x), relu(x * 1, inplace=inplace)
        assert torch.equal(actual, expected)
        assert actual.stride() == expected.stride()
        for grad_output in (torch.randn(x.shape), torch.randn_like(x), torch.ones(()).expand_as(x)):
            (want,) = torch.autograd.grad(expected, x, grad_output, retain_graph=True)
            (got,) = torch.autograd.grad(actual, x, grad_output, retain_graph=True)
            assert torch.equal(got, want)
        (first,) = torch.autograd.grad(actual.square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        assert torch.equal(second, 2.0 * (x > 0))


@pytest.mark.parametrize("count", [8, 9, 1000])
def test_one_bit_per_unit(count: int) -> None:
    x = torch.randn(count, requires_grad=True)
    assert saved_bytes(lambda: relu(x)) == -(-count // 8)


def test_unknown_mask() -> None:
    with pytest.raises(ValueError, match="mask"):
        relu(torch.ones(3), "float")  # type: ignore[arg-type]
