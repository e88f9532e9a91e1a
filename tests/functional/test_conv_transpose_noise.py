"""The weight gradient of a transposed convolution: unbiased, with the stated variance."""

from typing import Any

import pytest
import torch
from cases import LOSSY
from torch import Tensor, nn
from unbiased import (
    check_biased_is_caught,
    check_mean_square,
    check_one_biased_is_caught,
    check_unbiased,
    draws,
)

import rad
from rad.functional.geometry import Geometry, transposed_geometry_of
from rad.sketches import Project, SameSample, Sketch

OPTIONS: dict[str, Any] = {"stride": (3, 2), "padding": (1, 2), "output_padding": (1, 0)}
MORE: dict[str, Any] = {"groups": 2, "dilation": (1, 2)}
"""Small and with everything: padded borders, gaps in the output, groups of two channels."""


def weight_gradients(geometry: Geometry, x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """The weight's gradient, which is linear in the input, as a matrix: (x.numel(), -1)."""
    basis = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    rows = [geometry.backward(grad, each, weight, (False, True, False))[1] for each in basis]
    return torch.stack([row for row in rows if row is not None]).flatten(1)


@pytest.mark.parametrize("sketch", LOSSY.values(), ids=LOSSY.keys())
def test_unbiased_with_the_stated_variance(sketch: Sketch) -> None:
    torch.manual_seed(0)
    plain = nn.ConvTranspose2d(4, 2, (2, 3), **OPTIONS, **MORE, dtype=torch.float64)
    layer, x = rad.convert(plain, sketch), torch.randn(2, 4, 3, 4, dtype=torch.float64)
    output = plain(x)
    grad_output = torch.randn_like(output)
    (exact,) = torch.autograd.grad(output, plain.weight, grad_output)
    reach = (plain.stride, plain.padding, plain.output_padding)
    geometry = transposed_geometry_of(plain.weight, *reach, plain.groups, plain.dilation)
    matrix = weight_gradients(geometry, x, grad_output, plain.weight.detach())
    torch.testing.assert_close(x.flatten() @ matrix, exact.flatten())
    rows = x.flatten(2).flatten(0, 1)

    def estimate(key: Tensor) -> Tensor:
        kept = sketch.compress(rows, key)
        return sketch.decompress(kept, rows.shape, rows.dtype, key)

    samples = draws(estimate, 20_000).flatten(1) @ matrix
    check_unbiased(samples, exact.flatten())
    check_biased_is_caught(samples, exact.flatten())
    check_one_biased_is_caught(samples, exact.flatten())
    variance = layer.weight_grad_variance(x, grad_output, sketch)
    check_mean_square(samples, exact.flatten(), variance.item())


def test_of_a_single_image_and_an_output_size() -> None:
    layer = rad.convert(nn.ConvTranspose2d(2, 3, 3, stride=2), SameSample(0.5))
    x = torch.randn(1, 2, 5, 4)
    grad_output = torch.randn_like(layer(x, (12, 10)))
    batched = layer.weight_grad_variance(x, grad_output, Project(0.5))
    assert batched > 0
    assert layer.weight_grad_variance(x[0], grad_output[0], Project(0.5)) == batched
