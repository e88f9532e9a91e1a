"""The paper's convolutional network (section 4, Figure 5a)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from rad.errors import UsageError
from rad.models.sizes import check_images, check_list, check_sizes


def convnet(
    input_shape: tuple[int, ...],
    classes: int,
    channels: Sequence[int] = (16, 32, 32, 32),
    pool_every: int = 2,
    kernel: int = 5,
) -> nn.Sequential:
    """Convolutions with ReLU, average pooling after each `pool_every` of them, a linear layer.

    The defaults are the paper's; `channels` are those that each convolution gives, `kernel` is the
    side of its square kernel.
    Shapes: (B, C, H, W) -> logits (B, classes).

    Raises:
        UsageError: inputs that are no images, or too small to be pooled so often, a `kernel` that
            is not odd, or a size that is not a whole number of at least 1.
    """
    check_images(input_shape, "a convnet")
    check_list("channels", channels)
    check_sizes(classes=classes, pool_every=pool_every, kernel=kernel)
    if kernel % 2 == 0:
        raise UsageError(f"kernel is {kernel!r}: give an odd whole number of at least 1")
    width, height, breadth = input_shape
    layers: list[nn.Module] = []
    for number, outputs in enumerate(channels, 1):
        layers += [nn.Conv2d(width, outputs, kernel, padding=kernel // 2), nn.ReLU()]
        width = outputs
        if number % pool_every == 0:
            layers.append(nn.AvgPool2d(2))
            height, breadth = height // 2, breadth // 2
    if not height * breadth:
        raise UsageError(
            f"{len(channels)} channels pool images {tuple(input_shape)} away: give fewer"
        )
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * height * breadth, classes))
