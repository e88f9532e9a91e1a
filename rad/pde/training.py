"""Training of a control, which resumes as `rad.training` does."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rad.draws.reference import integers
from rad.pde.adjoint import Adjoint
from rad.pde.control import control_loss
from rad.pde.fourier import Fourier
from rad.pde.problem import ReactionDiffusion
from rad.results import RunFolder
from rad.sketches import fold_in, make_key
from rad.training import Interruption, Logger, Settings, TrainResult
from rad.training.optimizers import make_optimizer, set_learning_rate
from rad.training.progress_bar import Shown
from rad.training.session import Session

COLUMNS = ("train_loss",)
STEADY = 4.932
"""About 2 pi^2 D for D = 0.25, at which growth balances diffusion."""


def initial_theta(series: Fourier, seed: int, constant: float = STEADY) -> Tensor:
    """The paper's start: `constant` for term (0, 0), uniform in [-0.1, 0.1] for all others.

    Shape: (P,), float64.
    """
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


def train(
    control: Control,
    settings: Settings,
    folder: RunFolder,
    logger: Logger,
    *,
    commit: str | None = None,
    shown: Shown | None = None,
) -> TrainResult:
    """Train `control` in place, resuming from the folder's checkpoint if any.

    The caller holds `folder.open(...)`, writes the summary and finishes the logger. A signal is
    handled once the iteration has ended and a checkpoint is written. Iteration n of
    metrics.csv has the exact loss after n updates; `seconds` are those of the updates. Of
    `settings`, batch sizes, `bootstrap`, `train_loss_every`, `clip_norm` and `cuda_graph` are not
    used: there are no examples here. `commit` is the caller's, for the segments of
    a resumed run; `shown` is for the progress bar.

    Raises:
        UsageError: a checkpoint that does not fit or a file that cannot be written.
        Diverged: a loss that is not finite; files written before stay.
    """
    optimizer = make_optimizer([control.theta], settings, capturable=False)
    interruption = Interruption()
    session = Session(
        control,
        optimizer,
        torch.Generator(),  # part of every checkpoint; nothing is drawn from it
        settings,
        folder,
        logger,
        columns=COLUMNS,
        device=control.theta.device,
        remedy=f"lower the learning rate (now {settings.learning_rate:g}) or raise the budget",
        rows=lambda updates: dict.fromkeys(range(0, updates, settings.evaluate_every), COLUMNS),
        commit=commit,
        interruption=interruption,
        shown=shown,
    )

    def record(loss: float) -> None:
        session.check_finite("the loss", loss)
        if settings.tests_at(session.iteration):
            session.record({"train_loss": loss})

    with interruption, session:
        for iteration in session.strides():
            with session.timed():
                set_learning_rate(optimizer, settings.learning_rate_at(iteration))
                optimizer.zero_grad()
                loss = control(iteration)
                loss.backward()
                value = loss.item()
            record(value)
            with session.timed():
                optimizer.step()
            session.done(1)
            session.show(value)
    rows = session.progress.rows
    if session.finished and rows[-1]["iteration"] != settings.iterations:
        with torch.no_grad():
            record(control(session.iteration).item())
    last = rows[-1]["train_loss"]
    assert last is not None
    theta = {f"theta_{i}": value for i, value in enumerate(control.theta.tolist())}
    return session.result({"train_loss": last, **theta})
