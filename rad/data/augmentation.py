"""Images moved and mirrored at random, on their own device."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BORDER = 4
"""Pixels by which an image may move in each direction."""

AUGMENTATIONS = ("crop_flip",)


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each image moved by up to `BORDER` pixels along both axes, and mirrored half of the time.

    As when an image with a black border of that width is cut to its size again at a random place
    (He et al., 2016). The generator is of the images' device. Shapes: (B, C, H, W), the same.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (BORDER,) * 4)

    def drawn(most: int) -> Tensor:
        return torch.randint(
            most, (count, 1), generator=generator, device=generator.device, dtype=torch.int64
        )

    rows = drawn(2 * BORDER + 1) + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(drawn(2) == 1, columns.flip(1), columns) + drawn(2 * BORDER + 1)
    image = torch.arange(count, device=images.device)[:, None, None]
    moved = padded.movedim(1, -1)[image, rows[:, :, None], columns[:, None, :]]
    return moved.movedim(-1, 1).contiguous()
