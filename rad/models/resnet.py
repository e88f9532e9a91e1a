"""torchvision's residual networks, with the first layer that small images call for."""

from __future__ import annotations

from typing import Any

from torch import nn

from rad.errors import UsageError
from rad.models.sizes import check_images, check_sizes

DEPTHS = (18, 34, 50)


WIDTH = 64
"""Channels of torchvision's first blocks; later ones have two, four and eight times as many."""


def resnet(
    input_shape: tuple[int, ...], classes: int, depth: int = 18, width: int = WIDTH
) -> nn.Module:
    """He et al. (2016) for small images: 3 x 3 windows with stride 1 first, and no pooling there.

    Of another `width` than `WIDTH`, all layers have as many times more or fewer channels.

    Shapes: (B, C, H, W) -> (B, classes).

    Raises:
        UsageError: inputs that are no images, a depth that is not in `DEPTHS`, or a size that is
            not a whole number of at least 1.
    """
    from torchvision.models import resnet as of_torchvision

    check_images(input_shape, "a ResNet")
    check_sizes(classes=classes, width=width)
    if depth not in DEPTHS:
        raise UsageError(f"unknown depth {depth!r}: choose one of {', '.join(map(str, DEPTHS))}")
    model: nn.Module = getattr(of_torchvision, f"resnet{depth}")(num_classes=classes)
    if width != WIDTH:
        _widen(model, width, classes)
    model.conv1 = nn.Conv2d(input_shape[0], width, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model


def _widen(model: Any, width: int, classes: int) -> None:
    """Give torchvision's network layers of another width, with initial weights as its own."""
    block = type(model.layer1[0])
    model.inplanes, model.bn1 = width, nn.BatchNorm2d(width)
    for number in range(4):
        name = f"layer{number + 1}"
        count, stride = len(getattr(model, name)), 1 if number == 0 else 2
        layer = model._make_layer(block, width * 2**number, count, stride)
        for part in layer.modules():
            if isinstance(part, nn.Conv2d):
                nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
        setattr(model, name, layer)
    model.fc = nn.Linear(8 * width * block.expansion, classes)
