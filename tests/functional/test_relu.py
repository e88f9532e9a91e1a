import pytest
import torch
import torch.nn.functional as F

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


@pytest.mark.parametrize("count", [8, 9, 1000])
def test_one_bit_per_unit(count: int) -> None:
    x = torch.randn(count, requires_grad=True)
    assert saved_bytes(lambda: relu(x)) == -(-count // 8)


def test_unknown_mask() -> None:
    with pytest.raises(ValueError, match="mask"):
        relu(torch.ones(3), "float")  # type: ignore[arg-type]
