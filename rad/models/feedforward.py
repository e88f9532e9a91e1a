"""The fully connected network of the paper's MNIST experiment (section 4, Figure 5b)."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from rad.models.sizes import check_list, check_sizes


def feedforward(
    input_shape: Sequence[int], classes: int, hidden: Sequence[int] = (300, 300, 300)
) -> nn.Sequential:
    """Linear layers with a ReLU between any two, over the flattened input.

    Shapes: (B, *input_shape) -> (B, classes). Weights start as torch's `nn.Linear` draws them.

    Raises:
        UsageError: no list of hidden widths, or a size that is not a whole number of at least 1.
    """
    check_list("input_shape", input_shape)
    check_list("hidden", hidden)
    check_sizes(classes=classes)
    widths = [prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
