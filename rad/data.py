"""Whole data sets as tensors on the training device.

The sets are small enough to stay in device memory as uint8, so there is no DataLoader: a batch
is an index and a normalisation. `<root>/<name>.npz` is read where it exists; otherwise
torchvision downloads the set and that file is written. `digits` comes with scikit-learn and
needs no file; `sequential_mnist` is `mnist` read pixel by pixel (`rad.sequences`).
"""

import http.client
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rad import sequences
from rad.errors import UsageError, first_line

NAMES = ("digits", "mnist", "cifar10", "sequential_mnist")
DIGITS_TEST = 360

# What numpy and zipfile raise on damaged archives and on files of another kind.
UNREADABLE = (
    OSError,
    EOFError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Spec:
    """What a downloadable set must look like.

    `shape` is (C, H, W); `source` is the class in `torchvision.datasets`; `mean` and `std` are
    per channel, for pixels in [0, 1].
    """

    name: str
    source: str
    train: int
    test: int
    shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: int = 10


SPECS = {
    "mnist": Spec("mnist", "MNIST", 60_000, 10_000, (1, 28, 28), (0.1307,), (0.3081,)),
    "cifar10": Spec(
        "cifar10",
        "CIFAR10",
        50_000,
        10_000,
        (3, 32, 32),
        (0.4914, 0.4822, 0.4465),
        (0.2023, 0.1994, 0.2010),
    ),
}


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

    def batch(self, indices: Tensor, split: str = "train") -> tuple[Tensor, Tensor]:
        """Normalised float32 images (B, *image_shape) and int64 labels (B,) of `split`.

        The dataset keeps no reference to what it returns.
        """
        if split not in ("train", "test"):
            raise UsageError(f"unknown split {split!r}; choose 'train' or 'test'")
        train = split == "train"
        pixels = (self.train_images if train else self.test_images)[indices]
        labels = (self.train_labels if train else self.test_labels)[indices]
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
    `rad.sequences.pixel_sequences`; the others take none.

    Raises:
        UsageError: unknown name, what `check_options` refuses, failed download, or a file that is
            not what its name promises.
    """
    if name not in NAMES:
        raise UsageError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")
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


def read(file: Path, spec: Spec) -> dict[str, np.ndarray]:
    """The four arrays of an .npz file, checked against `spec`.

    Raises:
        UsageError: the file is unreadable, truncated or holds something else.
    """
    remedy = f"delete {file} to have it downloaded again, or put a good copy there"
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except UNREADABLE as error:
        cause = f"{type(error).__name__}: {first_line(error)}"
        raise UsageError(f"{file} is not a readable .npz archive ({cause}); {remedy}") from error
    problem = _problem(arrays, spec)
    if problem:
        raise UsageError(f"{file}: {problem}; {remedy}")
    return {key: arrays[key] for key in _shapes(spec)}


def download(file: Path, spec: Spec) -> dict[str, np.ndarray]:
    """Fetch a set through torchvision and write it to `file`, whole or not at all.

    Raises:
        UsageError: no network, a folder that cannot be written, or an unexpected download.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=file.parent, prefix=f".{spec.name}-") as temporary:
            arrays = _fetch(Path(temporary), spec)
            problem = _problem(arrays, spec)
            if problem:
                raise RuntimeError(problem)
            whole = Path(temporary) / file.name
            with whole.open("wb") as stream:
                np.savez_compressed(stream, allow_pickle=False, **arrays)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(whole, file)
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise UsageError(
            f"{file} is missing and could not be downloaded ({first_line(error)}); "
            f"connect to the network and run again, or put {file.name} there, "
            "or set RAD_DATA to the folder that holds it"
        ) from error
    return arrays


def _fetch(folder: Path, spec: Spec) -> dict[str, np.ndarray]:
    """The set as torchvision gives it, brought to (N, C, H, W) uint8."""
    from torchvision import datasets

    arrays = {}
    for split in ("train", "test"):
        source = getattr(datasets, spec.source)(folder, train=split == "train", download=True)
        pixels = np.asarray(source.data)
        channels_first = pixels[:, None] if pixels.ndim == 3 else pixels.transpose(0, 3, 1, 2)
        arrays[f"{split}_images"] = np.ascontiguousarray(channels_first)
        arrays[f"{split}_labels"] = np.asarray(source.targets, dtype=np.uint8)
    return arrays


def _shapes(spec: Spec) -> dict[str, tuple[int, ...]]:
    return {
        "train_images": (spec.train, *spec.shape),
        "train_labels": (spec.train,),
        "test_images": (spec.test, *spec.shape),
        "test_labels": (spec.test,),
    }


def _problem(arrays: Mapping[str, np.ndarray], spec: Spec) -> str | None:
    """What is wrong with the arrays, in words; None where they are as `spec` says."""
    for key, shape in _shapes(spec).items():
        if key not in arrays:
            return f"the array {key} is missing"
        array = arrays[key]
        if array.dtype != np.uint8:
            return f"{key} has type {array.dtype}, expected uint8"
        if array.shape != shape:
            return f"{key} has shape {array.shape}, expected {shape}"
        if key.endswith("labels") and array.max() >= spec.classes:
            return f"{key} holds the label {array.max()}, expected 0 to {spec.classes - 1}"
    return None


def _digits(device: torch.device | str) -> Dataset:
    """scikit-learn's digits: 8 x 8 images with pixels 0..16, spread over 0..255.

    The last 360 images are the test set and the 1,437 before them the training set. scikit-learn
    keeps the images in the order in which they were collected, so this is one fixed split
    without a random generator.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(np.rint(bunch.images * (255 / 16)).astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.uint8))
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
