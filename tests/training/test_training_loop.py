"""The loop: references, data order, schedule, clipping, bootstrap, rows, failures."""

import csv
import math
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.data import Dataset, load
from rad.errors import UsageError
from rad.results import RunFolder
from rad.training import NullLogger, Settings, TrainResult, train
from rad.training.batches import Sampler


class Recorder:
    """Keeps the rows it is given."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def log(self, row: Any) -> None:
        self.rows.append(dict(row))

    def finish(self) -> None:
        pass


class Watched(Dataset):
    """Notes the indices and, by weak references, the memory of each training batch."""

    def __init__(self, inner: Dataset) -> None:
        self.__dict__.update(vars(inner))
        self.__dict__.update(drawn=[], memory=[])

    def batch(self, indices: Tensor, split: str = "train") -> tuple[Tensor, Tensor]:
        images, labels = super().batch(indices, split)
        if torch.is_grad_enabled():
            self.__dict__["drawn"].append(indices.tolist())
            # Tensors over an array's memory: the array lives as long as any tensor needs it.
            array = images.numpy().copy()
            self.__dict__["memory"].append(weakref.ref(array))
            images = torch.from_numpy(array)
        return images, labels


def settings(**changes: Any) -> Settings:
    values: dict[str, Any] = {
        "iterations": 6,
        "batch_size": 7,
        "optimizer": "sgd",
        "learning_rate": 0.05,
        "evaluate_every": 3,
    }
    return Settings(**(values | changes))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.Tanh(), nn.Linear(12, 10))


def go(
    path: Path,
    chosen: Settings,
    model: nn.Module | None = None,
    dataset: Dataset | None = None,
    seed: int = 1,
    logger: Any = None,
    on_backward: Callable[[int], None] | None = None,
) -> TrainResult:
    folder = RunFolder(path)
    with folder.open("a: 1\n"):
        return train(
            network() if model is None else model,
            load("digits") if dataset is None else dataset,
            chosen,
            seed,
            folder,
            NullLogger() if logger is None else logger,
            on_backward=on_backward,
        )


@pytest.mark.parametrize("frozen", [True, False])
def test_only_the_graph_holds_the_batch(tmp_path: Path, frozen: bool) -> None:
    dataset, model = Watched(load("digits")), network()
    model[1].requires_grad_(not frozen)
    outputs: list[Any] = []
    model.register_forward_hook(lambda _, args, output: outputs.append(weakref.ref(output)))
    alive = []

    def look(iteration: int) -> None:
        alive.append((vars(dataset)["memory"][-1]() is not None, outputs[-1]() is not None))

    go(tmp_path, settings(), model, dataset, on_backward=look)
    # A trainable first layer saves its input for its weight gradient; a frozen one does not.
    # Cross entropy saves the logarithms of probabilities, not the logits.
    assert alive == [(not frozen, False)] * 6


def test_data_order_depends_on_seed_and_batch_size_only(tmp_path: Path) -> None:
    def order(name: str, model: nn.Module, seed: int = 1, **changes: Any) -> list[list[int]]:
        dataset = Watched(load("digits"))
        go(tmp_path / name, settings(**changes), model, dataset, seed)
        drawn = vars(dataset)["drawn"]
        assert isinstance(drawn, list)
        return drawn

    first = order("a", network())
    torch.manual_seed(99)
    wide = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
    assert order("b", wide, optimizer="adam", learning_rate=1e-4, evaluate_every=1) == first
    assert order("c", network(), seed=2) != first
    assert len({index for batch in first for index in batch}) > 30


def test_training_leaves_the_global_generator_alone(tmp_path: Path) -> None:
    model = network()
    before = torch.get_rng_state()
    go(tmp_path, settings(bootstrap=True), model)
    assert torch.equal(torch.get_rng_state(), before)


def test_updates_equal_a_loop_by_hand(tmp_path: Path) -> None:
    chosen = settings(
        iterations=7, decay_factor=0.5, decay_every=2, clip_norm=0.3, weight_decay=0.1
    )
    trained, expected, dataset = network(), network(), load("digits")
    go(tmp_path, chosen, trained, dataset)

    sampler = Sampler(len(dataset.train_labels), 7, 1, torch.device("cpu"))
    clipped = 0
    for step in range(7):
        images, labels = dataset.batch(sampler.draw())
        expected.zero_grad()
        F.cross_entropy(expected(images), labels).backward()
        gradients = [p.grad for p in expected.parameters() if p.grad is not None]
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        clipped += norm > 0.3
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                update = gradient * min(1.0, 0.3 / norm) + 0.1 * parameter
                parameter.sub_(update, alpha=0.05 * 0.5 ** (step // 2))
    assert clipped == 7
    for one, other in zip(trained.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_rows(tmp_path: Path) -> None:
    recorder, model, dataset = Recorder(), network(), load("digits")
    chosen = settings(
        iterations=7,
        evaluate_every=2,
        train_loss_every=4,
        decay_factor=0.5,
        decay_every=2,
        evaluation_batch=100,
    )
    result = go(tmp_path, chosen, model, dataset, logger=recorder)
    with (tmp_path / "metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == [
        "iteration",
        "seconds",
        "learning_rate",
        "batch_loss",
        "train_loss",
        "train_accuracy",
        "test_loss",
        "test_accuracy",
    ]
    assert [int(row["iteration"]) for row in rows] == [0, 2, 4, 6, 7]
    assert [float(row["learning_rate"]) for row in rows] == [0.05, 0.05, 0.025, 0.0125, 0.00625]
    assert [row["train_loss"] != "" for row in rows] == [True, False, True, False, True]
    assert [row["batch_loss"] != "" for row in rows] == [False, True, True, True, True]
    assert all(row["test_loss"] for row in rows)
    assert [row["iteration"] for row in recorder.rows] == [0, 2, 4, 6, 7]

    assert model.training
    model.eval()
    for split, count in (("train", 1437), ("test", 360)):
        images, labels = dataset.batch(torch.arange(count), split)
        with torch.no_grad():
            outputs = model(images)
        loss = F.cross_entropy(outputs, labels).item()
        assert result.final[f"{split}_loss"] == pytest.approx(loss, rel=1e-6)
        right = (outputs.argmax(1) == labels).sum().item()
        assert result.final[f"{split}_accuracy"] == right / count
    assert result.final["test_loss"] == float(rows[-1]["test_loss"])
    assert result.final.keys() == {"train_loss", "train_accuracy", "test_loss", "test_accuracy"}
    assert (result.finished, result.iterations) == (True, 7)


def test_batch_loss_is_the_update_s_own(tmp_path: Path) -> None:
    recorder, model, dataset = Recorder(), network(), load("digits")
    sampler = Sampler(len(dataset.train_labels), 7, 1, torch.device("cpu"))
    images, labels = dataset.batch(sampler.draw())
    expected = F.cross_entropy(model(images), labels).item()
    go(tmp_path, settings(evaluate_every=1), model, dataset, logger=recorder)
    assert recorder.rows[1]["batch_loss"] == expected


def test_what_is_in_evaluation_mode_stays_so(tmp_path: Path) -> None:
    model = network()
    model.append(nn.BatchNorm1d(10))
    model[4].eval()
    go(tmp_path / "partly", settings(evaluate_every=1), model)
    assert [module.training for module in model] == [True] * 4 + [False]
    assert torch.equal(model.get_buffer("4.running_mean"), torch.zeros(10))
    go(tmp_path / "wholly", settings(evaluate_every=1), model.eval())
    assert all(module.training for module in model.modules())


def test_bootstrap(tmp_path: Path) -> None:
    dataset, model, recorder = Watched(load("digits")), network(), Recorder()
    result = go(tmp_path, settings(bootstrap=True), model, dataset, logger=recorder)
    sampler = Sampler(1437, 7, 1, torch.device("cpu"), bootstrap=True)
    assert sampler.sample is not None
    sample = sampler.sample
    # A bootstrap sample holds a fraction 1 - 1/e of the examples.
    assert abs(len(sample.unique()) / 1437 - (1 - math.exp(-1))) < 0.05
    assert {i for batch in vars(dataset)["drawn"] for i in batch} <= set(sample.tolist())
    other = Sampler(1437, 50, 1, torch.device("cpu"), bootstrap=True).sample
    assert other is not None
    assert torch.equal(other, sample)

    model.eval()
    with torch.no_grad():
        images, labels = load("digits").batch(sample)
        expected = F.cross_entropy(model(images), labels).item()
    assert result.final["bootstrap_loss"] == pytest.approx(expected, rel=1e-6)
    assert result.final["bootstrap_loss"] != result.final["train_loss"]
    assert recorder.rows[0]["bootstrap_loss"] is not None


class Explodes(nn.Module):
    """Infinite from the given call in training on."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * (math.inf if self.training and self.calls >= self.at else 1.0)


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    model = nn.Sequential(*network(), Explodes(at=14))
    chosen = settings(iterations=40, evaluate_every=5, checkpoint_every=5)
    with pytest.raises(UsageError, match="batch loss is nan at iteration 14; lower the learning"):
        go(tmp_path, chosen, model)
    with (tmp_path / "metrics.csv").open() as stream:
        assert [int(row["iteration"]) for row in csv.DictReader(stream)] == [0, 5, 10]
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["iteration"] == 10
    assert not RunFolder(tmp_path).finished()


def test_an_evaluation_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    model = network()
    nn.init.constant_(model[3].bias, math.nan)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="training loss is nan at iteration 0"):
        go(tmp_path, settings(), model)
    assert not (tmp_path / "metrics.csv").exists()


def test_training_learns(tmp_path: Path) -> None:
    chosen = settings(
        iterations=300, batch_size=50, optimizer="adam", learning_rate=0.01, evaluate_every=300
    )
    assert go(tmp_path, chosen).final["test_accuracy"] > 0.85


@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 0},
        {"iterations": 2e4},
        {"batch_size": True},
        {"optimizer": "lion"},
        {"learning_rate": 0.0},
        {"learning_rate": math.nan},
        {"learning_rate": "fast"},
        {"weight_decay": -0.1},
        {"decay_every": 0},
        {"decay_factor": math.inf},
        {"clip_norm": -1},
        {"train_loss_every": 0},
        {"time_limit": 0},
        {"bootstrap": 5},
        {"cuda_graph": "yes"},
    ],
)
def test_settings_that_cannot_be_used(changes: dict[str, Any]) -> None:
    (name,) = changes
    with pytest.raises(UsageError, match=f"{name} .*; (set|choose)"):
        settings(**changes)
