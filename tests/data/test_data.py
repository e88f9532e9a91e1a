"""Data sets: contents, normalisation, damaged files, downloads."""

import gzip
import io
import pickle
import struct
import zipfile
from dataclasses import replace
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torchvision import datasets, transforms
from torchvision.datasets import cifar

from rad import data
from rad.data import files
from rad.data.sequences import permutation
from rad.errors import UsageError

Arrays = dict[str, Any]

TINY = files.Spec("mnist", "MNIST", 7, 5, (1, 28, 28), (0.1307,), (0.3081,))
FIRST_OF_49 = [46, 0, 19, 15, 43, 28, 14, 31]  # written into results: it may never change
TINY_CIFAR = replace(files.SPECS["cifar10"], train=10, test=4)


def arrays(spec: files.Spec = TINY) -> Arrays:
    generator = np.random.default_rng(3)

    def split(count: int) -> tuple[np.ndarray, np.ndarray]:
        images = generator.integers(0, 256, (count, *spec.shape), dtype=np.uint8)
        return images, generator.integers(0, spec.classes, count, dtype=np.uint8)

    train, test = split(spec.train), split(spec.test)
    names = ("train_images", "train_labels", "test_images", "test_labels")
    return dict(zip(names, (*train, *test), strict=True))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(files.SPECS, "mnist", TINY)
    monkeypatch.setitem(files.SPECS, "cifar10", TINY_CIFAR)


DAMAGED = {"absent": None, "no archive": b"no archive", "too short": gzip.compress(b"1,2,3\n")}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED.keys())
def test_damaged_digits_are_refused(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "datasets/data/digits.csv.gz"
    file.parent.mkdir(parents=True)
    if content is not None:
        file.write_bytes(content)
    spec = ModuleSpec("sklearn", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr("rad.data.loading.find_spec", lambda name: spec)
    with pytest.raises(UsageError, match="cannot read the digits of scikit-learn"):
        data.load("digits")


def test_digits_are_split_and_scaled() -> None:
    digits = data.load("digits")
    assert digits.train_images.shape == (1437, 1, 8, 8)
    assert digits.test_images.shape == (360, 1, 8, 8)
    assert digits.train_images.dtype == digits.test_labels.dtype == torch.uint8
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 255
    assert digits.train_labels[:10].tolist() == list(range(10))
    assert torch.bincount(digits.test_labels.long()).min() > 25
    images, labels = digits.batch(torch.arange(1437))
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    assert abs(images.mean().item()) < 1e-5
    assert abs(images.std(correction=0).item() - 1) < 1e-5
    assert digits.image_shape == (1, 8, 8)


@pytest.mark.usefixtures("tiny")
def test_batch_normalises_as_torchvision_does(tmp_path: Path) -> None:
    there = arrays(TINY_CIFAR)
    np.savez(tmp_path / "cifar10.npz", **there)
    dataset = data.load("cifar10", tmp_path)
    indices = torch.tensor([3, 0, 3])
    images, labels = dataset.batch(indices, "test")
    transform = transforms.Compose(
        [transforms.ToTensor(), transforms.Normalize(dataset.mean, dataset.std)]
    )
    expected = [transform(there["test_images"][i].transpose(1, 2, 0)) for i in indices]
    assert torch.equal(images, torch.stack(expected))
    assert labels.tolist() == there["test_labels"][indices.numpy()].tolist()
    with pytest.raises(UsageError, match="split"):
        dataset.batch(indices, "valid")


@pytest.mark.usefixtures("tiny")
def test_root_comes_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())
    monkeypatch.setenv("RAD_DATA", str(tmp_path))
    assert len(data.load("mnist").train_labels) == 7


def test_unknown_name() -> None:
    with pytest.raises(UsageError, match="digits, mnist, cifar10"):
        data.load("imagenet")


def _without(key: str) -> Arrays:
    return {name: array for name, array in arrays().items() if name != key}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_without("test_images"), "test_images is missing"),
        (arrays() | {"train_images": arrays()["train_images"][:-1]}, r"\(6, 1, 28, 28\), expected"),
        (arrays() | {"test_images": arrays()["test_images"][:, 0]}, r"\(5, 28, 28\), expected"),
        (arrays() | {"train_images": arrays()["train_images"] / 255}, "float64, expected uint8"),
        (arrays() | {"test_labels": np.full(5, 10, np.uint8)}, "label 10, expected 0 to 9"),
        ({"train_images": np.array([None])}, "readable"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_wrong_contents(tmp_path: Path, content: Arrays, words: str) -> None:
    file = tmp_path / "mnist.npz"
    np.savez(file, **content)
    before = file.read_bytes()
    with pytest.raises(UsageError, match=words) as raised:
        data.load("mnist", tmp_path)
    message = str(raised.value)
    assert str(file) in message
    assert "delete" in message
    assert "\n" not in message
    assert file.read_bytes() == before


@pytest.mark.parametrize("kept", [0, 10, 400, 4000, -1])
@pytest.mark.usefixtures("tiny")
def test_truncated_file(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "mnist.npz"
    np.savez(file, **arrays())
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(UsageError, match=r"mnist\.npz is not a readable"):
        data.load("mnist", tmp_path)


@pytest.mark.usefixtures("tiny")
def test_damaged_bytes_and_other_kinds_of_file(tmp_path: Path) -> None:
    file = tmp_path / "mnist.npz"
    np.savez(file, **arrays())
    content = bytearray(file.read_bytes())
    content[2000] ^= 0xFF
    file.write_bytes(content)
    with pytest.raises(UsageError, match="readable"):
        data.load("mnist", tmp_path)
    with file.open("wb") as stream:
        np.save(stream, np.zeros(3))
    with pytest.raises(UsageError, match="readable"):
        data.load("mnist", tmp_path)
    file.unlink()
    file.mkdir()
    with pytest.raises(UsageError, match="readable"):
        data.load("mnist", tmp_path)


def _write_idx(folder: Path, there: Arrays) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, prefix in (("train", "train"), ("test", "t10k")):
        for kind, name in (("images", "images-idx3"), ("labels", "labels-idx1")):
            array = (
                there[f"{split}_{kind}"].squeeze(1)
                if kind == "images"
                else there[f"{split}_{kind}"]
            )
            header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
            (folder / f"{prefix}-{name}-ubyte").write_bytes(header + array.tobytes())


def test_a_header_of_terabytes(tmp_path: Path) -> None:
    file = tmp_path / "mnist.npz"
    header = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (4 * 10**12,)}
    np.lib.format.write_array_header_1_0(header, shape)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("train_images.npy", header.getvalue())
    with pytest.raises(UsageError, match=r"mnist.npz is not a readable .npz archive") as refusal:
        data.load("mnist", tmp_path)
    assert "\n" not in str(refusal.value)


def test_what_a_model_has_to_know_needs_no_file() -> None:
    known = data.model_arguments
    assert known("digits") == data.load("digits").model_arguments
    assert known("cifar10") == {"input_shape": (3, 32, 32), "classes": 10}
    assert known("sequential_mnist", downsample=4) == {"input_shape": (49, 1), "classes": 10}
    text = data.load("python_sources", characters=5000, context=16)
    assert known("python_sources", context=16) == text.model_arguments
    with pytest.raises(UsageError, match="unknown data set"):
        known("imagenet")


@pytest.mark.usefixtures("tiny")
def test_mnist_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = arrays()
    monkeypatch.setattr(
        datasets.MNIST, "download", lambda self: _write_idx(Path(self.raw_folder), there)
    )
    root = tmp_path / "new" / "root"
    dataset = data.load("mnist", root)
    assert np.array_equal(dataset.train_images.numpy(), there["train_images"])
    assert np.array_equal(dataset.test_labels.numpy(), there["test_labels"])
    assert [file.name for file in root.iterdir()] == ["mnist.npz"]

    monkeypatch.setattr(datasets.MNIST, "download", None)
    again = data.load("mnist", root)
    assert torch.equal(again.test_images, dataset.test_images)


@pytest.mark.usefixtures("tiny")
def test_cifar_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = arrays(TINY_CIFAR)

    def write(self: datasets.CIFAR10) -> None:
        folder = Path(self.root) / self.base_folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list("0123456789")}))
        for number in range(5):
            part = slice(2 * number, 2 * number + 2)
            content = {
                "data": there["train_images"][part].reshape(2, -1),
                "labels": there["train_labels"][part].tolist(),
            }
            (folder / f"data_batch_{number + 1}").write_bytes(pickle.dumps(content))
        content = {
            "data": there["test_images"].reshape(4, -1),
            "labels": there["test_labels"].tolist(),
        }
        (folder / "test_batch").write_bytes(pickle.dumps(content))

    monkeypatch.setattr(datasets.CIFAR10, "download", write)
    monkeypatch.setattr(cifar, "check_integrity", lambda path, md5=None: True)
    dataset = data.load("cifar10", tmp_path)
    assert np.array_equal(dataset.train_images.numpy(), there["train_images"])
    assert np.array_equal(dataset.train_labels.numpy(), there["train_labels"])
    assert np.array_equal(dataset.test_images.numpy(), there["test_images"])


def _no_network(self: datasets.MNIST) -> None:
    raise URLError("no route to host")


def _truncated(self: datasets.MNIST) -> None:
    there = arrays()
    _write_idx(Path(self.raw_folder), there | {"train_labels": there["train_labels"][:3]})


@pytest.mark.parametrize(
    ("download", "words"), [(_no_network, "no route to host"), (_truncated, r"\(3,\), expected")]
)
@pytest.mark.usefixtures("tiny")
def test_failed_download_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, download: object, words: str
) -> None:
    monkeypatch.setattr(datasets.MNIST, "download", download)
    with pytest.raises(UsageError, match=words) as raised:
        data.load("mnist", tmp_path)
    for part in (str(tmp_path / "mnist.npz"), "network", "RAD_DATA"):
        assert part in str(raised.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("tiny")
def test_root_that_is_a_file(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.write_text("mine")
    with pytest.raises(UsageError, match="RAD_DATA"):
        data.load("mnist", root)
    assert root.read_text() == "mine"


def test_the_full_sets_where_they_are_present() -> None:
    root = Path(__file__).parents[2] / "data"
    if not (root / "mnist.npz").exists():
        pytest.skip("data/mnist.npz is not here")
    mnist = data.load("mnist", root)
    images, _ = mnist.batch(torch.arange(60_000))
    assert abs(images.mean().item()) < 1e-3
    assert abs(images.std().item() - 1) < 1e-3


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("downsample", [1, 2, 4])
def test_sequential_mnist_reads_pixels_in_order(tmp_path: Path, downsample: int) -> None:
    there = arrays()
    np.savez(tmp_path / "mnist.npz", **there)
    dataset = data.load("sequential_mnist", tmp_path, downsample=downsample)
    steps = 784 // downsample**2
    assert dataset.image_shape == (steps, 1)
    assert dataset.train_images.dtype == (torch.uint8 if downsample == 1 else torch.int16)
    indices = torch.tensor([3, 0, 3])
    x, labels = dataset.batch(indices, "test")
    images = torch.from_numpy(there["test_images"]).double()[indices] / 255
    pooled = torch.nn.functional.avg_pool2d((images - 0.1307) / 0.3081, downsample)
    torch.testing.assert_close(x.double(), pooled.flatten(1)[:, :, None], rtol=0, atol=1e-6)
    assert labels.tolist() == there["test_labels"][indices.numpy()].tolist()


@pytest.mark.usefixtures("tiny")
def test_one_permutation_for_all_examples(tmp_path: Path) -> None:
    np.savez(tmp_path / "mnist.npz", **arrays())
    plain, shuffled = (
        data.load("sequential_mnist", tmp_path, downsample=4, permuted=permuted)
        for permuted in (False, True)
    )
    order = permutation(49)
    assert order.tolist() != list(range(49)) == sorted(order.tolist())
    assert order[:8].tolist() == FIRST_OF_49
    assert torch.equal(shuffled.train_images, plain.train_images[:, order])
    assert torch.equal(shuffled.test_images, plain.test_images[:, order])
    assert torch.equal(shuffled.train_labels, plain.train_labels)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("sequential_mnist", {"downsample": 3}, "downsample is 3; choose one of 1, 2, 4"),
        ("sequential_mnist", {"downsample": True}, "downsample is True"),
        ("sequential_mnist", {"permuted": 1}, "permuted is 1; set it to true or false"),
        ("sequential_mnist", {"stride": 2}, "'stride'.*choose one of downsample, permuted"),
        ("mnist", {"downsample": 2}, "'downsample'.*'mnist'; it takes none"),
        ("digits", {"permuted": True}, "'permuted'.*'digits'; it takes none"),
    ],
)
def test_bad_options_are_refused_before_the_file_is_read(
    tmp_path: Path, name: str, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        data.load(name, tmp_path / "nowhere", **options)
    assert not list(tmp_path.iterdir())
