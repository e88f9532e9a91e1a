"""Runs in one program end as they do alone."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from training.test_resume import assert_same_end

import rad
from rad import data
from rad.errors import Diverged
from rad.results import RunFolder
from rad.sketches import DifferentSample
from rad.training import NullLogger, Settings, Strides, TrainResult, side_by_side, strides, train

SETTINGS = Settings(
    iterations=70,
    batch_size=16,
    optimizer="adam",
    learning_rate=3e-3,
    evaluate_every=30,
    checkpoint_every=35,
)


def network(seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 24), nn.ReLU(), nn.Linear(24, 10))
    return rad.convert(layers, DifferentSample(0.3), seed=seed)


def run(
    stack: ExitStack,
    path: Path,
    seed: int,
    device: str = "cpu",
    settings: Settings = SETTINGS,
    order: list[tuple[int, int]] | None = None,
) -> Strides:
    folder = stack.enter_context(RunFolder(path).open("a: 1\n"))
    digits = data.load("digits", device=torch.device(device))
    return strides(
        network(seed).to(device),
        digits,
        settings,
        seed,
        folder,
        NullLogger(),
        on_backward=None if order is None else lambda n: order.append((n, seed)),
    )


def alone(path: Path, seed: int, device: str = "cpu", settings: Settings = SETTINGS) -> TrainResult:
    folder = RunFolder(path)
    with folder.open("a: 1\n"):
        digits = data.load("digits", device=torch.device(device))
        model = network(seed).to(device)
        return train(model, digits, settings, seed, folder, NullLogger())


CUDA = (
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=CUDA)])
def test_each_run_ends_as_alone(device: str, tmp_path: Path) -> None:
    lengths = {0: 70, 1: 40, 2: 70}
    order: list[tuple[int, int]] = []
    with ExitStack() as stack:
        runs = [
            run(
                stack,
                tmp_path / f"beside{seed}",
                seed,
                device,
                replace(SETTINGS, iterations=length),
                order,
            )
            for seed, length in lengths.items()
        ]
        outcomes = dict(side_by_side(runs, torch.device(device)))
    assert order[:51:25] == [(1, 0), (1, 1), (1, 2)]
    for seed, length in lengths.items():
        settings = replace(SETTINGS, iterations=length)
        expected = alone(tmp_path / f"alone{seed}", seed, device, settings)
        outcome = outcomes[seed]
        assert isinstance(outcome, TrainResult)
        assert outcome.finished
        assert outcome.final == expected.final
        assert_same_end(tmp_path / f"beside{seed}", tmp_path / f"alone{seed}")


def test_a_run_that_diverges_leaves_the_others_to_go_on(tmp_path: Path) -> None:
    with ExitStack() as stack:
        wild = replace(SETTINGS, optimizer="sgd", learning_rate=1e30)
        runs = [run(stack, tmp_path / "wild", 0, settings=wild), run(stack, tmp_path / "calm", 1)]
        (first, error), (second, result) = side_by_side(runs, torch.device("cpu"))
    assert (first, second) == (0, 1)
    assert isinstance(error, Diverged)
    assert isinstance(result, TrainResult)
    assert result.finished


def test_another_error_ends_all(tmp_path: Path) -> None:
    class Broken(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("broken")

    with ExitStack() as stack:
        good = run(stack, tmp_path / "good", 0)
        folder = stack.enter_context(RunFolder(tmp_path / "bad").open("a: 1\n"))
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), Broken())
        bad = strides(model, data.load("digits"), SETTINGS, 0, folder, NullLogger())
        with pytest.raises(RuntimeError, match="broken"):
            list(side_by_side([good, bad], torch.device("cpu")))
        with pytest.raises(StopIteration):
            next(good)
