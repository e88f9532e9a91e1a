"""The fused recurrence against the eager operator, draw for draw.

Run by test_kernels.py in a process of its own: on the CPU, Triton interprets kernels only if it
is set so before it is first imported.
"""

import functools
from typing import Any

import pytest
import torch
from cases import LOSSY
from kernels.interpreting import DEVICE, integers_that_count, kernels_on  # noqa: F401
from torch import Tensor, nn

import rad
from rad.functional.recurrent import _SketchedRNN
from rad.functional.recurrent_fused import FusedRNN, _fits
from rad.memory import saved_bytes
from rad.sketches import (
    DifferentProject,
    DifferentSample,
    Identity,
    Project,
    SameSample,
    Sketch,
    fold_in,
    make_key,
)

KINDS = (SameSample, DifferentSample, Project, DifferentProject)
SHAPES = [(1, 3, 5, 0.3), (9, 9, 5, 0.3), (2, 17, 100, 0.02)]
CASES = [(*shape, kind(shape[3])) for shape in SHAPES for kind in KINDS]
CASES += [(*shape, Identity()) for shape in SHAPES]
CASES += [(1, 1, 67, 1.0, Project(1.0))]  # signs from two words


def leaves(steps: int, batch: int, hidden: int, bias: bool = True) -> list[Any]:
    """x (not contiguous), h0, weight_ih, weight_hh and biases, in float32."""
    torch.manual_seed(0)
    shapes: list[tuple[int, ...]] = [(batch, steps, 1), (batch, hidden), (hidden, 1)]
    shapes += [(hidden, hidden), (hidden,), (hidden,)]
    scales = [1, 1, 1, hidden**-0.5, 0.3, 0.3]
    drawn = [(torch.randn(s) * c).to(DEVICE) for s, c in zip(shapes, scales, strict=True)]
    drawn[0] = drawn[0].transpose(0, 1)
    if not bias:
        drawn[4:] = []
    return [t.requires_grad_() for t in drawn] + [None] * (6 - len(drawn))


def eager(given: list[Any], sketch: Sketch, key: Tensor, sequence: bool = True) -> Any:
    return _SketchedRNN.apply(*given, "relu", sketch, key, sequence)


def fused(given: list[Any], sketch: Sketch, key: Tensor, sequence: bool = True) -> Any:
    return FusedRNN.apply(*given, sketch, key, sequence, given[0].dtype)


def gradients(outputs: Any, cotangents: list[Tensor], given: list[Any]) -> list[Tensor]:
    wanted = [t for t in given if t is not None and t.requires_grad]
    return list(torch.autograd.grad(outputs, wanted, cotangents))


close = functools.partial(torch.testing.assert_close, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("steps", "batch", "hidden", "keep", "sketch"), CASES, ids=str)
def test_equals_the_eager_operator(
    steps: int, batch: int, hidden: int, keep: float, sketch: Sketch
) -> None:
    given, key = leaves(steps, batch, hidden, bias=hidden != 67), make_key(4).to(DEVICE)
    expected, actual = eager(given, sketch, key), fused(given, sketch, key)
    close(actual, expected)
    cotangents = [torch.randn_like(t) for t in expected]
    wanted = gradients(expected, cotangents, given)
    got = gradients(actual, cotangents, given)
    close(got, wanted)
    if keep < 1 and sketch != Identity():  # the control: other draws do not pass
        other = fused(given, sketch, fold_in(key, 1))
        assert (gradients(other, cotangents, given)[3] - wanted[3]).abs().max() > 0.01


@pytest.mark.parametrize("sketch", [DifferentSample(0.3), Identity()], ids=str)
def test_the_last_state_alone_and_frozen_leaves(sketch: Sketch) -> None:
    key = make_key(1).to(DEVICE)
    for frozen in ({0, 1}, {0, 1, 2}, {3}, {1, 3, 4, 5}):
        given = [t.requires_grad_(i not in frozen) for i, t in enumerate(leaves(3, 9, 5))]
        expected, actual = (operator(given, sketch, key, False) for operator in (eager, fused))
        assert actual[0] is None
        close(actual[1], expected[1])
        cotangent = [torch.randn_like(expected[1])]
        got = gradients(actual[1], cotangent, given)
        close(got, gradients(expected[1], cotangent, given))


@pytest.mark.parametrize("sketch", [DifferentSample(0.3), Identity()], ids=str)
def test_kept_bytes_are_those_of_the_kernel(sketch: Sketch) -> None:
    """For a batch that fills no whole bytes."""
    layer = rad.nn.RNN(1, 5, nonlinearity="relu", sketch=sketch, device=DEVICE)
    x = torch.randn(3, 9, 1, device=DEVICE)
    with kernels_on(True):
        kept = saved_bytes(lambda: layer(x)[0])
        assert layer.kept_bytes(x, layer(x), lambda t: t.nbytes) == kept


def test_a_gradient_of_the_sequence_alone() -> None:
    given, sketch, key = leaves(3, 9, 5), SameSample(0.3), make_key(1).to(DEVICE)
    expected, actual = (operator(given, sketch, key)[0] for operator in (eager, fused))
    cotangent = [torch.randn_like(expected)]
    close(gradients(actual, cotangent, given), gradients(expected, cotangent, given))


@pytest.mark.parametrize("sketch", [DifferentSample(0.3), Project(0.3), Identity()], ids=str)
def test_bfloat16(sketch: Sketch) -> None:
    """All units active, since one that rounding turns on would change gradients by much.

    The interpreter cuts off where a GPU rounds.
    """
    given = [t.detach().abs().bfloat16().requires_grad_() for t in leaves(4, 9, 20)]
    key = make_key(1).to(DEVICE)
    expected, actual = eager(given, sketch, key), fused(given, sketch, key)
    assert actual[0].dtype == actual[1].dtype == torch.bfloat16
    cotangents = [torch.randn_like(t) for t in expected]
    pairs = zip(
        [*actual, *gradients(actual, cotangents, given)],
        [*expected, *gradients(expected, cotangents, given)],
        strict=True,
    )
    for got, want in pairs:
        assert got.dtype == torch.bfloat16
        assert (got.float() - want.float()).norm() <= 0.05 * want.float().norm()


@pytest.mark.parametrize("sketch", [DifferentSample(0.3), Identity()], ids=str)
def test_predicted_bytes_are_measured(sketch: Sketch) -> None:
    steps, batch, hidden = 3, 17, 5
    x, h0, *weights = leaves(steps, batch, hidden)
    x, h0 = x.detach().clone(memory_format=torch.contiguous_format), h0.detach()
    given = [x, h0, *map(nn.Parameter, weights)]
    kept = saved_bytes(lambda: fused(given, sketch, make_key(0).to(DEVICE), False)[1])
    states = steps * sketch.nbytes((batch, hidden), torch.float32)
    bits = h0.nbytes if sketch == Identity() else steps * -(-batch // 8) * hidden
    assert kept == 8 + x.nbytes + states + bits


def test_nan_counts_as_active() -> None:
    given, key = leaves(2, 3, 5), make_key(0).to(DEVICE)
    with torch.no_grad():
        given[1][0] = torch.nan
    for sketch in (SameSample(0.3), Identity()):
        grads = [
            gradients(out := operator(given, sketch, key), [torch.ones_like(t) for t in out], given)
            for operator in (eager, fused)
        ]
        close(grads[1][:2], grads[0][:2], equal_nan=True)


def test_only_sketches_made_of_independent_selectors_are_read() -> None:
    read = {name for name, sketch in LOSSY.items() if _fits(1, 10, sketch, torch.float32)}
    assert read == {"same_sample", "different_sample", "project", "different_project"}
