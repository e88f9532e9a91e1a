"""A softmax that keeps its rounded result, as a module and in conversions."""

import inspect

import pytest
import torch
from torch import Tensor, nn
from unbiased import check_biased_is_caught, check_unbiased

import rad
from rad.errors import UsageError
from rad.functional import softmax
from rad.memory import saved_bytes
from rad.nn import Slices
from rad.sketches import DitheredRounding, Identity, StochasticRounding, fold_in

ROUNDED = DitheredRounding(4)


class Attention(nn.Module):
    """One head, its softmax a module."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.softmax = nn.Linear(4, 12), nn.Softmax(-1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        p: Tensor = self.softmax(q @ k.mT / 2)
        return p @ v


def test_training_draws_anew_for_each_call_and_is_the_function() -> None:
    layer = rad.convert(nn.Sequential(nn.Softmax(1)), Identity(), path=ROUNDED)[0]
    for call in range(2):
        x = torch.randn(3, 5, 7, requires_grad=True)
        outputs = layer(x), softmax(x, 1, sketch=ROUNDED, key=fold_in(layer.key, call))
        grads = [
            torch.autograd.grad(output, x, torch.ones(3, 5, 7).cumsum(1)) for output in outputs
        ]
        assert torch.equal(*outputs)
        assert torch.equal(grads[0][0], grads[1][0])


def test_evaluation_identity_and_no_axis_are_torchs() -> None:
    for layer in (rad.nn.Softmax(-1, sketch=ROUNDED).eval(), rad.nn.Softmax(-1)):
        x = torch.randn(3, 5, requires_grad=True)
        assert saved_bytes(lambda x=x, layer=layer: layer(x)) == x.nbytes
        assert torch.equal(layer(x), nn.Softmax(-1)(x))
    implicit = rad.nn.Softmax(sketch=ROUNDED)
    with pytest.warns(UserWarning, match="Implicit dimension"):
        assert torch.equal(implicit(torch.ones(2, 4)), torch.full((2, 4), 0.25))
    assert implicit.keeps == "what torch keeps"


def test_it_says_what_it_keeps() -> None:
    layer = rad.nn.Softmax(-1, sketch=ROUNDED, seed=2)
    assert layer.keeps == f"{ROUNDED} of its result"
    assert str(ROUNDED) in repr(layer)
    assert list(inspect.signature(layer.forward).parameters) == ["input"]
    with pytest.raises(UsageError, match="use DitheredRounding"):
        rad.nn.Softmax(-1, sketch=StochasticRounding(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_audit_predicts_and_measures_the_same(dtype: torch.dtype) -> None:
    layer = rad.convert(nn.Sequential(nn.Softmax(-1)), Identity(), path=ROUNDED)
    x = torch.randn(3, 5, 7, dtype=dtype, requires_grad=True)
    audit = rad.audit(layer, lambda: layer(x).sum())
    assert audit.unexpected == ()
    expected = ROUNDED.nbytes((15, 7), dtype) + 8
    assert audit.predicted["0"] == audit.saved["0"] == expected
    assert layer[0].kept_bytes(x.detach(), layer(x), lambda x: x.nbytes) == 0
    assert saved_bytes(lambda: layer(x.detach())) == 0


def test_by_default_it_is_torchs_and_a_conversion_can_be_undone_and_repeated() -> None:
    model = Attention()
    kept = rad.convert(model, ROUNDED)
    assert type(kept.softmax) is nn.Softmax
    rounded = rad.convert(kept, ROUNDED, path=ROUNDED)
    assert type(rounded.softmax) is rad.nn.Softmax
    assert rounded.state_dict().keys() == model.state_dict().keys()
    again = rad.convert(rounded, ROUNDED, path=DitheredRounding(2))
    assert again.softmax.sketch == DitheredRounding(2)


def test_gradients_through_it_are_unbiased() -> None:
    torch.manual_seed(0)
    model = Attention().double()
    x, grad_output = torch.randn(2, 2, 5, 4, dtype=torch.float64)
    converted = rad.convert(model, DitheredRounding(3), seed=1, path=DitheredRounding(2))

    def gradient(model: nn.Module) -> Tensor:
        grads = torch.autograd.grad(model(x), list(model.parameters()), grad_output)
        return torch.cat([g.flatten() for g in grads])

    samples = torch.stack([gradient(converted) for _ in range(1500)])
    check_unbiased(samples, gradient(model))
    check_biased_is_caught(samples, gradient(model))


def test_slices_leave_it_whole() -> None:
    """Along the first axis it does not treat each example by itself."""
    x = torch.randn(6, 4, requires_grad=True)
    sliced = Slices(rad.nn.Softmax(0, sketch=ROUNDED), size=2)
    assert torch.equal(sliced(x), x.softmax(0))
