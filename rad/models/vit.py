"""torchvision's vision transformer, in sizes for small images."""

from __future__ import annotations

import math

from torch import nn

from rad.errors import UsageError
from rad.models.sizes import check_heads, check_images, check_sizes


def vit(
    input_shape: tuple[int, ...],
    classes: int,
    patch: int = 4,
    blocks: int = 6,
    width: int = 192,
    heads: int = 3,
) -> nn.Module:
    """Dosovitskiy et al. (2021): patches of patch x patch pixels as tokens, without dropout.

    Shapes: (B, C, H, H) -> (B, classes).

    Raises:
        UsageError: inputs that are no square images of whole patches, a width that its heads do not
            divide, or a size that is not a whole number of at least 1.
    """
    from torchvision.models.vision_transformer import VisionTransformer

    check_images(input_shape, "a vision transformer")
    check_sizes(classes=classes, patch=patch, blocks=blocks)
    check_heads(width, heads)
    if input_shape[1] != input_shape[2] or input_shape[1] % patch:
        raise UsageError(
            f"this vision transformer takes square images of whole patches of {patch} x {patch} "
            f"pixels, not {input_shape}: choose such data, or another model.patch"
        )
    model = VisionTransformer(
        image_size=input_shape[1],
        patch_size=patch,
        num_layers=blocks,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=classes,
    )
    first = nn.Conv2d(input_shape[0], width, patch, stride=patch)
    nn.init.trunc_normal_(first.weight, std=math.sqrt(1 / (input_shape[0] * patch**2)))
    assert first.bias is not None
    nn.init.zeros_(first.bias)
    model.conv_proj = first
    # torchvision's zeros would stop the gradient.
    nn.init.trunc_normal_(model.heads.head.weight, std=0.02)
    return model
