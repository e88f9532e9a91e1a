"""Data sets by name.

`<root>/<name>.npz` is read where it exists; otherwise torchvision downloads the set and that file
is written. `digits` comes with scikit-learn and needs no file; `sequential_mnist` is `mnist` read
pixel by pixel (`rad.data.sequences`); `python_sources` is a text (`rad.data.sources`).
"""

import os
import zlib
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rad.data import sequences
from rad.data.augmentation import AUGMENTATIONS
from rad.data.dataset import Dataset
from rad.data.files import SPECS, download, read
from rad.data.sources import CHARACTERS, python_sources
from rad.data.text import Text, characters
from rad.errors import UsageError, first_line

TEXT = "python_sources"
NAMES = ("digits", "mnist", "cifar10", "sequential_mnist", TEXT)
DIGITS_TEST = 360
DIGITS_SHAPE = (1797, 65)
"""Of scikit-learn's table: a row for each image, its pixels and its label."""

CONTEXT = 128
LENGTH = 1_000_000


def load(
    name: str,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Dataset | Text:
    """The data set `name` (one of `NAMES`) on `device`.

    `root` is the folder of the .npz files; None means $RAD_DATA, or `data` where that is unset.
    A missing file is downloaded and written there. `sequential_mnist` takes the options of
    `rad.data.sequences.pixel_sequences`; `cifar10` takes `augment`, None or one of
    `rad.data.augmentation.AUGMENTATIONS`; `python_sources` takes `context`, the tokens of a block,
    and `characters`, of how many the text consists; the others take none.

    Raises:
        UsageError: unknown name, what `check_options` refuses, failed download, or a file that is
            not what its name promises.
    """
    check_name(name)
    check_options(name, options)
    if name == "digits":
        return _digits(device)
    if name == TEXT:
        text = python_sources(options.get("characters", LENGTH))
        context = options.get("context", CONTEXT)
        return characters(name, text, device=device, alphabet=CHARACTERS, context=context)
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
        name,
        **on_device,
        mean=spec.mean,
        std=spec.std,
        classes=spec.classes,
        white=white,
        augment=options.get("augment"),
    )


def load_images(
    name: str,
    root: str | Path | None = None,
    device: torch.device | str = "cpu",
    **options: Any,
) -> Dataset:
    """`load`, for what works with labelled images alone.

    Raises:
        UsageError: as `load`, and for a text.
    """
    if name == TEXT:
        others = ", ".join(each for each in NAMES if each != TEXT)
        raise UsageError(f"dataset={name} is a text, and labelled images are needed: use {others}")
    found = load(name, root, device, **options)
    assert isinstance(found, Dataset)
    return found


def model_arguments(name: str, **options: Any) -> dict[str, Any]:
    """What a model has to know of the set (`rad.models.build`), without touching its file.

    Arguments and errors are those of `load`.
    """
    check_name(name)
    check_options(name, options)
    if name == TEXT:
        return {"vocabulary": len(CHARACTERS), "context": options.get("context", CONTEXT)}
    if name == "digits":
        return {"input_shape": (1, 8, 8), "classes": 10}
    spec = SPECS[name.removeprefix("sequential_")]
    shape: tuple[int, ...] = spec.shape
    if name == "sequential_mnist":
        shape = (shape[1] * shape[2] // options.get("downsample", 1) ** 2, 1)
    return {"input_shape": shape, "classes": spec.classes}


def check_name(name: str) -> None:
    """Raises UsageError for what is no data set."""
    if name not in NAMES:
        raise UsageError(f"unknown data set {name!r}; choose one of {', '.join(NAMES)}")


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse options that the data set `name` cannot use, without touching its file.

    Raises:
        UsageError: an option that it does not have, or a value that cannot be used.
    """
    takes = {
        "cifar10": ("augment",),
        "sequential_mnist": ("downsample", "permuted"),
        TEXT: ("context", "characters"),
    }
    known = takes.get(name, ())
    for option in options:
        if option not in known:
            remedy = f"choose one of {', '.join(known)}" if known else "it takes none"
            raise UsageError(f"unknown option {option!r} of the data set {name!r}; {remedy}")
    if name == "sequential_mnist":
        sequences.check_options(**options)
    if options.get("augment") not in (None, *AUGMENTATIONS):
        choices = ", ".join(AUGMENTATIONS)
        raise UsageError(f"unknown augment {options['augment']!r}; choose null or {choices}")
    if name == TEXT:
        for option, value in options.items():
            if type(value) is not int or value < 1:
                raise UsageError(f"{option} is {value!r}; give a whole number of at least 1")


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
            f"cannot read the digits of scikit-learn, {file} ({first_line(error)}): reinstall it"
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
