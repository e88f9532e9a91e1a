"""The settings of a training run."""

import math
from dataclasses import dataclass
from typing import Any

from rad.errors import UsageError

OPTIMIZERS = ("adam", "sgd")


@dataclass(frozen=True)
class Settings:
    """The settings of `rad.training.train`; a period `..._every` counts iterations.

    With `micro_batch` a batch is worked through in parts of at most so many examples, as even as
    can be, whose gradients add up to the batch's.
    `weight_decay` is L2 in the gradient (Adam's own, not decoupled). The learning rate is
    multiplied by `decay_factor` every `decay_every` iterations. `clip_norm` bounds the gradient's
    norm over all parameters. `bootstrap` trains on a sample of the training set, of its size and
    with replacement. `train_loss_every` is `evaluate_every` where None. A checkpoint is due after
    `checkpoint_every` iterations and after `checkpoint_seconds`, whichever comes first (None: the
    former alone). `time_limit` is in seconds: the run then stops at a checkpoint, to be resumed.
    `cuda_graph` replays updates as a CUDA graph (`rad.training.cuda_graphs`), with the same
    results. `fused` updates each parameter in one kernel, as `rad.training.train` always does on
    CUDA devices: faster, and equal to rounding. `strict_resume` refuses to resume where code,
    versions, device or threads are not those that the run has had so far, which is otherwise said
    only.

    Raises:
        UsageError: a value that cannot be used.
    """

    iterations: int
    batch_size: int
    optimizer: str
    learning_rate: float
    weight_decay: float = 0.0
    decay_factor: float = 1.0
    decay_every: int | None = None
    clip_norm: float | None = None
    bootstrap: bool = False
    evaluate_every: int = 400
    train_loss_every: int | None = None
    checkpoint_every: int = 1000
    checkpoint_seconds: float | None = 60.0
    evaluation_batch: int = 1000
    time_limit: float | None = None
    cuda_graph: bool = False
    fused: bool = False
    strict_resume: bool = False
    micro_batch: int | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            choices = ", ".join(OPTIMIZERS)
            raise UsageError(f"unknown optimizer {self.optimizer!r}; choose one of {choices}")
        for name in ("bootstrap", "cuda_graph", "fused", "strict_resume"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"{name} is {getattr(self, name)!r}; set it to true or false")
        for name in (
            "iterations",
            "batch_size",
            "evaluate_every",
            "checkpoint_every",
            "evaluation_batch",
        ):
            _check_count(name, getattr(self, name))
        for name in ("decay_every", "train_loss_every", "micro_batch"):
            if getattr(self, name) is not None:
                _check_count(name, getattr(self, name))
        for name in ("learning_rate", "decay_factor"):
            _check_positive(name, getattr(self, name))
        for name in ("clip_norm", "time_limit", "checkpoint_seconds"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name))
        if self.weight_decay != 0:
            _check_positive("weight_decay", self.weight_decay)

    @property
    def parts(self) -> int:
        """In how many parts a batch is worked through."""
        return 1 if self.micro_batch is None else -(-self.batch_size // self.micro_batch)

    def learning_rate_at(self, step: int) -> float:
        """The learning rate of the update that follows `step` completed ones."""
        if self.decay_every is None:
            return self.learning_rate
        return self.learning_rate * self.decay_factor ** (step // self.decay_every)

    def tests_at(self, iteration: int) -> bool:
        """Whether the test set is evaluated after `iteration` updates."""
        return self._due(iteration, self.evaluate_every)

    def trains_at(self, iteration: int) -> bool:
        """Whether the whole training set is evaluated after `iteration` updates."""
        return self._due(iteration, self.train_loss_every or self.evaluate_every)

    def checkpoints_at(self, iteration: int) -> bool:
        """Whether a checkpoint is written after `iteration` updates."""
        return self._due(iteration, self.checkpoint_every)

    def rows_after(self, updates: int) -> dict[int, set[str]]:
        """The iterations evaluated once so many updates are done, and which splits each time."""
        periods = {self.evaluate_every, self.train_loss_every or self.evaluate_every}
        due = {n for period in periods for n in range(0, updates + 1, period)}
        due |= {self.iterations} if updates == self.iterations else set()
        tests, trains = self.tests_at, self.trains_at
        return {
            n: {split for split, at in (("train", trains), ("test", tests)) if at(n)} for n in due
        }

    def _due(self, iteration: int, period: int) -> bool:
        return iteration % period == 0 or iteration == self.iterations


def _check_count(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UsageError(f"{name} is {value!r}; set it to a whole number of at least 1")


def _check_positive(name: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        raise UsageError(f"{name} is {value!r}; set it to a finite number above 0")
