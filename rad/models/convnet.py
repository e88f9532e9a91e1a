"""The paper's convolutional network (section 4, Figure 5a)."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def convnet(
    input_shape: tuple[int, ...], classes: int, channels: Sequence[int] = (16, 32, 32, 32)
) -> nn.Sequential:
    """5 x 5 convolutions with ReLU, average pooling after every second, then a linear layer.

    Shapes: (B, C, H, W) -> logits (B, classes).
    """
    width, height, breadth = input_shape
    layers: list[nn.Module] = []
    for place, outputs in enumerate(channels):
        layers += [nn.Conv2d(width, outputs, 5, padding=2), nn.ReLU()]
        width = outputs
        if place % 2:
            layers.append(nn.AvgPool2d(2))
            height, breadth = height // 2, breadth // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * height * breadth, classes))
