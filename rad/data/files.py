"""The files of data sets: read, checked, downloaded through torchvision, written whole."""

import http.client
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rad.errors import UsageError, first_line

# What numpy and zipfile raise on damaged archives and on files of another kind.
UNREADABLE = (
    OSError,
    EOFError,
    MemoryError,
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
