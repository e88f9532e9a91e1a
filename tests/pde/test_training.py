from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rad.pde import Fourier, ReactionDiffusion
from rad.pde.training import Control, initial_theta, train
from rad.results import RunFolder
from rad.sketches import DifferentSample
from rad.training import Settings


def test_the_start_is_the_papers() -> None:
    thetas = torch.stack([initial_theta(Fourier(), seed) for seed in range(200)])
    assert (thetas[:, 0] == 4.932).all()
    drawn = thetas[:, 1:]
    assert drawn.abs().max() <= 0.1
    assert drawn.min() < -0.098
    assert drawn.max() > 0.098
    assert abs(drawn.mean()) < 0.01
    assert drawn.unique().numel() == drawn.numel()
    shifted = initial_theta(Fourier(((1, 0), (0, 0))), 0)
    assert shifted[1] == 4.932


def test_each_iteration_draws_afresh_and_again_the_same() -> None:
    control = Control(ReactionDiffusion(points=5, steps=9), DifferentSample(0.2), seed=1)

    def gradient(iteration: int) -> torch.Tensor:
        return torch.autograd.grad(control(iteration), control.theta)[0]

    assert torch.equal(gradient(3), gradient(3))
    assert not torch.equal(gradient(3), gradient(4))
    assert control(3).item() == pytest.approx(control(4).item(), rel=1e-12)


class Rows:
    """A logger that keeps the iterations of its rows."""

    def __init__(self) -> None:
        self.iterations: list[int] = []

    def log(self, row: Mapping[str, Any]) -> None:
        self.iterations.append(row["iteration"])

    def finish(self) -> None:
        pass


def test_a_run_that_resumes_logs_its_rows_from_the_first_on(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    logged: list[Rows] = []
    for iterations in (5, 8):  # rows of 0, 2, 4 before the checkpoint at 4
        control = Control(ReactionDiffusion(points=5, steps=9), DifferentSample(0.2), seed=1)
        settings = Settings(iterations, 1, "adam", 0.01, evaluate_every=2, checkpoint_every=4)
        logged.append(Rows())
        with folder.open("experiment: tiny\n"):
            train(control, settings, folder, logged[-1])
    assert [rows.iterations for rows in logged] == [[0, 2, 4, 5], [0, 2, 4, 6, 8]]
