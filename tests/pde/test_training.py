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


def test_updates_equal_a_loop_by_hand(tmp_path: Path) -> None:
    def start() -> Control:
        return Control(ReactionDiffusion(points=5, steps=9), DifferentSample(0.2), seed=1)

    trained, expected = start(), start()
    settings = Settings(
        6, 1, "adam", 0.1, decay_factor=0.5, decay_every=2, evaluate_every=1, checkpoint_every=6
    )
    folder, rows = RunFolder(tmp_path), Rows()
    with folder.open("experiment: tiny\n"):
        result = train(trained, settings, folder, rows)
    optimizer, losses = torch.optim.Adam([expected.theta], lr=0.1), []
    for iteration in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 ** (iteration // 2)
        optimizer.zero_grad()
        loss = expected(iteration)
        loss.backward()
        losses.append(loss.item())
        optimizer.step()
    assert torch.equal(trained.theta, expected.theta)
    assert [row["train_loss"] for row in rows.rows] == [*losses, expected(6).item()]
    rates = [row["learning_rate"] for row in rows.rows]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.025, 0.025])
    assert result.final["train_loss"] == rows.rows[-1]["train_loss"]


class Rows:
    """A logger that keeps its rows."""

    def __init__(self) -> None:
        self.rows: list[Mapping[str, Any]] = []

    def log(self, row: Mapping[str, Any]) -> None:
        self.rows.append(row)

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
    assert [[row["iteration"] for row in log.rows] for log in logged] == [
        [0, 2, 4, 5],
        [0, 2, 4, 6, 8],
    ]
