"""What a model is trained on: batches, their loss, and what is evaluated.

The loop asks a task for a batch of examples, puts its inputs through the model, and hands the
output back with the targets. It knows nothing else of either.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rad.data import Dataset, Text
from rad.errors import UsageError
from rad.training.ranks import ALONE, Ranks

SPLITS = ("train", "test")


class Batch(NamedTuple):
    """Some examples: `inputs` are the model's arguments, `targets` what its output should be.

    The first axis of each tensor counts the examples.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor


class Task(ABC):
    """Examples of a training and a test set on `device`, and a loss that is a mean over them.

    `metrics` names what is evaluated on a split, `loss` first; `<split>_<metric>` is a column of
    metrics.csv.
    """

    metrics: ClassVar[tuple[str, ...]]
    device: torch.device

    @abstractmethod
    def size(self, split: str = "train") -> int:
        """How many examples `split` has."""

    @abstractmethod
    def batch(self, indices: Tensor, split: str = "train") -> Batch:
        """The examples with those indices (B,), of which the task keeps no reference."""

    def training_batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Those training examples, changed at random where the task does so.

        The generator is that of the order of examples, saved with the run, on `device`.
        """
        return self.batch(indices)

    @abstractmethod
    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """The mean loss over the examples of a batch, to differentiate: ()."""

    @abstractmethod
    def scores(self, output: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """What is averaged over the examples of a split, each (B,); the loss first, float64."""

    def summarise(self, means: Sequence[float]) -> tuple[float, ...]:
        """The values of `metrics`, from the means of the scores: by default those means."""
        return tuple(means)

    def digest(self) -> str | None:
        """A digest of the examples, in hexadecimal digits; None where a task does without."""
        return None

    def first(self, count: int) -> Batch:
        """The first `count` training examples, again from the first where there are fewer."""
        return self.batch(torch.arange(count, device=self.device) % self.size())

    def loss_on(self, targets: Tensor) -> Callable[[Tensor], Tensor]:
        """The loss of an output for the first of `targets`, as many as it has examples.

        The targets are copied for it: so the graph alone keeps what it keeps, as in training.
        """
        return lambda output: self.loss(output, targets[: len(output)].clone())


class Classification(Task):
    """Each image has a class: mean cross entropy, and the fraction of correct predictions.

    Models give scores (B, classes).
    """

    metrics = ("loss", "accuracy")

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset
        self.device = dataset.train_images.device

    def size(self, split: str = "train") -> int:
        """How many images `split` has."""
        dataset = self.dataset
        return len(dataset.train_labels if split == "train" else dataset.test_labels)

    def digest(self) -> str:
        """That of the data set."""
        return self.dataset.digest

    def batch(self, indices: Tensor, split: str = "train") -> Batch:
        """Images (B, *image_shape) and their labels (B,)."""
        images, labels = self.dataset.batch(indices, split)
        return Batch((images,), labels)

    def training_batch(self, indices: Tensor, generator: torch.Generator) -> Batch:
        """Images as the data set augments them, and their labels."""
        if self.dataset.augment is None:
            return self.batch(indices)
        images, labels = self.dataset.batch(indices, generator=generator)
        return Batch((images,), labels)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy."""
        return F.cross_entropy(output, targets)

    def scores(self, output: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """Cross entropy, and whether the label has the highest score."""
        losses = F.cross_entropy(output, targets, reduction="none").double()
        return losses, output.argmax(-1) == targets


class NextToken(Task):
    """Each token of a text is predicted from those before it, in blocks of `length` tokens.

    An example is a block. Models take tokens (B, length) and give scores (B, length, vocabulary)
    for the next ones. The loss is the mean cross entropy of a token, in nats.

    Raises:
        UsageError: a split without a whole block.
    """

    metrics = ("loss", "bits_per_token")

    def __init__(self, text: Text, length: int) -> None:
        self.text, self.length = text, length
        self.device = text.train_tokens.device
        if type(length) is not int or length < 1:
            raise UsageError(f"length is {length!r}; set it to a whole number of at least 1")
        for split in SPLITS:
            if self.size(split) < 1:
                raise UsageError(
                    f"the {split} set of {text.name} has no block of {length} tokens and one more; "
                    "choose a shorter length or a longer text"
                )

    def size(self, split: str = "train") -> int:
        """How many blocks `split` has."""
        return self.text.count(self.length, split)

    def digest(self) -> str:
        """That of the text."""
        return self.text.digest

    def batch(self, indices: Tensor, split: str = "train") -> Batch:
        """Tokens (B, length) and the next ones, of the same shape."""
        tokens, following = self.text.blocks(indices, self.length, split)
        return Batch((tokens,), following)

    def loss(self, output: Tensor, targets: Tensor) -> Tensor:
        """Mean cross entropy of a token."""
        return F.cross_entropy(output.flatten(0, 1), targets.flatten())

    def scores(self, output: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
        """The mean cross entropy of a token in each block."""
        return (F.cross_entropy(output.mT, targets, reduction="none").double().mean(1),)

    def summarise(self, means: Sequence[float]) -> tuple[float, ...]:
        """The loss, and what it is in bits."""
        return means[0], means[0] / math.log(2)


def task_of(task: Task | Dataset | Text) -> Task:
    """The task itself; for labelled images their `Classification`, for a text its `NextToken`.

    Raises:
        UsageError: a text that does not say what context its blocks have.
    """
    if isinstance(task, Dataset):
        return Classification(task)
    if not isinstance(task, Text):
        return task
    if task.context is None:
        raise UsageError(f"the text {task.name} has no context: train on NextToken(text, length)")
    return NextToken(task, task.context)


@dataclass(frozen=True)
class Evaluation:
    """The task's metrics on a split, and the weighted mean of the loss, if asked for."""

    metrics: dict[str, float]
    weighted_loss: float | None = None


@torch.no_grad()
def evaluate(
    model: nn.Module,
    task: Task,
    split: str,
    batch_size: int,
    weights: Tensor | None = None,
    ranks: Ranks = ALONE,
) -> Evaluation:
    """Evaluate `model` under `eval()` on all of `split`; each module's mode is then restored.

    `weights` (N,) weigh the examples in `weighted_loss`. Sums run in float64 on the device, which
    is waited for once. Of several `ranks` each goes through its part, in as many passes
    as the others, and all get the same; buffers are those of the first.
    """
    count = task.size(split)
    own = ranks.part(count)
    ranks.align(model)
    sums = torch.zeros((), dtype=torch.float64, device=task.device)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        for start in range(own.start, own.start + ranks.largest_part(count), batch_size):
            spare = start == own.stop  # a pass for those who have one example more
            first, end = start - spare, min(start + batch_size, own.stop)
            indices = torch.arange(first, end, device=task.device)
            inputs, targets = task.batch(indices, split)
            scores = task.scores(model(*inputs), targets)
            parts = [score.sum(dtype=torch.float64) for score in scores]
            if weights is not None:
                parts.append(scores[0] @ weights[indices].double())
            sums = sums if spare else sums + torch.stack(parts)
    finally:
        for module, training in modes.items():
            module.training = training
    totals = ranks.total(sums).tolist()
    weighted = None if weights is None else totals.pop() / weights.sum().item()
    values = task.summarise([total / count for total in totals])
    return Evaluation(dict(zip(task.metrics, values, strict=True)), weighted)
