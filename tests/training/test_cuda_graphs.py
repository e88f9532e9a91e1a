"""Updates as replays end as eager ones do; where they cannot, training goes on and says why."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from training import tiny_run
from training.recorded_graph import RecordedGraphs, no_loops
from training.test_resume import assert_same_end, rows_of

import rad
from rad import data
from rad.errors import Diverged
from rad.results import RunFolder
from rad.sketches import (
    DifferentProject,
    DifferentSample,
    DitheredRounding,
    Identity,
    ImportanceSampling,
    Project,
    RotatedRounding,
    SameSample,
    SampledRounding,
    Sketch,
    StochasticRounding,
)
from rad.training import NullLogger, Settings, TrainResult, side_by_side, strides, train
from rad.training.cuda_graphs import WARM_UP

SETTINGS = Settings(
    iterations=9,
    batch_size=8,
    optimizer="adam",
    learning_rate=3e-3,
    weight_decay=1e-4,
    decay_factor=0.5,
    decay_every=4,
    evaluate_every=1,
    train_loss_every=9,
    checkpoint_every=9,
    bootstrap=True,
)
SGD = replace(SETTINGS, optimizer="sgd", learning_rate=0.05, clip_norm=0.1)


@pytest.fixture(autouse=True)
def _as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    no_loops(monkeypatch)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Rows(nn.Module):
    """Images (B, 1, 8, 8) as 8 steps of 8 numbers, or 64 of one."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).unflatten(1, (-1, self.features))


class Recurrent(nn.Module):
    def __init__(self, features: int = 8) -> None:
        super().__init__()
        self.rows = Rows(features)
        self.rnn = nn.RNN(features, 12, nonlinearity="relu", batch_first=True)
        self.out = nn.Linear(12, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(self.rows(x))[1][-1])


def feedforward() -> nn.Module:
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 18), nn.GELU(), nn.Linear(18, 10)
    )


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 1),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(20, 10),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "feedforward": feedforward,
    "convnet": convnet,
    "recurrent": Recurrent,
}
SKETCHES: list[Sketch] = [
    Identity(),
    SameSample(0.3),
    DifferentSample(0.3),
    DifferentSample(0.3, replacement=False),
    Project(0.3),
    DifferentProject(0.1),
    StochasticRounding(3),
    StochasticRounding(2, zero_code=True),
    DitheredRounding(4, block=16),
    RotatedRounding(3),
    SampledRounding(0.3, 4),
    ImportanceSampling(0.3),
]


def network(kind: str | Callable[[], nn.Module], sketch: Sketch) -> nn.Module:
    torch.manual_seed(0)
    return rad.convert((NETWORKS[kind] if isinstance(kind, str) else kind)(), sketch, seed=1)


def go(
    path: Path,
    model: nn.Module,
    settings: Settings = SETTINGS,
    graphs: Any = None,
    device: str = "cpu",
    on_backward: Callable[[int], None] | None = None,
) -> TrainResult:
    torch.manual_seed(7)
    folder, digits = RunFolder(path), data.load("digits", device=device)
    with folder.open("a: 1\n"):
        return train(
            model.to(device),
            digits,
            settings,
            5,
            folder,
            NullLogger(),
            graphs=graphs,
            on_backward=on_backward,
        )


def graphed(settings: Settings) -> Settings:
    return replace(settings, cuda_graph=True)


@pytest.mark.parametrize("sketch", SKETCHES, ids=str)
@pytest.mark.parametrize("kind", NETWORKS)
def test_replays_end_as_eager_updates(kind: str, sketch: Sketch, tmp_path: Path) -> None:
    """Nothing waits for the device, and all that changes between updates is found there."""
    settings = SGD if kind == "recurrent" else SETTINGS
    graphs = RecordedGraphs()
    go(tmp_path / "eager", network(kind, sketch), settings, RecordedGraphs())
    go(tmp_path / "graph", network(kind, sketch), graphed(settings), graphs)
    assert (graphs.eager, graphs.captures, graphs.replays) == (WARM_UP, 1, 9 - WARM_UP)
    assert_same_end(tmp_path / "eager", tmp_path / "graph")


class Counting(nn.Module):
    """Counts its calls in Python, where a replay does not reach it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += self.training
        return x * (1 + self.calls)


def test_python_does_not_run_in_a_replay(tmp_path: Path) -> None:
    """The control: what is recorded would not be a graph if it did."""

    def model() -> nn.Module:
        return nn.Sequential(*network("feedforward", Identity()), Counting())

    go(tmp_path / "eager", model(), SETTINGS, RecordedGraphs())
    go(tmp_path / "graph", model(), graphed(SETTINGS), RecordedGraphs())
    rows = [[row["batch_loss"] for row in rows_of(tmp_path / p)] for p in ("eager", "graph")]
    first = WARM_UP + 2  # rows start at iteration 0; the capture counts once
    assert rows[0][:first] == rows[1][:first]
    assert rows[0][first:] != rows[1][first:]


def test_interrupted_runs_end_as_an_unbroken_eager_one(tmp_path: Path) -> None:
    def run(path: Path, settings: Settings) -> TrainResult:
        with RunFolder(path).open("a: 1\n"):
            return train(
                tiny_run.network(),
                data.load("digits"),
                settings,
                5,
                RunFolder(path),
                NullLogger(),
                graphs=RecordedGraphs(),
            )

    whole = replace(tiny_run.SETTINGS, iterations=60)
    run(tmp_path / "eager", whole)
    limited = graphed(replace(whole, time_limit=1e-3))
    results = [run(tmp_path / "graph", limited)]
    while not results[-1].finished:
        # One slice of eager updates between those of replays.
        results.append(run(tmp_path / "graph", replace(limited, cuda_graph=len(results) != 2)))
    assert len(results) > 3
    assert_same_end(tmp_path / "eager", tmp_path / "graph")


def test_a_run_that_diverges_ends_as_an_eager_one(tmp_path: Path) -> None:
    wild = replace(SGD, learning_rate=1e25, clip_norm=None, iterations=40, evaluate_every=4)
    messages = []
    for settings in (wild, graphed(wild)):
        path = tmp_path / str(settings.cuda_graph)
        with pytest.raises(Diverged) as raised:
            go(path, network("feedforward", SameSample(0.5)), settings, RecordedGraphs())
        messages.append((str(raised.value), rows_of(path)))
    assert messages[0] == messages[1]


def test_runs_side_by_side_are_captured_apart(tmp_path: Path) -> None:
    graphs = [RecordedGraphs() for _ in range(3)]
    settings = graphed(replace(SETTINGS, iterations=30, evaluate_every=30, bootstrap=False))
    with ExitStack() as stack:
        runs = []
        for seed, own in enumerate(graphs):
            folder = stack.enter_context(RunFolder(tmp_path / f"beside{seed}").open("a: 1\n"))
            model = network("feedforward", DifferentSample(0.3))
            digits = data.load("digits")
            runs.append(strides(model, digits, settings, seed, folder, NullLogger(), graphs=own))
        assert len(dict(side_by_side(runs, torch.device("cpu")))) == 3
    for seed, own in enumerate(graphs):
        assert own.replays == 30 - WARM_UP
        folder = RunFolder(tmp_path / f"alone{seed}")
        with folder.open("a: 1\n"):
            model, eager = network("feedforward", DifferentSample(0.3)), RecordedGraphs()
            alone = replace(settings, cuda_graph=False)
            train(model, data.load("digits"), alone, seed, folder, NullLogger(), graphs=eager)
        assert_same_end(folder.path, tmp_path / f"beside{seed}")


class Waiting(nn.Module):
    """Reads a number of the device, as a model must not that is captured."""

    def forward(self, x: Tensor) -> Tensor:
        return x / 2 if x.detach().abs().max().item() > 1 else x


class Replacing(nn.Module):
    """Counts in a buffer, but in a new one each time."""

    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count = self.count + 0.1
        return x * self.count


class Explodes(nn.Module):
    """Cannot take a backward pass that is recorded, when half of the step is done."""

    def forward(self, x: Tensor) -> Tensor:
        def refuse(grad: Tensor) -> None:
            if torch.utils._python_dispatch._get_current_dispatch_mode() is not None:
                raise RuntimeError("not with me\nin any way")

        if x.requires_grad:
            x.register_hook(refuse)
        return x * 1


@pytest.mark.parametrize(
    ("addition", "words"),
    [
        (Waiting, "operation not permitted when stream is capturing: aten._local_scalar_dense"),
        (Replacing, "Replacing.count is replaced in a forward pass, not changed in place"),
        (Explodes, "not with me"),
    ],
)
def test_where_a_capture_fails_training_goes_on(
    addition: type[nn.Module], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def model() -> nn.Module:
        first, *others = network("feedforward", DifferentSample(0.3))  # type: ignore[misc]
        return nn.Sequential(first, *others, addition(), nn.Dropout(0.1))

    go(tmp_path / "eager", model(), SETTINGS, RecordedGraphs())
    assert capsys.readouterr().err == ""
    graphs = RecordedGraphs()
    go(tmp_path / "graph", model(), graphed(SETTINGS), graphs)
    assert (graphs.captures, graphs.replays) == (1, 0)
    said = capsys.readouterr().err.splitlines()
    start = f"{tmp_path / 'graph'}: training goes on without a CUDA graph, to the same end: "
    assert len(said) == 1
    assert said[0].startswith(start + words)
    assert_same_end(tmp_path / "eager", tmp_path / "graph")


def test_an_update_that_is_seen_to_wait_is_not_captured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Waits(RecordedGraphs):
        def warm_up(self, *arguments: Any) -> tuple[Tensor, str | None]:
            loss, _ = super().warm_up(*arguments)
            return loss, "it waits" if self.eager != 2 else None

    graphs = Waits()
    go(tmp_path, network("feedforward", Identity()), graphed(SETTINGS), graphs)
    assert (graphs.eager, graphs.captures) == (WARM_UP, 0)
    assert capsys.readouterr().err.endswith("to the same end: it waits\n")


def test_on_a_cpu_it_is_eager_and_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go(tmp_path / "without", network("convnet", DifferentSample(0.3)))
    assert capsys.readouterr().err == ""
    go(tmp_path / "with", network("convnet", DifferentSample(0.3)), graphed(SETTINGS))
    assert_same_end(tmp_path / "without", tmp_path / "with")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("to the same end: there is no CUDA graph on the device cpu")


def test_a_watched_run_is_not_captured(tmp_path: Path) -> None:
    graphs, seen = RecordedGraphs(), list[int]()
    model = network("feedforward", Identity())
    go(tmp_path, model, graphed(SETTINGS), graphs, on_backward=seen.append)
    assert graphs.captures == 0
    assert seen == list(range(1, 10))
