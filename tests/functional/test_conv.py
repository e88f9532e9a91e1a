"""Convolution: one table of cases drives every property."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import LOSSY, SKETCHES
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from unbiased import (
    check_biased_is_caught,
    check_mean_square,
    check_one_biased_is_caught,
    check_unbiased,
    draws,
)

import rad
from rad.functional import conv, conv_weight_grad_variance
from rad.functional.geometry import geometry_of
from rad.memory import saved_bytes
from rad.sketches import DifferentSample, Identity, Project, SameSample, Sketch, make_key
from rad.sketches.blockwise import Rounding


@dataclass(frozen=True)
class Case:
    """Input shape without the batch, output channels, kernel, and options of torch's layer."""

    shape: tuple[int, ...]
    out: int
    kernel: tuple[int, ...]
    batch: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64

    def layer(self) -> nn.Module:
        torch.manual_seed(0)
        kind = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}[len(self.kernel)]
        return kind(self.shape[0], self.out, self.kernel, dtype=self.dtype, **self.options)

    def input(self) -> Tensor:
        torch.manual_seed(1)
        return torch.randn(self.batch, *self.shape, dtype=self.dtype)


CASES = {
    "plain": Case((3, 7, 5), 4, (3, 3)),
    "padded_5x5": Case((2, 6, 7), 3, (5, 5), options={"padding": 2}),
    "stride": Case((2, 9, 8), 3, (3, 2), options={"stride": (2, 3), "padding": (1, 0)}),
    "dilation": Case((2, 9, 8), 3, (3, 2), options={"dilation": (2, 3)}),
    "groups": Case((4, 6, 5), 6, (3, 3), options={"groups": 2, "padding": 1}),
    "depthwise": Case((4, 6, 5), 4, (3, 3), options={"groups": 4, "padding": 1}),
    "no_bias": Case((3, 7, 5), 4, (3, 3), options={"bias": False}),
    "same_even": Case((2, 6, 7), 3, (4, 3), options={"padding": "same"}),
    "valid": Case((2, 6, 7), 3, (4, 3), options={"padding": "valid"}),
    "reflect": Case((2, 6, 7), 3, (3, 3), options={"padding": 1, "padding_mode": "reflect"}),
    "replicate": Case((2, 6, 7), 3, (3, 3), options={"padding": 2, "padding_mode": "replicate"}),
    "circular": Case((2, 6, 7), 3, (3, 5), options={"padding": (1, 2), "padding_mode": "circular"}),
    "pointwise": Case((4, 5, 6), 6, (1, 1), options={"groups": 2}),
    "pointwise_stride": Case((4, 5, 6), 3, (1, 1), options={"stride": 2}),
    "one_dimension": Case((3, 11), 4, (4,), options={"padding": 2, "stride": 2}),
    "three_dimensions": Case((2, 4, 3, 5), 3, (2, 3, 2), options={"padding": 1}),
    "many_pieces": Case((2, 6, 7), 3, (3, 3), batch=13),
    "float32": Case((3, 7, 5), 4, (3, 3), options={"padding": 1}, dtype=torch.float32),
    "float16": Case((3, 7, 5), 4, (3, 3), options={"padding": 1}, dtype=torch.float16),
    "bfloat16": Case((3, 7, 5), 4, (3, 3), options={"padding": 1}, dtype=torch.bfloat16),
}
ROUNDING = {
    torch.float64: 1e-13,
    torch.float32: 1e-6,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}
TOLERANCE = {dtype: {"rtol": 2e-2, "atol": 2e-2} for dtype in (torch.bfloat16, torch.float16)}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
every_sketch = pytest.mark.parametrize("sketch", SKETCHES.values(), ids=SKETCHES.keys())
lossy_sketch = pytest.mark.parametrize("sketch", LOSSY.values(), ids=LOSSY.keys())


def converted(layer: nn.Module, sketch: Sketch) -> nn.Module:
    return rad.convert(layer, sketch, seed=5)


def naive_weight_grad(
    layer: nn.Module, sketch: Sketch, key: Tensor, x: Tensor, grad_output: Tensor
) -> Tensor:
    """The exact layer's weight gradient for the dense x_hat of that key, in float64."""
    rows = x.flatten(2).flatten(0, 1)
    x_hat = sketch.decompress(sketch.compress(rows, key), rows.shape, x.dtype, key).view(x.shape)
    wide = layer.double()
    (gradient,) = torch.autograd.grad(wide(x_hat.double()), wide.weight, grad_output.double())
    return gradient


@every_sketch
@every_case
def test_forward_and_gradients(case: Case, sketch: Sketch) -> None:
    exact, x = case.layer(), case.input().requires_grad_()
    layer = converted(exact, sketch)
    expected, actual = exact(x), layer(x)
    assert torch.equal(actual, expected)
    grad_output = torch.randn_like(expected)
    want = torch.autograd.grad(expected, [x, *exact.parameters()], grad_output)
    got = torch.autograd.grad(actual, [x, *layer.parameters()], grad_output)
    tolerance = TOLERANCE.get(case.dtype, {})
    torch.testing.assert_close(got[0], want[0], **tolerance)
    naive = naive_weight_grad(
        exact, sketch, rad.sketches.fold_in(layer.key, 0), x.detach(), grad_output
    )
    rounding = ROUNDING[case.dtype]
    assert (got[1] - naive).norm() <= rounding * naive.norm()
    assert got[1].dtype == case.dtype
    if len(got) > 2:
        torch.testing.assert_close(got[2], want[2], **tolerance)


@every_case
def test_identity_gives_torchs_gradient(case: Case) -> None:
    exact, x = case.layer(), case.input()
    layer = converted(exact, Identity())
    grad_output = torch.randn_like(exact(x))
    (want,) = torch.autograd.grad(exact(x), exact.weight, grad_output)
    (got,) = torch.autograd.grad(layer(x), layer.weight, grad_output)
    tolerance = TOLERANCE.get(case.dtype, {})
    torch.testing.assert_close(got, want, **tolerance)


@every_sketch
@every_case
def test_predicted_bytes_are_measured(case: Case, sketch: Sketch) -> None:
    layer, x = converted(case.layer(), sketch), case.input()
    rows = (case.batch * case.shape[0], x[0, 0].numel())
    assert saved_bytes(lambda: layer(x)) == sketch.nbytes(rows, case.dtype) + 8


@pytest.mark.parametrize("name", ["padded_5x5", "stride", "groups", "circular", "one_dimension"])
def test_gradcheck_passes_with_identity_only(name: str) -> None:
    case = CASES[name]
    layer, x = case.layer(), case.input()[:1].requires_grad_()
    options = (layer.stride, layer.padding, layer.dilation, layer.groups)

    def check(sketch: Sketch) -> bool:
        def function(x: Tensor, weight: Tensor) -> Tensor:
            return conv(
                x, weight, layer.bias, *options,
                padding_mode=layer.padding_mode, sketch=sketch, key=make_key(0),
            )  # fmt: skip

        return torch.autograd.gradcheck(
            function, (x, layer.weight), raise_exception=False, fast_mode=True
        )

    assert check(Identity())
    assert not any(check(s) for s in (SameSample(0.3), DifferentSample(0.3), Project(0.3)))


@every_sketch
def test_channels_last_and_unbatched(sketch: Sketch) -> None:
    case = CASES["groups"]
    exact, x = case.layer(), case.input().to(memory_format=torch.channels_last)
    layer = converted(exact, sketch)
    torch.testing.assert_close(layer(x), exact(x))
    grad_output = torch.randn_like(exact(x))
    (got,) = torch.autograd.grad(layer(x), layer.weight, grad_output)
    naive = naive_weight_grad(
        exact, sketch, rad.sketches.fold_in(layer.key, 1), x.contiguous(), grad_output
    )
    torch.testing.assert_close(got, naive)
    torch.testing.assert_close(layer.float()(x[0].float()), exact.float()(x[0].float()))


def test_channels_last_identity_keeps_the_input_itself() -> None:
    case = CASES["groups"]
    layer, x = converted(case.layer(), Identity()), case.input()
    x = x.to(memory_format=torch.channels_last)
    scale = torch.ones((), dtype=x.dtype, requires_grad=True)
    assert saved_bytes(lambda: (layer(x), x * scale)) == x.nbytes + 8


@every_sketch
@every_case
def test_two_backwards_agree(case: Case, sketch: Sketch) -> None:
    layer = converted(case.layer(), sketch)
    output = layer(case.input()).square().sum()
    output.backward(retain_graph=True)
    first = layer.weight.grad.clone()
    output.backward()
    torch.testing.assert_close(layer.weight.grad, 2 * first)


@every_case
@pytest.mark.parametrize("frozen", ["eval", "no_grad"])
def test_nothing_is_sketched_in_evaluation(frozen: str, case: Case) -> None:
    layer = converted(case.layer(), SameSample(0.3))
    if frozen == "eval":
        layer.eval()(case.input())
    else:
        with torch.no_grad():
            layer(case.input())
    assert layer.calls == 0


def test_autocast() -> None:
    layer = converted(CASES["float32"].layer(), DifferentSample(0.3))
    x = CASES["float32"].input().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    assert output.dtype == torch.bfloat16
    output.float().square().sum().backward()
    assert {p.grad.dtype for p in layer.parameters()} == {torch.float32}
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


@every_sketch
def test_an_empty_batch(sketch: Sketch) -> None:
    layer = converted(CASES["padded_5x5"].layer(), sketch)
    output = layer(CASES["padded_5x5"].input()[:0])
    output.sum().backward()
    assert not layer.weight.grad.any()
    assert not layer.bias.grad.any()


def test_complex_numbers_are_refused() -> None:
    x = torch.ones(1, 1, 3, dtype=torch.complex64)
    with pytest.raises(TypeError, match="view_as_real"):
        conv(x, torch.ones_like(x), sketch=Identity(), key=make_key(0))


def test_same_padding_with_a_stride_is_refused() -> None:
    x = torch.ones(1, 1, 5, 5)
    with pytest.raises(ValueError, match="strided"):
        conv(x, x[..., :3, :3], padding="same", stride=2, sketch=Identity(), key=make_key(0))


def test_a_wrong_number_of_axes_is_refused() -> None:
    with pytest.raises(ValueError, match="spatial axes"):
        conv(torch.ones(3, 4), torch.ones(1, 1, 1, 1), sketch=Identity(), key=make_key(0))


@lossy_sketch
@pytest.mark.parametrize("name", ["padded_5x5", "replicate", "groups"])
def test_unbiased_with_the_stated_variance(name: str, sketch: Sketch) -> None:
    """Padded borders included: the coordinates of the outer taps are tested one by one."""
    case = CASES[name]
    layer, x = case.layer(), case.input()[:2]
    output = layer(x)
    grad_output = torch.randn_like(output)
    (exact,) = torch.autograd.grad(output, layer.weight, grad_output)
    geometry = geometry_of(
        layer.weight, layer.stride, layer.padding, layer.dilation, layer.groups, layer.padding_mode
    )
    rows, weight = x.flatten(2).flatten(0, 1), layer.weight.detach()

    def estimate(key: Tensor) -> Tensor:
        kept = sketch.compress(rows, key)
        return sketch.decompress(kept, rows.shape, rows.dtype, key).view(x.shape)

    def weight_gradients(x_hats: Tensor) -> Tensor:
        # One convolution for all draws: draw n, channel c becomes a group of its own.
        mask = (False, True, False)
        return torch.vmap(lambda x_hat: geometry.backward(grad_output, x_hat, weight, mask)[1])(
            x_hats
        )

    n = 6_000
    samples = torch.cat([weight_gradients(part) for part in draws(estimate, n).split(2000)])
    check_unbiased(samples, exact)
    check_biased_is_caught(samples, exact)
    if isinstance(sketch, Rounding):
        check_one_biased_is_caught(samples, exact)
    variance = conv_weight_grad_variance(x, grad_output, weight, geometry, sketch)
    check_mean_square(samples, exact, variance.item())


def test_pointwise_reads_the_kept_positions_only() -> None:
    case = CASES["pointwise"]
    layer, x = converted(case.layer(), SameSample(0.2)), case.input()
    output = layer(x)
    where = layer.sketch.indices((1, 30), rad.sketches.fold_in(layer.key, 0))
    poisoned = torch.full_like(output, float("nan"))
    poisoned.flatten(2)[:, :, where] = output.detach().flatten(2)[:, :, where]
    (got,) = torch.autograd.grad(output, layer.weight, poisoned, retain_graph=True)
    assert torch.equal(got, torch.autograd.grad(output, layer.weight, output.detach())[0])


def test_the_variance_of_a_pointwise_projection_is_the_one_over_rows() -> None:
    # One position a row and one channel each: PEERS' formula for rows, d rows in all.
    x, grad_output = torch.randn(1, 3, 8), torch.randn(1, 2, 8)
    geometry = geometry_of(torch.ones(2, 3, 1), 1, 0, 1, 1, "zeros")
    sketch = Project(0.5)
    dense = grad_output[0] @ x[0].t()
    a, b = grad_output[0].square().sum(0), x[0].square().sum(0)
    expected = (a.sum() * b.sum() + dense.square().sum() - 2 * (a * b).sum()) / 4
    got = conv_weight_grad_variance(x, grad_output, torch.ones(2, 3, 1), geometry, sketch)
    torch.testing.assert_close(got, expected.double())


def test_no_closed_form_is_said() -> None:
    class Silent(Identity):
        noise = Sketch.noise

    x = torch.ones(1, 1, 3)
    geometry = geometry_of(torch.ones(1, 1, 1), 1, 0, 1, 1, "zeros")
    assert conv_weight_grad_variance(x, x, torch.ones(1, 1, 1), geometry, Identity()) == 0
    with pytest.raises(TypeError, match="Silent"):
        conv_weight_grad_variance(x, x, torch.ones(1, 1, 1), geometry, Silent())


def test_working_memory_stays_below_the_dense_input() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(50, 8, 32, 32), nn.Parameter(torch.randn(2, 8, 3, 3))
    for sketch in (SameSample(0.1), DifferentSample(0.1), Project(0.1)):
        output = conv(x, weight, padding=1, sketch=sketch, key=make_key(0))
        grad_output = torch.ones_like(output)
        peak = rad.memory.peak_bytes(lambda: torch.autograd.grad(output, weight, grad_output))  # noqa: B023
        assert peak < x.nbytes


def test_equal_to_functional_conv2d() -> None:
    x, weight, bias = torch.randn(2, 3, 6, 5), torch.randn(4, 3, 3, 3), torch.randn(4)
    out = conv(x, weight, bias, 2, 1, sketch=SameSample(0.5), key=make_key(0))
    assert torch.equal(out, F.conv2d(x, weight, bias, 2, 1))


@lossy_sketch
def test_a_batch_that_is_cut_has_the_gradients_of_the_whole(
    sketch: Sketch, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = CASES["many_pieces"]
    layer, x, found = case.layer(), case.input().requires_grad_(), []
    grad_output = torch.randn_like(layer(x))
    for small in (0, 1 << 20):
        monkeypatch.setattr(sys.modules["rad.functional.conv"], "SMALL_BYTES", small)
        cut = converted(layer, sketch)
        found.append(torch.autograd.grad(cut(x), [x, *cut.parameters()], grad_output))
    torch.testing.assert_close(*found)


class _Convolutions(TorchDispatchMode):
    """Counts what the backward passes of convolutions run."""

    calls = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.calls += func is torch.ops.aten.convolution_backward.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("shape", "calls"), [((8, 4, 20, 20), 1), ((40, 16, 32, 32), 5), ((150, 3, 32, 32), 5)]
)
@pytest.mark.parametrize("sketch", [Identity(), DifferentSample(0.1)], ids=["exact", "sample"])
def test_only_large_batches_are_cut(shape: tuple[int, ...], calls: int, sketch: Sketch) -> None:
    layer = converted(nn.Conv2d(shape[1], 16, 3, padding=1), sketch)
    output = layer(torch.randn(shape, requires_grad=True))
    with _Convolutions() as counted:
        output.backward(torch.randn_like(output))
    assert counted.calls == calls
