import pytest
import torch
from torch import Tensor, nn

import rad
from rad.draws.reference import lanes
from rad.functional import dropout
from rad.functional.dropout import PIECE
from rad.memory import saved_bytes
from rad.sketches import make_key


def test_the_backward_mask_is_the_forward_one() -> None:
    x = torch.randn(5, 7, 3, requires_grad=True)
    output = dropout(x, 0.3, key=make_key(0))
    grad_output = torch.randn_like(x)
    (gradient,) = torch.autograd.grad(output, x, grad_output)
    kept = output != 0
    scale = output[kept][0] / x.detach()[kept][0]
    torch.testing.assert_close(gradient, torch.where(kept, grad_output * scale, 0))
    assert 0 < kept.float().mean() < 1


@pytest.mark.parametrize("p", [0.1, 0.5, 0.77])
def test_unbiased(p: float) -> None:
    n = 400_000
    output = dropout(torch.ones(n), p, key=make_key(1))
    spread = (p / (1 - p) / n) ** 0.5
    assert abs(output.mean() - 1) < 5.5 * spread
    assert 5.5 * spread < 0.05


def test_ends() -> None:
    x = torch.randn(9)
    assert torch.equal(dropout(x, 0.0, key=make_key(0)), x)
    assert torch.equal(dropout(x, 1.0, key=make_key(0)), torch.zeros(9))
    with pytest.raises(ValueError, match="probability"):
        dropout(x, 1.5, key=make_key(0))


def test_layer_keeps_its_key_and_draws_from_torchs_generator() -> None:
    layer = rad.convert(nn.Dropout(0.5), rad.Identity())
    x = torch.randn(1000, requires_grad=True)
    assert saved_bytes(lambda: layer(x)) == 8
    assert not torch.equal(layer(x), layer(x))
    assert torch.equal(layer.eval()(x), x)
    layer.train()
    outputs = []
    for _ in range(2):
        torch.manual_seed(3)
        outputs.append(layer(x))
    assert torch.equal(*outputs)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2 * PIECE + 7),
        torch.randn(3, 5, 70, 130).to(memory_format=torch.channels_last),
        torch.randn(PIECE + 5, 2).t(),
        torch.randn(1).expand(PIECE + 1),
    ],
    ids=["flat", "channels_last", "transposed", "expanded"],
)
def test_drawn_in_pieces_the_mask_is_the_whole_one(x: Tensor) -> None:
    key, p = make_key(3), 0.3
    kept = lanes(key, x.numel()).view(x.shape) < round((1 - p) * 2**16)
    output = dropout(x, p, key=key)
    assert torch.equal(output != 0, kept & (x != 0))
    assert output.stride() == nn.functional.dropout(x, p).stride()
