"""Processes that train one model together, each on its part of every batch.

All draw the same batch, of which each keeps its part, and gradients are averaged. Each holds all
weights, or its part of them alone (`PARALLEL`). The first process decides, and alone writes; what
the clock or a signal asks of one is done by all after the same update.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from rad.errors import Diverged, ReportedElsewhere, UsageError, first_line
from rad.training.batches import seed_of
from rad.training.sharding import gathered, shard

T = TypeVar("T")
PARALLEL = ("ddp", "fsdp")
"""How several processes can train one run: each holds the whole model, or a part of it."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run: `count`, and the number of this one among them.

    By default it is alone: then nothing here does anything. `parallel` is one of `PARALLEL`.
    """

    rank: int = 0
    count: int = 1
    parallel: str = "ddp"

    @property
    def first(self) -> bool:
        """Whether this process decides and writes."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether each holds a part of the model."""
        return self.count > 1 and self.parallel == "fsdp"

    def say(self, text: str) -> None:
        """Print a line, once for all."""
        if self.first:
            print(text, flush=True)

    def decided(self, decide: Callable[[], T]) -> T:
        """What `decide` returns in the first process, or refuses, in all of them; pickled.

        Raises:
            UsageError: as `decide` does; in the others `ReportedElsewhere`.
        """
        if self.count == 1:
            return decide()
        outcome: list[Any] = [None, None]
        refused: UsageError | None = None
        if self.first:
            try:
                outcome[0] = decide()
            except UsageError as error:
                refused, outcome[1] = error, str(error)
        distributed.broadcast_object_list(outcome, src=0, device=torch.device("cpu"))
        if refused is not None:
            raise refused
        if outcome[1] is not None:
            raise ReportedElsewhere(outcome[1])
        return outcome[0]

    def after_first(self, make: Callable[[], T]) -> T:
        """What `make` returns here; the first process makes its own before the others start."""
        made: list[T] = []
        self.decided(lambda: made.append(make()))
        return made[0] if made else make()

    def most(self, *values: float) -> list[float]:
        """The largest of each value among all processes."""
        if self.count == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64)
        distributed.all_reduce(tensor, distributed.ReduceOp.MAX)
        return tensor.tolist()

    def total(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same in each."""
        if self.count > 1:
            value = value.clone()
            distributed.all_reduce(value)
        return value

    def part(self, size: int) -> slice:
        """Which of `size` examples are this process's; no two parts differ by more than one."""
        return slice(size * self.rank // self.count, size * (self.rank + 1) // self.count)

    def largest_part(self, size: int) -> int:
        """How many of `size` examples a process has at most."""
        return -(-size // self.count)

    def own(self, examples: Tensor) -> Tensor:
        """This process's part of a batch: a copy, so that the rest can be freed."""
        return examples if self.count == 1 else examples[self.part(len(examples))].clone()

    def weight(self, size: int) -> float:
        """What the mean over this process's part of so many counts in the mean of all means."""
        part = self.part(size)
        return (part.stop - part.start) * self.count / size

    def check(self, **sizes: int) -> None:
        """Raises UsageError where one of them is too small for each process to have an example."""
        for name, size in sizes.items():
            if size < self.count:
                word = f"the {name} has {size} examples for {self.count} processes; start fewer"
                raise UsageError(word) if self.first else ReportedElsewhere(word)

    def check_whole(self, parts: int) -> None:
        """Raises UsageError where several processes are to work through a batch in parts, too."""
        if parts > 1 and self.count > 1:
            word = (
                f"a batch is divided among {self.count} processes, and not in {parts} parts as "
                "well: choose another variant than accumulation, or one process"
            )
            raise UsageError(word) if self.first else ReportedElsewhere(word)

    def averaging(
        self, model: nn.Module, optimizer: Optimizer, blocks: Collection[str] = ()
    ) -> nn.Module:
        """The model, whose backward pass leaves the mean of all processes' gradients.

        Where it is to be sharded, it is so then, and the optimizer's state with it: by the modules
        named in `blocks`, as `rad.training.sharding.shard`.

        Raises:
            UsageError: as `shard`.
        """
        if self.count == 1:
            return model
        floats = any(buffer.is_floating_point() for buffer in model.buffers())
        if self.sharded:
            try:
                shard(model, optimizer, blocks, self.count)
            except UsageError as error:
                raise error if self.first else ReportedElsewhere(str(error)) from error
            if floats:
                model.register_forward_pre_hook(self._align_in_training)
            return model
        return DistributedDataParallel(
            model, broadcast_buffers=floats, gradient_as_bucket_view=True
        )

    def align(self, model: nn.Module) -> None:
        """Give floating-point buffers, such as running means, the values of the first process."""
        if self.count > 1:
            for buffer in filter(torch.is_floating_point, model.buffers()):
                distributed.broadcast(buffer, src=0)

    def _align_in_training(self, model: nn.Module, inputs: object) -> None:
        if model.training:
            self.align(model)

    def whole(self, state: Any) -> Any:
        """What a checkpoint holds of a model's or an optimizer's state; other than in the first
        process, where it is gathered, it lacks what is sharded."""
        return gathered(state, keep=self.first) if self.sharded else state

    def apart(self, update: Callable[[], T], seed: int, done: int) -> Callable[[], T]:
        """The update, for which torch's global generators start anew where this is not the first.

        What the model draws from them is then a function of seed, update and rank, so that no two
        processes draw alike and a resumed run draws as the unbroken one.
        """
        if self.first:
            return update
        numbers = count(done + 1)

        def own_draws() -> T:
            word = seed_of(seed, f"update {next(numbers)} of rank {self.rank}")
            torch.random.default_generator.manual_seed(word)
            if torch.cuda.is_initialized():
                torch.cuda.manual_seed(word)
            return update()

        return own_draws


ALONE = Ranks()

Meeting = tuple[distributed.Store, int, int]
"""A store that all processes see, this one's rank, and their count."""

REFUSED = {
    "finished reduction in the prior iteration": (
        "the model has parameters without a gradient, which training.parallel=ddp cannot "
        "average: freeze them, set training.parallel=fsdp, or train it in one process"
    ),
    "mixed torch.Tensor and DTensor": (
        "the model uses parameters of a block outside of that block's forward pass, where "
        "training.parallel=fsdp does not gather them: set training.parallel=ddp"
    ),
}
"""What torch says of a model that several processes cannot train -> what is said of it here."""


@contextmanager
def joined(device: torch.device, parallel: str, meet: Callable[[], Meeting]) -> Iterator[Ranks]:
    """All processes that torchrun has started: gloo between CPUs, NCCL between CUDA devices.

    Raises:
        UsageError: they do not find each other, or one is lost; what `meet` raises.
    """
    ranks = ALONE
    try:
        store, rank, count = meet()
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        distributed.init_process_group(backend, store=store, rank=rank, world_size=count)
        ranks = Ranks(rank, count, parallel)
        yield ranks
        with suppress(RuntimeError):  # nobody leaves before all have what they wait for
            ranks.most(0)
    except Diverged as error:  # in all of them, as they have the same losses
        if ranks.first:
            raise
        raise ReportedElsewhere(str(error)) from error
    except RuntimeError as error:
        for symptom, word in REFUSED.items():
            if symptom in str(error):
                raise UsageError(word) if ranks.first else ReportedElsewhere(word) from error
        if not isinstance(error, distributed.DistError) and "gloo" not in str(error):
            raise
        raise UsageError(
            f"another process of this run is lost ({first_line(error)[-120:]}); "
            "the same command goes on from the last checkpoint"
        ) from error
