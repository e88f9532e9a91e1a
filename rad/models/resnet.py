"""torchvision's residual networks, with the first layer that small images call for."""

from __future__ import annotations

from torch import nn

from rad.errors import UsageError

DEPTHS = (18, 34, 50)


def resnet(input_shape: tuple[int, ...], classes: int, depth: int = 18) -> nn.Module:
    """He et al. (2016) for small images: 3 x 3 windows with stride 1 first, and no pooling there.

    Shapes: (B, C, H, W) -> (B, classes).

    Raises:
        UsageError: inputs that are no images, or a depth that is not in `DEPTHS`.
    """
    from torchvision.models import resnet as of_torchvision

    if len(input_shape) != 3:
        raise UsageError(f"a ResNet takes images (C, H, W), not {input_shape}: choose such data")
    if depth not in DEPTHS:
        raise UsageError(f"unknown depth {depth!r}: choose one of {', '.join(map(str, DEPTHS))}")
    model: nn.Module = getattr(of_torchvision, f"resnet{depth}")(num_classes=classes)
    model.conv1 = nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")
    model.maxpool = nn.Identity()
    return model
