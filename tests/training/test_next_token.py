"""A language model on layers that sketch: trained, interrupted, resumed."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training.recorded_graph import RecordedGraphs, no_loops
from training.test_resume import assert_same_end, rows_of

import rad
from rad.data import characters
from rad.memory import saved_bytes
from rad.planning.variants import build
from rad.results import RunFolder
from rad.sketches import DifferentSample, Identity, StochasticRounding
from rad.training import NextToken, NullLogger, Settings, TrainResult, train

SETTINGS = Settings(
    iterations=40,
    batch_size=8,
    optimizer="adam",
    learning_rate=0.02,
    bootstrap=True,
    evaluate_every=10,
    checkpoint_every=20,
)
# A letter follows from the one before it and the one before that.
TASK = NextToken(characters("turns", "abacabadabacabae" * 40, test_fraction=0.25), length=12)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Recurrent(nn.Module):
    """Scores (B, T, V) of the tokens that follow tokens (B, T)."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, 8)
        self.rnn = nn.RNN(8, 24, nonlinearity="relu", batch_first=True)
        self.output = nn.Linear(24, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.output(self.rnn(self.embedding(tokens))[0])
        return scores


def perceptron(vocabulary: int) -> nn.Module:
    return nn.Sequential(
        nn.Embedding(vocabulary, 8), nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, vocabulary)
    )


def network(kind: str, sketch: Any) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        build = Recurrent if kind == "recurrent" else perceptron
        model = build(TASK.text.vocabulary)
    return rad.convert(model, sketch, seed=0)


def run(path: Path, model: nn.Module, settings: Settings, **options: Any) -> TrainResult:
    folder = RunFolder(path)
    with folder.open("a: 1\n"):
        return train(model, TASK, settings, 5, folder, NullLogger(), **options)


kinds = pytest.mark.parametrize("kind", ["recurrent", "perceptron"])


@kinds
@pytest.mark.parametrize("sketch", [DifferentSample(0.3), StochasticRounding(4)])
def test_a_language_model_resumes_as_if_unbroken(kind: str, sketch: Any, tmp_path: Path) -> None:
    unbroken = run(tmp_path / "unbroken", network(kind, sketch), SETTINGS)
    limited, results = replace(SETTINGS, time_limit=1e-6), []
    while not results or not results[-1].finished:
        results.append(run(tmp_path / "broken", network(kind, sketch), limited))
    assert len(results) > 1
    assert results[-1].final == unbroken.final
    assert_same_end(tmp_path / "broken", tmp_path / "unbroken")
    assert "test_accuracy" not in rows_of(tmp_path / "unbroken")[0]


@pytest.mark.parametrize("sketch", [Identity(), DifferentSample(0.3)])
def test_a_recurrent_one_learns_more_than_the_letter_before_tells(
    sketch: Any, tmp_path: Path
) -> None:
    model = network("recurrent", sketch)
    result = run(tmp_path, model, replace(SETTINGS, iterations=300, evaluate_every=300))
    assert result.final["test_bits_per_token"] < 0.8 * bits_given_the_letter_before()


def bits_given_the_letter_before() -> float:
    """The least that a model without memory can have on this text."""
    tokens, size = TASK.text.train_tokens.long(), TASK.text.vocabulary
    counts = torch.bincount(tokens[:-1] * size + tokens[1:], minlength=size**2).view(size, size)
    shares = (counts / counts.sum(1, keepdim=True)).log2().nan_to_num(neginf=0.0)
    return -(counts * shares).sum().item() / (len(tokens) - 1)


def test_replays_end_as_eager_updates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_loops(monkeypatch)
    graphs, outcomes = RecordedGraphs(), []
    for name, options in (("eager", {}), ("replayed", {"cuda_graph": True})):
        model = network("perceptron", DifferentSample(0.3))
        settings = replace(SETTINGS, iterations=12, **options)  # type: ignore[arg-type]
        outcomes.append(run(tmp_path / name, model, settings, graphs=graphs))
    assert graphs.replays > 0
    assert outcomes[0].final == outcomes[1].final
    assert_same_end(tmp_path / "eager", tmp_path / "replayed")


@kinds
@pytest.mark.parametrize("variant", ["different_sample", "stochastic_rounding", "reduced_batch"])
def test_a_budget_is_spent_on_a_tasks_examples_and_loss(kind: str, variant: str) -> None:
    plain, (inputs, targets) = network(kind, Identity()), TASK.first(16)
    built = build(plain, inputs, TASK.loss_on(targets), variant, 0.4)
    (tokens,), following = TASK.first(built.batch_size)
    loss = TASK.loss_on(following)
    used = saved_bytes(lambda: loss(built.model(tokens.clone())))
    assert used == built.plan.memory.saved_bytes
    full = build(plain, inputs, TASK.loss_on(targets), "baseline", "full")
    assert used < full.plan.memory.saved_bytes
