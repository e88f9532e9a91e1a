"""Whole data sets as tensors on the training device.

The sets are small enough to stay in device memory as uint8, so there is no DataLoader: a batch
is an index and a normalisation. `<root>/<name>.npz` is read where it exists; otherwise
torchvision downloads the set and that file is written. `digits` comes with scikit-learn and
needs no file; `sequential_mnist` is `mnist` read pixel by pixel (`rad.data.sequences`).
"""

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rad.data import sequences
from rad.data.digests import digest_of
from rad.data.files import SPECS, download, read
from rad.errors import UsageError, first_line

NAMES = ("digits", "mnist", "cifar10", "sequential_mnist")
DIGITS_TEST = 360
DIGITS_SHAPE = (1797, 65)
"""Of scikit-learn's table: a row for each image, its pixels and its label."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images (N, C, H, W) and labels (N,), both uint8 and on one device.

    Sequences are images (N, T, 1), in int16 where uint8 would round. `white` is the integer that
    stands for a pixel of 1.
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

    def batch(self, indices: Tensor, split: str = "train") -> tuple[Tensor, Tensor]:
        """Normalised float32 images (B, *image_shape) and int64 labels (B,) of `split`.

        The dataset keeps no reference to what it returns.
        """
        if split not in ("train", "test"):
            raise UsageError(f"unknown split {split!r}; choose 'train' or 'test'")
        train = split == "train"
        # index_select copies whole images, where an index would go from byte to byte.
        pixels = (self.train_images if train else self.test_images).index_select(0, indices)
        labels = (self.train_labels if train else self.test_labels).index_select(0, indices)
        mean, std = self._statistics
        return pixels.float().div_(self.white).sub_(mean).div_(std), labels.long()

    @cached_property
    def _statistics(self) -> tuple[Tensor, Tensor]:
        device = self.train_images.device
        mean, std = (torch.tensor(v, device=device).view(-1, 1, 1) for v in (self.mean, self.std))
        return mean, std


def load(
    name: str,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Dataset:
    """The data set `name` (one of `NAMES`) on `device`.

    `root` is the folder of the .npz files; None means $RAD_DATA, or `data` where that is unset.
    A missing file is downloaded and written there. `sequential_mnist` takes the options of
    `rad.data.sequences.pixel_sequences`; the others take none.

    Raises:
        UsageError: unknown name, what `check_options` refuses, failed download, or a file that is
            not what its name promises.
    """
    check_name(name)
    check_options(name, options)
    if name == "digits":
        return _digits(device)
    folder = Path(root if root is not None else os.environ.get("RAD_DATA") or "data")
    spec = SPECS[name.removeprefix("sequential_")]
    file = folder / f"{spec.name}.npz"
    arrays = read(file, spec) if file.exists() else download(file, spec)
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    white = sequences.WHITE
    if name == "sequential_mnist":
        for key in ("train_images", "test_images"):
            tensors[key], white = sequences.pixel_sequences(tensors[key], **options)
    on_device = {key: tensor.to(device) for key, tensor in tensors.items()}
    return Dataset(
        name, **on_device, mean=spec.mean, std=spec.std, classes=spec.classes, white=white
    )


def shape_of(name: str, **options: Any) -> tuple[tuple[int, ...], int]:
    """The shape of an example and the number of classes, without touching the set's file.

    Arguments and errors are those of `load`.
    """
    check_name(name)
    check_options(name, options)
    if name == "digits":
        return (1, 8, 8), 10
    spec = SPECS[name.removeprefix("sequential_")]
    if name == "sequential_mnist":
        return (spec.shape[1] * spec.shape[2] // options.get("downsample", 1) ** 2, 1), spec.classes
    return spec.shape, spec.classes


def check_name(name: str) -> None:
    """Raises UsageError for what is no data set."""
    if name not in NAMES:
        raise UsageError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the data set `name` cannot use, without touching its file.

    Raises:
        UsageError: an option that it does not have, or a value that cannot be used.
    """
    known = ("downsample", "permuted") if name == "sequential_mnist" else ()
    for option in options:
        if option not in known:
            remedy = f"choose one of {', '.join(known)}" if known else "it takes none"
            raise UsageError(f"unknown option {option!r} of the data set {name!r}; {remedy}")
    if known:
        sequences.check_options(**options)


def _digits(device: torch.device | str) -> Dataset:
    """scikit-learn's digits: 8 x 8 images with pixels 0..16, spread over 0..255.

    The last 360 images are the test set and the 1,437 before them the training set. scikit-learn
    keeps the images in the order in which they were collected, so this is one fixed split
    without a random generator. Its file is read without loading scikit-learn, which takes a second.
    """
    package = find_spec("sklearn")
    if package is None or package.origin is None:
        raise UsageError("dataset=digits comes with scikit-learn: pip install scikit-learn")
    file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        table = np.loadtxt(file, delimiter=",")
        if table.shape != DIGITS_SHAPE:
            raise ValueError(f"its table is {table.shape}, where {DIGITS_SHAPE} is expected")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UsageError(
            f"cannot read the digits of scikit-learn in {file} ({first_line(error)}); install it "
            "again"
        ) from error
    images = torch.from_numpy(np.rint(table[:, :-1] * (255 / 16)).astype(np.uint8))
    images = images.view(-1, 1, 8, 8)
    labels = torch.from_numpy(table[:, -1].astype(np.uint8))
    train = images[:-DIGITS_TEST].double().div(255)
    return Dataset(
        name="digits",
        train_images=images[:-DIGITS_TEST].to(device),
        train_labels=labels[:-DIGITS_TEST].to(device),
        test_images=images[-DIGITS_TEST:].to(device),
        test_labels=labels[-DIGITS_TEST:].to(device),
        mean=(train.mean().item(),),
        std=(train.std(correction=0).item(),),
        classes=10,
    )
