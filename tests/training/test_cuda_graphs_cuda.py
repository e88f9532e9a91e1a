"""CUDA graphs, where there are any."""

import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training.test_cuda_graphs import (
    SETTINGS,
    SGD,
    Recurrent,
    Replacing,
    Waiting,
    go,
    graphed,
    network,
)
from training.test_resume import assert_same_end

from rad.sketches import DifferentSample, SameSample, Sketch, StochasticRounding
from rad.training import Settings
from rad.training.cuda_graphs import WARM_UP, CudaGraphs, Update

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


class Counted(CudaGraphs):
    """Counts replays."""

    def __init__(self) -> None:
        super().__init__()
        self.replays = 0

    def capture(self, update: Update, generator: torch.Generator) -> Update:
        replay = super().capture(update, generator)

        def counted() -> Tensor:
            self.replays += 1
            return replay()

        return counted


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    """Additions in one order: else two eager runs do not end alike, either."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*deterministic.*")
        yield
    torch.use_deterministic_algorithms(before)


def univariate() -> nn.Module:
    return Recurrent(features=1)


@pytest.mark.parametrize("settings", [SETTINGS, SGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("sketch", [DifferentSample(0.3), StochasticRounding(3)], ids=str)
@pytest.mark.parametrize("kind", ["feedforward", "convnet", "recurrent", "fused"])
def test_replays_end_as_eager_updates(
    kind: str, sketch: Sketch, settings: Settings, tmp_path: Path
) -> None:
    settings = replace(settings, iterations=30, checkpoint_every=30)
    graphs = Counted()
    chosen = univariate if kind == "fused" else kind
    go(tmp_path / "eager", network(chosen, sketch), settings, device="cuda")
    go(tmp_path / "graph", network(chosen, sketch), graphed(settings), graphs, device="cuda")
    assert graphs.replays == 30 - WARM_UP
    assert_same_end(tmp_path / "eager", tmp_path / "graph")


def test_an_interrupted_run_ends_as_an_unbroken_eager_one(tmp_path: Path) -> None:
    settings = replace(SETTINGS, iterations=60, evaluate_every=10)
    go(tmp_path / "eager", network("convnet", SameSample(0.3)), settings, device="cuda")
    limited = graphed(replace(settings, time_limit=1e-3))
    slices = 1
    while not go(
        tmp_path / "graph", network("convnet", SameSample(0.3)), limited, device="cuda"
    ).finished:
        slices += 1
    assert slices > 1
    assert_same_end(tmp_path / "eager", tmp_path / "graph")


def test_the_host_waits_once_a_stride(tmp_path: Path) -> None:
    def waits(iterations: int) -> int:
        settings = graphed(
            replace(
                SETTINGS, iterations=iterations, evaluate_every=1000, train_loss_every=None,
                checkpoint_every=1000, bootstrap=False,
            )
        )  # fmt: skip
        path, model = tmp_path / str(iterations), network("feedforward", DifferentSample(0.3))
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                go(path, model, settings, device="cuda")
        finally:
            torch.cuda.set_sync_debug_mode("default")
        return sum("synchronizing CUDA operation" in str(w.message) for w in caught)

    waits(10)  # what is slow once, such as loading kernels, would cut a stride
    assert waits(150) - waits(50) == 4  # 6 strides and 2


class Failing(nn.Module):
    """Raises, or waits for the device, in a capture alone."""

    def __init__(self, waits: bool) -> None:
        super().__init__()
        self.waits = waits

    def forward(self, x: Tensor) -> Tensor:
        if torch.cuda.is_current_stream_capturing():
            if not self.waits:
                raise ValueError("not captured")
            x.sum().item()
        return x


@pytest.mark.parametrize("addition", [Waiting(), Replacing(), Failing(False), Failing(True)])
def test_where_a_capture_fails_training_goes_on(
    addition: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def model() -> nn.Module:
        return nn.Sequential(network("convnet", DifferentSample(0.3)), anew(addition))

    def anew(module: nn.Module) -> nn.Module:
        return Failing(module.waits) if isinstance(module, Failing) else type(module)()

    graphs = Counted()
    go(tmp_path / "eager", model(), SETTINGS, device="cuda")
    go(tmp_path / "graph", model(), graphed(SETTINGS), graphs, device="cuda")
    assert graphs.replays == 0
    assert capsys.readouterr().err.count("training goes on without a CUDA graph") == 1
    assert_same_end(tmp_path / "eager", tmp_path / "graph")
