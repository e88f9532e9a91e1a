"""Transposed convolution: one table of cases drives every property."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from cases import SKETCHES
from torch import Tensor, nn

import rad
from rad.functional import conv_transpose
from rad.memory import peak_bytes, saved_bytes
from rad.sketches import DifferentSample, Identity, Project, SameSample, Sketch, fold_in, make_key


@dataclass(frozen=True)
class Case:
    """Input shape without the batch, output channels, kernel, and options of torch's layer."""

    shape: tuple[int, ...]
    out: int
    kernel: tuple[int, ...]
    batch: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64
    output_size: tuple[int, ...] | None = None

    def layer(self) -> nn.Module:
        torch.manual_seed(0)
        kind = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
        kernel = len(self.kernel)
        return kind[kernel](self.shape[0], self.out, self.kernel, dtype=self.dtype, **self.options)

    def input(self) -> Tensor:
        torch.manual_seed(1)
        return torch.randn(self.batch, *self.shape, dtype=self.dtype)


EVERYTHING = {"stride": (3, 2), "padding": (1, 2), "output_padding": (2, 1), "groups": 2}
CASES = {
    "plain": Case((3, 5, 4), 4, (3, 3)),
    "doubling": Case((4, 5, 4), 2, (4, 4), options={"stride": 2, "padding": 1}),
    "everything": Case((4, 4, 5), 6, (3, 4), options=EVERYTHING | {"dilation": (2, 3)}),
    "dilated": Case((2, 4, 5), 3, (3, 2), options={"dilation": (3, 2), "output_padding": (2, 1)}),
    "depthwise": Case((4, 4, 5), 4, (3, 3), options={"groups": 4, "padding": 1}),
    "no_bias": Case((3, 5, 4), 4, (3, 3), options={"bias": False}),
    "pointwise": Case((4, 5, 3), 6, (1, 1), options={"groups": 2}),
    "output_size": Case((2, 5, 4), 3, (3, 3), options={"stride": 2}, output_size=(12, 10)),
    "one_dimension": Case((3, 9), 4, (4,), options={"padding": 2, "stride": 2}),
    "three_dimensions": Case((2, 3, 2, 4), 3, (2, 3, 2), options={"stride": 2}),
    "many_images": Case((2, 5, 4), 3, (3, 3), batch=13),
    "float32": Case((3, 5, 4), 4, (3, 3), options={"stride": 2}, dtype=torch.float32),
    "float16": Case((3, 5, 4), 4, (3, 3), options={"stride": 2}, dtype=torch.float16),
    "bfloat16": Case((3, 5, 4), 4, (3, 3), options={"stride": 2}, dtype=torch.bfloat16),
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


def converted(layer: nn.Module, sketch: Sketch) -> nn.Module:
    return rad.convert(layer, sketch, seed=5)


@every_sketch
@every_case
def test_forward_and_gradients(case: Case, sketch: Sketch) -> None:
    exact, x = case.layer(), case.input().requires_grad_()
    layer = converted(exact, sketch)
    expected, actual = exact(x, case.output_size), layer(x, case.output_size)
    assert torch.equal(actual, expected)
    grad_output = torch.randn_like(expected)
    want = torch.autograd.grad(expected, [x, *exact.parameters()], grad_output)
    got = torch.autograd.grad(actual, [x, *layer.parameters()], grad_output)
    tolerance = TOLERANCE.get(case.dtype, {})
    torch.testing.assert_close(got[0], want[0], **tolerance)
    if len(got) > 2:
        torch.testing.assert_close(got[2], want[2], **tolerance)
    if isinstance(sketch, Identity):
        torch.testing.assert_close(got[1], want[1], **tolerance)
    key, rows = fold_in(layer.key, 0), x.detach().flatten(2).flatten(0, 1)
    x_hat = sketch.decompress(sketch.compress(rows, key), rows.shape, x.dtype, key).view(x.shape)
    wide = exact.double()
    read = wide(x_hat.double(), case.output_size)
    (naive,) = torch.autograd.grad(read, wide.weight, grad_output.double())
    assert (got[1] - naive).norm() <= ROUNDING[case.dtype] * naive.norm()
    assert got[1].dtype == case.dtype


@every_sketch
@every_case
def test_predicted_bytes_are_measured(case: Case, sketch: Sketch) -> None:
    layer, x = converted(case.layer(), sketch), case.input()
    rows = (case.batch * case.shape[0], x[0, 0].numel())
    assert saved_bytes(lambda: layer(x)) == sketch.nbytes(rows, case.dtype) + 8


@pytest.mark.parametrize("name", ["doubling", "one_dimension"])
def test_gradcheck_passes_with_identity_only(name: str) -> None:
    case = CASES[name]
    layer, x = case.layer(), case.input()[:1].requires_grad_()
    reach = (layer.stride, layer.padding, layer.output_padding, layer.groups, layer.dilation)

    def check(sketch: Sketch) -> bool:
        def function(x: Tensor, weight: Tensor) -> Tensor:
            return conv_transpose(x, weight, layer.bias, *reach, sketch=sketch, key=make_key(0))

        return torch.autograd.gradcheck(
            function, (x, layer.weight), raise_exception=False, fast_mode=True
        )

    assert check(Identity())
    assert not any(check(s) for s in (SameSample(0.3), DifferentSample(0.3), Project(0.3)))


@every_sketch
def test_unbatched_empty_and_frozen(sketch: Sketch) -> None:
    case = CASES["doubling"]
    exact, x = case.layer(), case.input().requires_grad_()
    layer = converted(exact, sketch)
    torch.testing.assert_close(layer(x[0]), exact(x[0]))
    layer(x[:0]).sum().backward()
    assert not layer.weight.grad.any()
    layer.weight.requires_grad_(False)
    assert saved_bytes(lambda: layer(x)) == 8
    grad_output = torch.randn_like(exact(x))
    (want,) = torch.autograd.grad(exact(x), x, grad_output)
    (got,) = torch.autograd.grad(layer(x), x, grad_output)
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("frozen", ["eval", "no_grad"])
def test_nothing_is_sketched_in_evaluation(frozen: str) -> None:
    case = CASES["output_size"]
    layer, x = converted(case.layer(), SameSample(0.3)), case.input()
    layer.train(frozen != "eval")
    with torch.set_grad_enabled(frozen != "no_grad"):
        output = layer(x, case.output_size)
    assert output.shape[2:] == case.output_size
    assert layer.calls == 0


def test_autocast() -> None:
    layer = converted(CASES["float32"].layer(), DifferentSample(0.3))
    x = CASES["float32"].input().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = layer(x)
    output.float().square().sum().backward()
    assert output.dtype == torch.bfloat16
    assert {p.grad.dtype for p in (x, *layer.parameters())} == {torch.float32}  # type: ignore[union-attr]


def test_an_output_size_that_cannot_be_is_refused() -> None:
    layer = converted(CASES["output_size"].layer(), SameSample(0.3))
    with pytest.raises(ValueError, match="requested an output size"):
        layer(CASES["output_size"].input(), (20, 20))
    with pytest.raises(ValueError, match="spatial axes"):
        conv_transpose(torch.ones(3, 4), torch.ones(1, 1, 1, 1), sketch=Identity(), key=make_key(0))


@pytest.mark.parametrize("sketch", [Identity(), SameSample(0.1), Project(0.1)], ids=str)
def test_the_peak_is_not_above_torchs(sketch: Sketch) -> None:
    layer = nn.ConvTranspose2d(16, 16, 4, 2, 1)
    start = torch.randn(12, 16, 20, 20, requires_grad=True)

    def peak(layer: nn.Module) -> int:
        wanted = [start, *layer.parameters()]
        return peak_bytes(lambda: torch.autograd.grad(layer(start * 2).sum(), wanted))

    assert peak(converted(layer, sketch)) <= peak(layer) + (1 << 16)


def test_a_decoder_is_planned_and_reported() -> None:
    layers = [nn.Linear(5, 32), nn.Unflatten(1, (8, 2, 2)), nn.ConvTranspose2d(8, 6, 4, 2, 1)]
    model = nn.Sequential(*layers, nn.ReLU(), nn.ConvTranspose2d(6, 3, 4, 2, 1))
    x = torch.randn(20, 5)
    for options in ({"variant": "auto"}, {"allocation": "optimal"}):
        plan = rad.fit(model, x, lambda out: out.square().mean(), 0.5, **options)  # type: ignore[arg-type]
        assert set(plan.layers or {}) == {"0", "2", "4"}
    fitted = rad.convert(model, plan.sketch)
    audit = rad.audit(fitted, lambda: fitted(x).square().mean())
    assert audit.predicted["4"] == audit.saved["4"]
    kinds = [row.kind for row in rad.report(fitted).replaced]
    assert kinds == ["Linear", "ConvTranspose2d", "ReLU", "ConvTranspose2d"]


def test_equal_to_functional_conv_transpose2d() -> None:
    x, weight, bias = torch.randn(2, 3, 4, 5), torch.randn(3, 4, 3, 3), torch.randn(4)
    out = conv_transpose(x, weight, bias, 2, 1, 1, sketch=SameSample(0.5), key=make_key(0))
    assert torch.equal(out, F.conv_transpose2d(x, weight, bias, 2, 1, 1))
