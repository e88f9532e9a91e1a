"""The training loop.

After a forward pass the loop holds no reference to the batch or to the network's output: what
stays alive until the backward pass is what the graph itself keeps, and nothing else.
"""

import time
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from rad.data import Dataset, Text
from rad.results import RunFolder
from rad.training import cuda_graphs as graphed
from rad.training.batches import Sampler
from rad.training.interruption import Interruption
from rad.training.loggers import Logger
from rad.training.optimizers import make_optimizer, set_learning_rate
from rad.training.progress_bar import Shown
from rad.training.ranks import ALONE, Ranks
from rad.training.session import Session, TrainResult
from rad.training.settings import Settings
from rad.training.task import SPLITS, Batch, Task, evaluate, task_of

# The device is waited for after so many steps, or so many seconds where steps are slow: to look
# for a loss that is not finite, to move the progress bar and to look at the clock.
STRIDE = 25
STRIDE_SECONDS = 1.0


Strides = Generator[None, None, TrainResult]
"""A run that pauses after each stride that it has launched, before it waits for its losses."""


def train(
    model: nn.Module,
    task: Task | Dataset | Text,
    settings: Settings,
    seed: int,
    folder: RunFolder,
    logger: Logger,
    *,
    on_backward: Callable[[int], None] | None = None,
    graphs: graphed.Graphs | None = None,
    commit: str | None = None,
) -> TrainResult:
    """Train `model` in place on `task`, resuming from the folder's checkpoint if any.

    A data set of `rad.data` stands for its own task (`rad.training.task.task_of`). What is in
    `eval()` in a model that is itself in training mode stays so.

    The caller holds `folder.open(...)`, writes the summary, and finishes the logger. `seed` alone
    decides the order of the data; the initial weights are the caller's. The row of iteration n in
    metrics.csv describes the model after n updates: `batch_loss` and `learning_rate` are those of
    update n, `train_loss` is over the whole original training set, `seconds` excludes evaluation.
    `on_backward(n)` is called when the backward pass of update n (of its first part) is about to
    start; a run that is
    so watched is never captured. `graphs` stands in for CUDA's. `commit` is the caller's, for the
    segments of a run that is resumed. A signal is handled once the stride has ended and a
    checkpoint is written (`Interruption`).

    Raises:
        UsageError: a checkpoint that does not fit or a file that cannot be written.
        Diverged: a loss that is not finite; files written before stay.
    """
    with Interruption() as interruption:
        run = strides(
            model,
            task,
            settings,
            seed,
            folder,
            logger,
            on_backward=on_backward,
            graphs=graphs,
            commit=commit,
            interruption=interruption,
        )
        while True:
            try:
                next(run)
            except StopIteration as end:
                result: TrainResult = end.value
                return result


def strides(
    model: nn.Module,
    task: Task | Dataset | Text,
    settings: Settings,
    seed: int,
    folder: RunFolder,
    logger: Logger,
    *,
    on_backward: Callable[[int], None] | None = None,
    graphs: graphed.Graphs | None = None,
    commit: str | None = None,
    interruption: Interruption | None = None,
    shown: Shown | None = None,
    ranks: Ranks = ALONE,
    blocks: Collection[str] = (),
) -> Strides:
    """`train`, a stride at a time; the pauses do not count in `seconds`.

    `interruption` is that of all runs that take turns, `shown` how the progress bar shows this one.
    Several `ranks` train it together, each on its part of a batch; their gradients are averaged,
    so that the update is that of the whole batch. `folder` and `logger` are used by the first.
    `blocks` names the modules that are sharded by themselves, where `ranks` hold a part of the
    model each; it stays sharded.

    Raises:
        UsageError: as `train`; too few examples for so many processes; a batch that is to be worked
            through in parts by several; a model that leaves parameters without a gradient, which
            they cannot average.
    """
    task = task_of(task)
    ranks.check_whole(settings.parts)
    ranks.check(batch=settings.batch_size, **{f"{split} set": task.size(split) for split in SPLITS})
    sampler = Sampler(task.size(), settings.batch_size, seed, task.device, settings.bootstrap)
    graphs = graphed.CudaGraphs() if graphs is None else graphs
    capturable = graphs.can_capture(task.device) and not ranks.sharded
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    optimizer = make_optimizer(list(trained), settings, capturable=capturable)
    evaluated = [f"{split}_{metric}" for split in SPLITS for metric in task.metrics]
    evaluated += ["bootstrap_loss"] if settings.bootstrap else []
    session = Session(
        model,
        optimizer,
        sampler.generator,
        settings,
        folder,
        logger,
        columns=["batch_loss", *evaluated],
        device=task.device,
        remedy=f"lower the learning rate (now {settings.learning_rate:g}), clip the gradient, "
        "or raise the budget",
        rows=partial(_filled, settings, task.metrics),
        data=task.digest(),
        commit=commit,
        interruption=interruption,
        shown=shown,
        ranks=ranks,
    )
    weights = sampler.multiplicities()
    if not model.training:
        model.train()

    def record(batch_loss: float | None) -> None:
        values = _evaluations(model, task, session, weights, ranks)
        session.record({"batch_loss": batch_loss, **values})

    if not session.progress.rows:
        record(None)
    numbers = count(session.iteration + 1)
    watch = None if on_backward is None else lambda: on_backward(next(numbers))
    averaging = ranks.averaging(model, optimizer, blocks)
    update = ranks.apart(
        partial(_update, averaging, optimizer, task, sampler, settings, ranks, watch),
        seed,
        session.iteration,
    )
    if settings.cuda_graph and watch is None:
        updates = graphed.updates(update, model, sampler.generator, graphs, session.tell)
    else:
        updates = graphed.eager(update)
    with session:
        for _ in session.strides():
            losses = yield from _advance(updates, optimizer, session, ranks)
            session.show(losses[-1])
            if settings.tests_at(session.iteration) or settings.trains_at(session.iteration):
                record(losses[-1])
    session.write()
    last = session.progress.rows[-1]
    return session.result({key: value for key in evaluated if (value := last[key]) is not None})


def _filled(settings: Settings, metrics: Sequence[str], updates: int) -> dict[int, set[str]]:
    """The columns that are filled in each row, once so many updates are done."""
    rows = {
        n: {f"{split}_{metric}" for split in splits for metric in metrics}
        for n, splits in settings.rows_after(updates).items()
    }
    for n, columns in rows.items():
        columns |= {"batch_loss"} if n > 0 else set()
        columns |= {"bootstrap_loss"} if settings.bootstrap and settings.trains_at(n) else set()
    return rows


def _advance(
    updates: Iterator[Tensor], optimizer: Optimizer, session: Session, ranks: Ranks
) -> Generator[None, None, list[float]]:
    """Launch updates up to the next stop, pause, return their losses, all of them finite."""
    settings, first = session.settings, session.iteration
    most, losses = session.updates_within(STRIDE_SECONDS), []
    with session.timed():
        start = time.perf_counter()
        for step in range(first, _next_stop(settings, first)):
            rate = settings.learning_rate_at(step)
            if step == first or rate != settings.learning_rate_at(step - 1):
                set_learning_rate(optimizer, rate)
            losses.append(next(updates))
            late = time.perf_counter() - start > STRIDE_SECONDS
            if late if most is None else len(losses) == most:
                break
    yield
    with session.timed():
        values: list[float] = (ranks.total(torch.stack(losses)) / ranks.count).tolist()
        for iteration, value in enumerate(values, start=first + 1):
            session.check_finite("the batch loss", value, iteration)
        session.done(len(values))
    return values


def _next_stop(settings: Settings, iteration: int) -> int:
    periods = (
        settings.evaluate_every,
        settings.train_loss_every or settings.evaluate_every,
        settings.checkpoint_every,
        STRIDE,
    )
    return min(settings.iterations, *((iteration // n + 1) * n for n in periods))


def _update(
    model: nn.Module,
    optimizer: Optimizer,
    task: Task,
    sampler: Sampler,
    settings: Settings,
    ranks: Ranks,
    on_backward: Callable[[], None] | None,
) -> Tensor:
    """Launch one update, without waiting; return the loss of its batch, detached."""
    optimizer.zero_grad(set_to_none=True)
    parts = sampler.draw().tensor_split(settings.parts)
    loss = _backward(model, task, parts, sampler.generator, ranks, on_backward)
    if settings.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()
    return loss


def _backward(
    model: nn.Module,
    task: Task,
    parts: Sequence[Tensor],
    generator: torch.Generator,
    ranks: Ranks,
    on_backward: Callable[[], None] | None,
) -> Tensor:
    """Put the gradient of one batch in place, part by part; return its loss, detached."""
    count = sum(len(indices) for indices in parts)
    losses: list[Tensor] = []
    for indices in parts:
        loss = _forward(model, task, indices, generator, ranks)
        if len(parts) > 1:
            loss = loss * (len(indices) / count)
        if on_backward is not None and not losses:
            on_backward()
        loss.backward()
        losses.append(loss.detach())
    return losses[0] if len(losses) == 1 else torch.stack(losses).sum()


def _forward(
    model: nn.Module, task: Task, indices: Tensor, generator: torch.Generator, ranks: Ranks
) -> Tensor:
    """The loss of a batch; of several processes each has the loss of its part, weighed by it."""
    batch = task.training_batch(indices, generator)
    weight = ranks.weight(len(batch.targets))
    batch = Batch(tuple(map(ranks.own, batch.inputs)), ranks.own(batch.targets))
    loss = task.loss(model(*batch.inputs), batch.targets)
    return loss if weight == 1 else weight * loss


def _evaluations(
    model: nn.Module, task: Task, session: Session, weights: Tensor | None, ranks: Ranks
) -> dict[str, float | None]:
    """What is due after the updates done, by column."""
    settings, values = session.settings, dict[str, float | None]()
    if settings.trains_at(session.iteration):
        train = evaluate(model, task, "train", settings.evaluation_batch, weights, ranks)
        session.check_finite("the training loss", train.metrics["loss"])
        values |= {f"train_{metric}": value for metric, value in train.metrics.items()}
        if weights is not None:
            values["bootstrap_loss"] = train.weighted_loss
    if settings.tests_at(session.iteration):
        test = evaluate(model, task, "test", settings.evaluation_batch, ranks=ranks)
        session.check_finite("the test loss", test.metrics["loss"])
        values |= {f"test_{metric}": value for metric, value in test.metrics.items()}
    return values
