"""The fully connected network of the paper's MNIST experiment (section 4, Figure 5b)."""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import nn

from rad.errors import UsageError


def feedforward(
    input_shape: Sequence[int], classes: int, hidden: Sequence[int] = (300, 300, 300)
) -> nn.Sequential:
    """Linear layers with a ReLU between any two, over the flattened input.

    Shapes: (B, *input_shape) -> (B, classes). Weights start as torch's `nn.Linear` draws them.

    Raises:
        UsageError: no list of hidden widths, or a width that is not a whole number of at least 1.
    """
    if not isinstance(hidden, Sequence) or isinstance(hidden, str):
        raise UsageError(f"hidden widths {hidden!r}: give a list, such as [300, 300, 300]")
    for width in hidden:
        if not isinstance(width, int) or isinstance(width, bool) or width < 1:
            raise UsageError(f"hidden width {width!r}: give whole numbers of at least 1")
    widths = [prod(input_shape), *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in pairwise(widths):
        layers += [nn.Linear(fan_in, fan_out), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))
