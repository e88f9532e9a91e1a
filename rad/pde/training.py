"""Training of a control, which resumes as `rad.training` does."""

from __future__ import annotations

import math
import time

import torch
from torch import Tensor, nn
from torch.optim import Adam

from rad.draws.reference import integers
from rad.errors import UsageError
from rad.pde.adjoint import Adjoint
from rad.pde.control import control_loss
from rad.pde.fourier import Fourier
from rad.pde.problem import ReactionDiffusion
from rad.results import RunFolder
from rad.sketches import fold_in, make_key
from rad.training import Logger, Settings, TrainResult, checkpoint
from rad.training.progress_bar import ProgressBar

COLUMNS = ("iteration", "seconds", "learning_rate", "train_loss")
STEADY = 4.932
"""About 2 pi^2 D, at which growth balances diffusion."""


def initial_theta(series: Fourier, seed: int, constant: float = STEADY) -> Tensor:
    """The paper's start: `constant` for the term 1, uniform in [-0.1, 0.1] for the others."""
    high = 1 << 30
    drawn = integers(fold_in(make_key(seed), 0), range(1), len(series), high)[0]
    theta = (drawn.double() + 0.5) / high * 0.2 - 0.1
    steady = torch.tensor([term == (0, 0) for term in series.terms])
    return theta.masked_fill(steady, constant)


class Control(nn.Module):
    """A control as a parameter (P,), float64; called with i, it gives the loss of iteration i.

    Iteration i draws with `fold_in(key, i)`.
    """

    def __init__(self, problem: ReactionDiffusion, adjoint: Adjoint, seed: int) -> None:
        super().__init__()
        self.problem, self.adjoint = problem, adjoint
        self.theta = nn.Parameter(initial_theta(problem.series, seed))
        self.register_buffer("key", fold_in(make_key(seed), 1), persistent=False)

    key: Tensor

    def forward(self, iteration: int) -> Tensor:
        """The loss: ()."""
        return control_loss(self.problem, self.theta, self.adjoint, fold_in(self.key, iteration))


def train(control: Control, settings: Settings, folder: RunFolder, logger: Logger) -> TrainResult:
    """Train `control` in place with Adam, resuming from the folder's checkpoint if any.

    The caller holds `folder.open(...)`, writes the summary and finishes the logger. Row n of
    metrics.csv has the exact loss after n updates; `seconds` are those of the updates.

    Raises:
        UsageError: a checkpoint that does not fit, a file that cannot be written, or a loss
            that is not finite; files written before stay.
    """
    deadline = math.inf if settings.time_limit is None else time.monotonic() + settings.time_limit
    optimizer = Adam(control.parameters(), lr=settings.learning_rate)
    generator = torch.Generator()  # part of every checkpoint; nothing is drawn from it
    progress = checkpoint.restore(folder, control, optimizer, generator)
    bar = ProgressBar(settings.iterations, progress.iteration, control.theta.device)

    def record(loss: float) -> None:
        if not math.isfinite(loss):
            raise UsageError(
                f"the loss is {loss} at iteration {progress.iteration}; lower the learning rate "
                f"(now {settings.learning_rate:g}) or raise the budget"
            )
        if settings.tests_at(progress.iteration):
            numbers = (progress.iteration, round(progress.seconds, 6), settings.learning_rate, loss)
            progress.rows.append(dict(zip(COLUMNS, numbers, strict=True)))
            folder.write_metrics(progress.rows, COLUMNS)
            logger.log(progress.rows[-1])

    for row in progress.rows:
        logger.log(row)
    try:
        expired = False
        while progress.iteration < settings.iterations and not expired:
            start = time.perf_counter()
            optimizer.zero_grad()
            loss = control(progress.iteration)
            loss.backward()
            pause = time.perf_counter()
            record(loss.item())
            start += time.perf_counter() - pause
            optimizer.step()
            progress.iteration += 1
            progress.seconds += time.perf_counter() - start
            bar.show(progress.iteration, loss.item())
            expired = time.monotonic() >= deadline
            if expired or settings.checkpoints_at(progress.iteration):
                checkpoint.save(folder, control, optimizer, generator, progress)
    finally:
        bar.close()
    finished = progress.iteration == settings.iterations
    if finished and progress.rows[-1]["iteration"] != settings.iterations:
        with torch.no_grad():
            record(control(progress.iteration).item())
    last = progress.rows[-1]["train_loss"]
    assert last is not None
    theta = {f"theta_{i}": value for i, value in enumerate(control.theta.tolist())}
    return TrainResult(
        finished=finished,
        final={"train_loss": last, **theta},
        iterations=progress.iteration,
        seconds_per_iteration=progress.seconds / max(progress.iteration, 1),
    )
