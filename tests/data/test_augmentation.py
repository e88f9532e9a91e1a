"""Images are moved and mirrored as a whole, by the run's own generator."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rad import data
from rad.data.augmentation import BORDER, crop_flip
from rad.errors import UsageError
from rad.training import Classification

IMAGES = torch.randint(1, 256, (600, 2, 6, 5), dtype=torch.uint8)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_each_image_is_one_of_its_moves() -> None:
    found = crop_flip(IMAGES, generator())
    assert (found.shape, found.dtype) == (IMAGES.shape, IMAGES.dtype)
    padded = F.pad(IMAGES, (BORDER,) * 4)
    counts = torch.zeros(2 * BORDER + 1, 2 * BORDER + 1, 2, dtype=torch.int64)
    for down in range(2 * BORDER + 1):
        for right in range(2 * BORDER + 1):
            part = padded[:, :, down : down + 6, right : right + 5]
            for mirrored, each in enumerate((part, part.flip(-1))):
                counts[down, right, mirrored] = (found == each).flatten(1).all(1).sum()
    assert counts.sum() >= 600  # an image may equal two of its moves where little of it is left
    assert 250 < counts[..., 1].sum() < 350  # of 600 tosses: 4 standard deviations
    for axis in (0, 1):
        along = counts.sum((1 - axis, 2))
        assert along.min() > 30  # of 600 over 9 places, 67 each: 4.7 standard deviations


def test_training_batches_alone_are_augmented() -> None:
    plain = data.load("digits")
    assert isinstance(plain, data.Dataset)
    task = Classification(replace(plain, augment="crop_flip"))
    indices = torch.arange(40)
    first = task.training_batch(indices, generator(1)).inputs[0]
    assert torch.equal(first, task.training_batch(indices, generator(1)).inputs[0])
    assert not torch.equal(first, task.training_batch(indices, generator(2)).inputs[0])
    assert torch.equal(task.batch(indices).inputs[0], plain.batch(indices)[0])
    same = Classification(plain).training_batch(indices, generator(1))
    assert torch.equal(same.inputs[0], plain.batch(indices)[0])


def test_what_cannot_be_augmented_is_refused() -> None:
    digits = data.load_images("digits")
    with pytest.raises(UsageError, match="unknown augment 'flip'; choose None or crop_flip"):
        replace(digits, augment="flip")
    with pytest.raises(UsageError, match="is for images; leave it at None"):
        replace(digits, augment="crop_flip", train_images=digits.train_images.flatten(2).mT)
