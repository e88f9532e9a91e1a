"""A convolution's weight gradient from kept positions: that of the dense reading."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from cases import HalvedSample
from torch import Tensor

from rad.functional import conv_weight
from rad.functional.conv_weight import weight_grad_from_positions
from rad.functional.geometry import Geometry, geometry_of
from rad.sketches import DifferentSample, SameSample, make_key

SKETCHES = {
    "same": SameSample(0.1),
    "same_distinct": SameSample(0.1, replacement=False),
    "different": DifferentSample(0.1),
    "different_distinct": DifferentSample(0.1, replacement=False),
    "halved": HalvedSample(0.1),
}
Case = tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]
CASES: dict[str, Case] = {
    "plain": ((5, 6, 12, 10), (32, 6, 3, 3), {}),
    "padding": ((5, 6, 12, 10), (32, 6, 5, 3), {"padding": (0, 2)}),
    "beyond_the_kernel": ((5, 6, 12, 10), (32, 6, 3, 3), {"padding": 4}),
    "same_even": ((5, 6, 12, 10), (32, 6, 2, 4), {"padding": "same"}),
    "groups": ((5, 6, 12, 10), (32, 3, 3, 3), {"groups": 2, "padding": 1}),
    "pointwise": ((5, 6, 12, 10), (32, 6, 1, 1), {}),
    "stride": ((5, 6, 12, 11), (32, 6, 3, 3), {"stride": (2, 3), "padding": 1}),
    "dilation": ((5, 6, 12, 11), (32, 6, 3, 3), {"dilation": (2, 1), "padding": (2, 0)}),
    "all": (
        (5, 6, 13, 11),
        (32, 3, 3, 2),
        {"stride": (2, 1), "dilation": (1, 2), "padding": (1, 3), "groups": 2},
    ),
    "one_axis": ((5, 6, 40), (32, 6, 5), {"padding": 2}),
    "one_axis_stride": ((5, 6, 40), (32, 6, 5), {"stride": 2}),
}


def geometry(weight: Tensor, options: dict[str, Any]) -> Geometry:
    given = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "padding_mode": "zeros"}
    return geometry_of(weight, **{**given, **options})


def example(case: str, name: str, dtype: torch.dtype) -> tuple[Any, ...]:
    """Arguments of `from_positions`, the input half zero as after a ReLU."""
    shape, weight_shape, options = CASES[case]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).relu().to(dtype)
    weight = torch.randn(weight_shape, generator=generator).to(dtype)
    of = geometry(weight, options)
    grad = torch.randn(of.forward(x, weight, None).shape, generator=generator).to(dtype)
    key = make_key(3)
    kept = SKETCHES[name].compress(x.flatten(2).flatten(0, 1), key)
    return SKETCHES[name], grad, kept, weight, x.shape, of, key


def from_positions(
    sketch: Any, grad: Tensor, kept: Any, weight: Tensor, shape: Any, of: Geometry, key: Tensor
) -> Tensor | None:
    drawn = sketch.selectors(shape[2:].numel())
    return weight_grad_from_positions(drawn, grad, kept[0], weight, shape, of, key)


def dense(
    sketch: Any, grad: Tensor, kept: Any, weight: Tensor, shape: Any, of: Geometry, key: Tensor
) -> Tensor:
    rows = (shape[0] * shape[1], shape[2:].numel())
    wide = torch.promote_types(grad.dtype, torch.float32)
    x_hat = sketch.decompress(kept, rows, wide, key).view(shape)
    by_weight = of.backward(grad.to(wide), x_hat, weight.to(wide), (False, True, False))[1]
    assert by_weight is not None
    return by_weight


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("sketch", SKETCHES)
@pytest.mark.parametrize("case", CASES)
def test_it_is_that_of_the_dense_reading(case: str, sketch: str, dtype: torch.dtype) -> None:
    arguments = example(case, sketch, dtype)
    found = from_positions(*arguments)
    assert found is not None
    expected = dense(*arguments)
    assert (found.shape, found.dtype) == (expected.shape, expected.dtype)
    unit = torch.finfo(found.dtype).eps * expected.abs().max()
    assert (found - expected).abs().max() <= 32 * unit  # sums of some 600 products


@pytest.mark.parametrize("layout", ["channels_last", "expanded", "reversed"])
def test_gradients_may_lie_in_any_way(layout: str) -> None:
    sketch, grad, *rest = example("plain", "different", torch.float32)
    grad = {
        "channels_last": grad.contiguous(memory_format=torch.channels_last),
        "expanded": grad.new_ones(()).expand(grad.shape),
        "reversed": grad.transpose(2, 3).contiguous().transpose(2, 3),
    }[layout]
    assert not grad.is_contiguous()
    found = from_positions(sketch, grad, *rest)
    torch.testing.assert_close(found, dense(sketch, grad, *rest))


def test_several_threads_divide_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = example("groups", "different", torch.float64)
    monkeypatch.setattr(conv_weight, "IMAGES", 2)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    torch.testing.assert_close(from_positions(*arguments), dense(*arguments))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("case", ["plain", "stride"])
def test_a_gradient_that_is_not_finite_is_left_to_the_dense_reading(
    bad: float, threads: int, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose zeros turn it into NaN, in whichever image it stands."""
    monkeypatch.setattr(conv_weight, "IMAGES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    for image in (0, 4):
        _, grad, *_ = arguments = example(case, "different", torch.float32)
        grad[image, 3, 1, 1] = bad
        assert from_positions(*arguments) is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("case", ["padding", "stride"])
def test_a_kept_number_that_is_not_finite_shows(bad: float, case: str) -> None:
    _, _, (kept,), *_ = arguments = example(case, "different", torch.float32)
    kept[7, 2] = bad
    found, expected = from_positions(*arguments), dense(*arguments)
    assert found is not None
    shows = ~expected.isfinite()
    assert shows.any()
    assert (~found.isfinite())[shows].all()
    assert found[:, :1].isfinite().all()  # in its own channel, the second, only


@pytest.mark.parametrize(
    ("case", "change"),
    [
        ("plain", {"sketch": DifferentSample(0.5)}),
        ("plain", {"geometry": {"padding": 1, "padding_mode": "circular"}}),
        ("groups", {"weight": (6, 1, 3, 3), "geometry": {"groups": 6, "padding": 1}}),
    ],
    ids=["much_is_kept", "padding_that_repeats", "depthwise"],
)
def test_what_is_left_to_the_dense_reading(case: str, change: dict[str, Any]) -> None:
    shape = CASES[case][0]
    sketch = change.get("sketch", SKETCHES["different"])
    weight = torch.randn(change.get("weight", (32, 6, 3, 3)))
    of = geometry(weight, change.get("geometry", {}))
    x, key = torch.rand(shape), make_key(1)
    grad = of.forward(x, weight, None)
    kept = sketch.compress(x.flatten(2).flatten(0, 1), key)
    arguments = (grad, kept, weight, x.shape, of, key)
    assert from_positions(sketch, *arguments) is None


def test_without_loops_it_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conv_weight.backends, "in_loops", lambda _: False)
    assert from_positions(*example("plain", "different", torch.float32)) is None
