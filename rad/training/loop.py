"""The training loop.

After a forward pass the loop holds no reference to the batch or to the network's output: what
stays alive until the backward pass is what the graph itself keeps, and nothing else.
"""

import math
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from rad.data import Dataset
from rad.errors import Diverged
from rad.results import RunFolder
from rad.training import checkpoint
from rad.training import cuda_graphs as graphed
from rad.training.batches import Sampler
from rad.training.evaluate import evaluate
from rad.training.loggers import Logger
from rad.training.optimizers import make_optimizer, set_learning_rate
from rad.training.progress_bar import ProgressBar
from rad.training.settings import Settings
from rad.training.state import Progress, Row

COLUMNS = (
    "iteration",
    "seconds",
    "learning_rate",
    "batch_loss",
    "train_loss",
    "train_accuracy",
    "test_loss",
    "test_accuracy",
)

# The device is waited for after so many steps, or so many seconds where steps are slow: to look
# for a loss that is not finite, to move the progress bar and to look at the clock.
STRIDE = 25
STRIDE_SECONDS = 1.0


@dataclass(frozen=True)
class TrainResult:
    """How a run ended: `final` holds the evaluations of its last row."""

    finished: bool
    final: dict[str, float]
    iterations: int
    seconds_per_iteration: float


Strides = Generator[None, None, TrainResult]
"""A run that pauses after each stride that it has launched, before it waits for its losses."""


def train(
    model: nn.Module,
    dataset: Dataset,
    settings: Settings,
    seed: int,
    folder: RunFolder,
    logger: Logger,
    *,
    on_backward: Callable[[int], None] | None = None,
    graphs: graphed.Graphs | None = None,
) -> TrainResult:
    """Train `model` in place on cross entropy, resuming from the folder's checkpoint if any.

    What is in `eval()` in a model that is itself in training mode stays so.

    The caller holds `folder.open(...)`, writes the summary, and finishes the logger. `seed` alone
    decides the order of the data; the initial weights are the caller's. Row n of metrics.csv
    describes the model after n updates: `batch_loss` and `learning_rate` are those of update n,
    `train_loss` is over the whole original training set, `seconds` excludes evaluation.
    `on_backward(n)` is called when the backward pass of update n is about to start; a run that is
    so watched is never captured. `graphs` stands in for CUDA's.

    Raises:
        UsageError: a checkpoint that does not fit or a file that cannot be written.
        Diverged: a loss that is not finite; files written before stay.
    """
    run = strides(
        model, dataset, settings, seed, folder, logger, on_backward=on_backward, graphs=graphs
    )
    while True:
        try:
            next(run)
        except StopIteration as end:
            result: TrainResult = end.value
            return result


def strides(
    model: nn.Module,
    dataset: Dataset,
    settings: Settings,
    seed: int,
    folder: RunFolder,
    logger: Logger,
    *,
    on_backward: Callable[[int], None] | None = None,
    graphs: graphed.Graphs | None = None,
) -> Strides:
    """`train`, a stride at a time; the pauses do not count in `seconds`."""
    deadline = math.inf if settings.time_limit is None else time.monotonic() + settings.time_limit
    device = dataset.train_images.device
    size = len(dataset.train_labels)
    sampler = Sampler(size, settings.batch_size, seed, device, settings.bootstrap)
    graphs = graphed.CudaGraphs() if graphs is None else graphs
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = make_optimizer(parameters, settings, capturable=graphs.can_capture(device))
    progress = checkpoint.restore(folder, model, optimizer, sampler.generator)
    columns = [*COLUMNS, *(["bootstrap_loss"] if settings.bootstrap else [])]
    weights = sampler.multiplicities()
    if not model.training:
        model.train()

    def record(batch_loss: float | None) -> None:
        row = _row(model, dataset, settings, progress, batch_loss, weights)
        progress.rows.append(row)
        folder.write_metrics(progress.rows, columns)
        logger.log(row)

    for row in progress.rows:
        logger.log(row)
    if not progress.rows:
        record(None)
    bar = ProgressBar(settings.iterations, progress.iteration, device)
    numbers = count(progress.iteration + 1)
    watch = None if on_backward is None else lambda: on_backward(next(numbers))
    update = partial(_update, model, optimizer, dataset, sampler, settings, watch)
    if settings.cuda_graph and watch is None:
        tell = partial(bar.tell, folder.path)
        updates = graphed.updates(update, model, sampler.generator, graphs, tell)
    else:
        updates = graphed.eager(update)
    try:
        expired = False
        while progress.iteration < settings.iterations and not expired:
            losses = yield from _advance(updates, optimizer, settings, progress)
            bar.show(progress.iteration, losses[-1])
            if settings.tests_at(progress.iteration) or settings.trains_at(progress.iteration):
                record(losses[-1])
            expired = time.monotonic() >= deadline
            if expired or settings.checkpoints_at(progress.iteration):
                checkpoint.save(folder, model, optimizer, sampler.generator, progress)
    finally:
        bar.close()
    folder.write_metrics(progress.rows, columns)
    last = progress.rows[-1]
    return TrainResult(
        finished=progress.iteration == settings.iterations,
        final={key: value for key in columns[4:] if (value := last[key]) is not None},
        iterations=progress.iteration,
        seconds_per_iteration=progress.seconds / max(progress.iteration, 1),
    )


def _advance(
    updates: Iterator[Tensor], optimizer: Optimizer, settings: Settings, progress: Progress
) -> Generator[None, None, list[float]]:
    """Launch updates up to the next stop, pause, return their losses, all of them finite."""
    start = time.perf_counter()
    first = progress.iteration
    losses = []
    for step in range(first, _next_stop(settings, first)):
        rate = settings.learning_rate_at(step)
        if step == first or rate != settings.learning_rate_at(step - 1):
            set_learning_rate(optimizer, rate)
        losses.append(next(updates))
        if time.perf_counter() - start > STRIDE_SECONDS:
            break
    progress.seconds += time.perf_counter() - start
    yield
    start = time.perf_counter()
    values = torch.stack(losses).tolist()
    for iteration, value in enumerate(values, start=first + 1):
        _check_finite("the batch loss", value, iteration, settings)
    progress.iteration = first + len(values)
    progress.seconds += time.perf_counter() - start
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
    dataset: Dataset,
    sampler: Sampler,
    settings: Settings,
    on_backward: Callable[[], None] | None,
) -> Tensor:
    """Launch one update, without waiting; return the loss of its batch, detached."""
    optimizer.zero_grad(set_to_none=True)
    loss = _backward(model, dataset, sampler, on_backward)
    if settings.clip_norm is not None:
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
    optimizer.step()
    return loss


def _backward(
    model: nn.Module, dataset: Dataset, sampler: Sampler, on_backward: Callable[[], None] | None
) -> Tensor:
    """Put the gradient of one batch in place; return its loss, detached."""
    loss = _forward(model, dataset, sampler)
    if on_backward is not None:
        on_backward()
    loss.backward()
    return loss.detach()


def _forward(model: nn.Module, dataset: Dataset, sampler: Sampler) -> Tensor:
    images, labels = dataset.batch(sampler.draw())
    return F.cross_entropy(model(images), labels)


def _row(
    model: nn.Module,
    dataset: Dataset,
    settings: Settings,
    progress: Progress,
    batch_loss: float | None,
    weights: Tensor | None,
) -> Row:
    iteration = progress.iteration
    row: Row = dict.fromkeys(COLUMNS)
    row["iteration"] = iteration
    row["seconds"] = round(progress.seconds, 6)
    row["learning_rate"] = settings.learning_rate_at(max(iteration - 1, 0))
    row["batch_loss"] = batch_loss
    if weights is not None:
        row["bootstrap_loss"] = None
    if settings.trains_at(iteration):
        train = evaluate(model, dataset, "train", settings.evaluation_batch, weights)
        _check_finite("the training loss", train.loss, iteration, settings)
        row["train_loss"], row["train_accuracy"] = train.loss, train.accuracy
        if weights is not None:
            row["bootstrap_loss"] = train.weighted_loss
    if settings.tests_at(iteration):
        test = evaluate(model, dataset, "test", settings.evaluation_batch)
        _check_finite("the test loss", test.loss, iteration, settings)
        row["test_loss"], row["test_accuracy"] = test.loss, test.accuracy
    return row


def _check_finite(what: str, value: float, iteration: int, settings: Settings) -> None:
    if not math.isfinite(value):
        raise Diverged(
            f"{what} is {value} at iteration {iteration}; lower the learning rate "
            f"(now {settings.learning_rate:g}), clip the gradient, or raise the budget"
        )
