"""What each task promises the loop, and that the loop takes nothing else for granted."""

import ast
import csv
import inspect
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.data import Text, characters, load
from rad.errors import UsageError
from rad.results import RunFolder
from rad.training import (
    Batch,
    Classification,
    NextToken,
    NullLogger,
    Settings,
    Task,
    TrainResult,
    loop,
    session,
    train,
)
from rad.training.task import SPLITS, evaluate, task_of

WORDS = "the quick brown fox jumps over the lazy dog; "


def text_task() -> NextToken:
    return NextToken(characters("pangram", WORDS * 8, test_fraction=0.25), length=7)


def digits_task() -> Classification:
    return Classification(load("digits"))


def digits_model() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 9), nn.Dropout(0.5), nn.Linear(9, 10))


def text_model() -> nn.Module:
    size = text_task().text.vocabulary
    return nn.Sequential(nn.Embedding(size, 6), nn.Dropout(0.5), nn.Linear(6, size))


tasks = pytest.mark.parametrize(
    ("task", "model"), [(digits_task, digits_model), (text_task, text_model)]
)


@tasks
@pytest.mark.parametrize("split", SPLITS)
def test_an_evaluation_is_the_loss_of_all_examples_at_once(
    task: Any, model: Any, split: str
) -> None:
    torch.manual_seed(0)
    task, model = task(), model()
    count = task.size(split)
    inputs, targets = task.batch(torch.arange(count), split)
    assert len(targets) == count
    model.eval()
    with torch.no_grad():
        expected = task.loss(model(*inputs), targets).item()
    model.train()
    for size in (count, 10):
        found = evaluate(model, task, split, size)
        assert tuple(found.metrics) == task.metrics
        assert found.metrics["loss"] == pytest.approx(expected, rel=1e-5)
        assert found.weighted_loss is None
    assert all(module.training for module in model.modules())


@tasks
def test_weights_count_examples_as_often_as_they_say(task: Any, model: Any) -> None:
    torch.manual_seed(0)
    task, model = task(), model().eval()
    chosen = torch.tensor([3, 0, 3, 5, 3])
    weights = torch.bincount(chosen, minlength=task.size())
    inputs, targets = task.batch(chosen)
    with torch.no_grad():
        expected = task.loss(model(*inputs), targets).item()
    found = evaluate(model, task, "train", 4, weights)
    assert found.weighted_loss == pytest.approx(expected, rel=1e-5)
    assert found.metrics["loss"] == evaluate(model, task, "train", 4).metrics["loss"]


@tasks
def test_the_first_examples_and_a_loss_for_fewer_of_them(task: Any, model: Any) -> None:
    torch.manual_seed(0)
    task, model = task(), model().eval()
    count = task.size()
    inputs, targets = task.first(count + 2)
    wrapped = torch.tensor([*range(count), 0, 1])
    assert all(map(torch.equal, inputs, task.batch(wrapped).inputs))
    loss = task.loss_on(targets)
    output = model(*(x[:3] for x in inputs))
    assert torch.equal(loss(output), task.loss(output, targets[:3]))


def test_next_token_scores_by_hand() -> None:
    task = NextToken(Text("tiny", torch.tensor([0, 2, 1, 0, 1]), torch.tensor([1, 0, 2]), 3), 2)
    assert (task.size(), task.size("test")) == (2, 1)
    (tokens,), following = task.batch(torch.tensor([0, 1]))
    assert tokens.tolist() == [[0, 2], [1, 0]]
    assert following.tolist() == [[2, 1], [0, 1]]
    scores = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    losses = -scores.log_softmax(-1)
    by_hand = [(losses[b, 0, i] + losses[b, 1, j]) / 2 for b, (i, j) in enumerate([(2, 1), (0, 1)])]
    expected = torch.stack(by_hand)
    torch.testing.assert_close(task.scores(scores, following)[0].float(), expected)
    torch.testing.assert_close(task.loss(scores, following), expected.mean())
    assert task.summarise([math.log(2)]) == (math.log(2), 1.0)


def test_a_uniform_guess_costs_the_logarithm_of_the_vocabulary() -> None:
    task = text_task()

    class Uniform(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return torch.zeros(*tokens.shape, task.text.vocabulary)

    metrics = evaluate(Uniform(), task, "test", 3).metrics
    assert metrics["loss"] == pytest.approx(math.log(task.text.vocabulary), rel=1e-6)
    assert metrics["bits_per_token"] == pytest.approx(math.log2(task.text.vocabulary), rel=1e-6)


@pytest.mark.parametrize("length", [0, 2.5, True, 90, 1000])
def test_a_length_without_a_block_is_refused(length: Any) -> None:
    with pytest.raises(UsageError, match=r"whole number|choose a shorter length"):
        NextToken(characters("pangram", WORDS * 8, 0.25), length)


class Line(Task):
    """y = 2 x, from x alone: no text, no image, two inputs, one metric."""

    metrics = ("loss",)
    device = torch.device("cpu")

    def size(self, split: str = "train") -> int:
        return 12 if split == "train" else 5

    def batch(self, indices: Tensor, split: str = "train") -> Batch:
        x = indices.double() / 7
        return Batch((x, x.square()), 2 * x)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        return F.mse_loss(output, targets)

    def scores(self, output: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        return ((output - targets).square(),)


class Polynomial(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.zeros(2, dtype=torch.float64))

    def forward(self, x: Tensor, square: Tensor) -> Tensor:
        return self.weights[0] * x + self.weights[1] * square


def go(path: Path, model: nn.Module, task: Any, **changes: Any) -> TrainResult:
    values: dict[str, Any] = {"iterations": 40, "batch_size": 6, "evaluate_every": 20}
    settings = Settings(**(values | {"optimizer": "adam", "learning_rate": 0.1} | changes))
    folder = RunFolder(path)
    with folder.open("a: 1\n"):
        return train(model, task, settings, 3, folder, NullLogger())


def columns(path: Path) -> list[str]:
    with (path / "metrics.csv").open() as stream:
        return next(csv.reader(stream))


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    model = Polynomial()
    result = go(tmp_path, model, Line(), iterations=200, learning_rate=0.2)
    assert columns(tmp_path)[3:] == ["batch_loss", "train_loss", "test_loss"]
    assert result.final.keys() == {"train_loss", "test_loss"}
    assert result.final["test_loss"] < 1e-2


def test_columns_are_the_tasks_own(tmp_path: Path) -> None:
    result = go(tmp_path, text_model(), text_task(), iterations=2, bootstrap=True)
    evaluated = [
        *("train_loss", "train_bits_per_token", "test_loss", "test_bits_per_token"),
        "bootstrap_loss",
    ]
    always = ["iteration", "seconds", "learning_rate", "batch_loss"]
    assert columns(tmp_path) == [*always, *evaluated]
    assert list(result.final) == evaluated


def test_a_data_set_stands_for_its_classes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    first, second = digits_model(), digits_model()
    second.load_state_dict(first.state_dict())
    for path, model, task in (("a", first, load("digits")), ("b", second, digits_task())):
        torch.manual_seed(1)
        go(tmp_path / path, model, task, iterations=3)
    assert all(map(torch.equal, first.parameters(), second.parameters()))
    own = text_task()
    assert task_of(own) is own


@pytest.mark.parametrize("module", [loop, session])
def test_the_loop_knows_nothing_of_images(module: Any) -> None:
    words = r"\b(?:image|label|pixel|accuracy|cross_entropy|class(?!\b)|logit)\w*"
    assert re.findall(words, inspect.getsource(module), re.IGNORECASE) == []


def test_training_knows_no_layer_and_no_sketch() -> None:
    for file in Path(inspect.getfile(loop)).parent.glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [name for name in names if name.startswith(("rad.nn", "rad.sketches"))], file
