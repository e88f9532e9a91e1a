import copy
from typing import Any

import pytest
import torch
from cases import SKETCHES
from torch import Tensor, nn

from rad.functional.recurrent import rnn
from rad.memory import saved_bytes
from rad.nn import RNN
from rad.sketches import DifferentSample, Identity, SameSample, Sketch, fold_in

every_sketch = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())
options = pytest.mark.parametrize(
    "options",
    [
        {},
        {"nonlinearity": "tanh"},
        {"bias": False},
        {"batch_first": True},
        {"bidirectional": True},
        {"num_layers": 2},
        {"num_layers": 2, "bidirectional": True, "batch_first": True, "bias": False},
    ],
    ids=str,
)


def pair(sketch: Sketch, **options: Any) -> tuple[nn.RNN, RNN]:
    """torch's module and ours, with equal parameters."""
    torch.manual_seed(0)
    options = {"nonlinearity": "relu", "dtype": torch.float64, **options}
    theirs, ours = nn.RNN(3, 6, **options), RNN(3, 6, **options, sketch=sketch, seed=1)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@every_sketch
@options
def test_equals_torch(sketch: Sketch, options: dict[str, Any]) -> None:
    theirs, ours = pair(sketch, **options)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = torch.randn(5, 4, 3, dtype=torch.float64, requires_grad=True)
    batch = 5 if theirs.batch_first else 4
    places = theirs.num_layers * (2 if theirs.bidirectional else 1)
    h0 = torch.randn(places, batch, 6, dtype=torch.float64, requires_grad=True)
    for hx in (h0, None):
        expected, actual = theirs(x, hx), ours(x, hx)
        torch.testing.assert_close(actual, expected)
        cotangents = [torch.randn_like(t) for t in expected]
        leaves = [x] if hx is None else [x, h0]
        biases = [name for name, _ in theirs.named_parameters() if "bias" in name]
        for module, outputs in ((theirs, expected), (ours, actual)):
            module.grads = torch.autograd.grad(
                outputs, leaves + [getattr(module, n) for n in biases], cotangents
            )
        torch.testing.assert_close(ours.grads, theirs.grads)
        torch.testing.assert_close(ours.last_state(x, hx), expected[1])
    if sketch == Identity():
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            (got,) = torch.autograd.grad(ours(x)[0].sum(), a)
            (want,) = torch.autograd.grad(theirs(x)[0].sum(), b)
            torch.testing.assert_close(got, want)


@pytest.mark.parametrize("batch_first", [False, True])
def test_unbatched_input(batch_first: bool) -> None:
    theirs, ours = pair(SameSample(0.5), batch_first=batch_first, bidirectional=True)
    x = torch.randn(5, 3, dtype=torch.float64)
    h0 = torch.randn(2, 6, dtype=torch.float64)
    torch.testing.assert_close(ours(x, h0), theirs(x, h0))
    torch.testing.assert_close(ours.last_state(x), theirs(x)[1])


def test_each_layer_and_direction_draws_with_its_own_key() -> None:
    sketch = DifferentSample(0.5)
    _, ours = pair(sketch, num_layers=2, bidirectional=True)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    output, h_n = ours(x)
    cotangents = [torch.randn_like(output), torch.randn_like(h_n)]
    names = list(ours.state_dict())
    actual = torch.autograd.grad((output, h_n), list(ours.parameters()), cotangents)

    key = fold_in(ours.key, 0)
    h0 = x.new_zeros(4, 6)
    leaves = list(ours.parameters())
    inputs, last = x, []
    for layer in range(2):
        sides: list[Tensor] = []
        for direction in range(2):
            place = 2 * layer + direction
            seen = inputs.flip(0) if direction else inputs
            weights = leaves[4 * place : 4 * place + 4]
            states, h = rnn(seen, h0, *weights, sketch=sketch, key=fold_in(key, place))
            assert states is not None
            sides.append(states.flip(0) if direction else states)
            last.append(h)
        inputs = torch.cat(sides, 2)
    expected = torch.autograd.grad((inputs, torch.stack(last)), leaves, cotangents)
    for name, got, want in zip(names, actual, expected, strict=True):
        assert torch.equal(got, want), name
    again = torch.autograd.grad(ours(x), leaves, cotangents)
    assert not torch.equal(again[1], actual[1])
    assert ours.calls == 2


def test_dropout_between_the_layers_is_torchs() -> None:
    theirs, ours = pair(SameSample(0.5), num_layers=3, dropout=0.4)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    torch.manual_seed(7)
    expected = theirs(x)
    torch.manual_seed(7)
    torch.testing.assert_close(ours(x), expected)


@pytest.mark.parametrize("frozen", ["eval", "no_grad"])
def test_nothing_is_sketched_in_evaluation(frozen: str) -> None:
    theirs, ours = pair(SameSample(0.5), num_layers=2)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    if frozen == "eval":
        ours.eval()
        assert torch.equal(ours(x)[0], theirs(x)[0])
        for output in (ours(x)[1], ours.last_state(x)):
            (got,) = torch.autograd.grad(output.sum(), ours.weight_hh_l0)
            (want,) = torch.autograd.grad(theirs(x)[1].sum(), theirs.weight_hh_l0)
            torch.testing.assert_close(got, want)
    else:
        with torch.no_grad():
            assert torch.equal(ours(x)[0], theirs(x)[0])
            torch.testing.assert_close(ours.last_state(x), theirs(x)[1])
    assert ours.calls == 0


def test_stacked_exact_layers_keep_each_sequence_once() -> None:
    _, ours = pair(Identity(), num_layers=2)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    kept = saved_bytes(lambda: ours(x))
    assert kept == (x.numel() + 2 * 6 * 4 * 6) * 8 + 2 * 8


def test_a_packed_sequence_is_refused_where_it_would_be_sketched() -> None:
    theirs, ours = pair(SameSample(0.5))
    packed = nn.utils.rnn.pack_sequence([torch.randn(n, 3, dtype=torch.float64) for n in (4, 2)])
    with pytest.raises(TypeError, match=r"keep torch\.nn\.RNN"):
        ours(packed)
    ours.eval()
    assert torch.equal(ours(packed)[1], theirs(packed)[1])


def test_wrong_sizes_get_torchs_error() -> None:
    _, ours = pair(SameSample(0.5))
    with pytest.raises(RuntimeError, match="input_size"):
        ours(torch.randn(5, 4, 2, dtype=torch.float64))
    with pytest.raises(RuntimeError, match="hidden size"):
        ours(torch.randn(5, 4, 3, dtype=torch.float64), torch.randn(2, 4, 6, dtype=torch.float64))


def test_a_copy_draws_the_same() -> None:
    _, ours = pair(DifferentSample(0.5))
    twin = copy.deepcopy(ours)
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    both = [torch.autograd.grad(m(x)[1].sum(), m.weight_hh_l0)[0] for m in (ours, twin)]
    assert torch.equal(*both)
    assert "sketch=DifferentSample" in repr(ours)
    assert "nonlinearity='relu'" in repr(ours)
    assert ours.keeps.startswith("DifferentSample")
    assert pair(SameSample(0.5), nonlinearity="tanh")[1].keeps.startswith("every state")


@every_sketch
@pytest.mark.parametrize(
    "options", [{}, {"nonlinearity": "tanh"}, {"bidirectional": True, "num_layers": 2}], ids=str
)
def test_an_empty_batch(sketch: Sketch, options: dict[str, Any]) -> None:
    theirs, ours = pair(sketch, **options)
    x = torch.randn(5, 0, 3, dtype=torch.float64, requires_grad=True)
    for module in (theirs, ours):
        output, last = module(x)
        (output.sum() + last.sum()).backward()
        module.outputs = output, last
    torch.testing.assert_close(ours.outputs, theirs.outputs)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs.get_parameter(name).grad)
