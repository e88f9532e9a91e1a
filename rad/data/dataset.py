"""Labelled images as tensors on the training device.

The sets are small enough to stay in device memory as uint8, so there is no DataLoader: a batch
is an index and a normalisation.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rad.data.augmentation import AUGMENTATIONS, crop_flip
from rad.data.digests import digest_of
from rad.errors import UsageError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (N, C, H, W) and labels (N,), both uint8 and on one device.

    Sequences are images (N, T, 1), in int16 where uint8 would round. `white` is the integer that
    stands for a pixel of 1. `augment` is None, or how training images are changed at random
    (`rad.data.augmentation`).

    Raises:
        UsageError: an unknown `augment`, or one for sequences.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int
    white: int = 255
    augment: str | None = None

    def __post_init__(self) -> None:
        if self.augment not in (None, *AUGMENTATIONS):
            choices = ", ".join(AUGMENTATIONS)
            raise UsageError(f"unknown augment {self.augment!r}; choose None or {choices}")
        if self.augment is not None and self.train_images.dim() != 4:
            raise UsageError(f"augment={self.augment} is for images; leave it at None")

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W); (T, 1) of sequences."""
        return tuple(self.train_images.shape[1:])

    @property
    def model_arguments(self) -> dict[str, Any]:
        """What a model has to know of it (`rad.models.build`)."""
        return {"input_shape": self.image_shape, "classes": self.classes}

    @cached_property
    def digest(self) -> str:
        """Of the images and labels as they are here, in hexadecimal digits."""
        images = self.train_images, self.test_images
        return digest_of([*images, self.train_labels, self.test_labels])

    def batch(
        self,
        indices: Tensor,
        split: str = "train",
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Normalised float32 images (B, *image_shape) and int64 labels (B,) of `split`.

        With a generator, of the same device, images are changed as `augment` says. The dataset
        keeps no reference to what it returns.
        """
        if split not in ("train", "test"):
            raise UsageError(f"unknown split {split!r}; choose 'train' or 'test'")
        train = split == "train"
        # index_select copies whole images, where an index would go from byte to byte.
        pixels = (self.train_images if train else self.test_images).index_select(0, indices)
        labels = (self.train_labels if train else self.test_labels).index_select(0, indices)
        if generator is not None and self.augment is not None:
            pixels = crop_flip(pixels, generator)
        mean, std = self._statistics
        return pixels.float().div_(self.white).sub_(mean).div_(std), labels.long()

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        device = self.train_images.device
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self.mean, self.std))
        return mean, std
