"""The programs that are compared with each other: each is one forward and backward pass."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import rad
from rad.benchmarks.dense_reference import dense_reference
from rad.benchmarks.networks import NETWORKS
from rad.errors import UsageError
from rad.planning import variants
from rad.sketches import DifferentSample, Identity
from rad.sketches.registry import kinds
from rad.training import Task

SAMPLED = ("same_sample", "different_sample", "project")
"""Kinds of sketch at the keep fraction itself."""

IN_SLICES = "_in_slices"
"""Ending of programs that work through their batch in slices."""

COMPARED = (
    *("torch", "lean_exact", *SAMPLED, f"different_sample{IN_SLICES}", "stochastic_rounding"),
    *("reduced_batch", "checkpointing", "dense_reference"),
)
"""What is compared unless something else is asked for."""

FITTED = ("stochastic_rounding", "dithered_rounding", "sampled_rounding", "auto")
"""Variants of `rad.planning.variants` in the bytes of samples."""

PROGRAMS = (*COMPARED, *FITTED[1:], f"same_sample{IN_SLICES}", "accumulation", "compiled")
PRECISIONS = {"float32": None, "bf16": torch.bfloat16}
"""What autocast computes in; None: no autocast."""


Criterion = Callable[[Tensor, Tensor], Tensor]
"""The mean loss of an output and targets, such as that of a `rad.training.Task`."""


@dataclass(frozen=True)
class Program:
    """A mean loss to differentiate with respect to the parameters of a model.

    `data` are inputs and targets; `forward` maps a batch to an output, under autocast to `lower`.
    """

    model: nn.Module
    forward: Callable[[Tensor], Tensor]
    data: tuple[Tensor, Tensor]
    lower: torch.dtype | None = None
    criterion: Criterion = F.cross_entropy

    @property
    def batch_size(self) -> int:
        """Examples of a step."""
        return len(self.data[1])

    def loss(self) -> Tensor:
        """Forward, on a fresh batch as in training: nobody but the graph keeps it alive."""
        return self._loss(*self.data)

    def step(self) -> None:
        """Forward and backward; gradients start afresh."""
        self.clear()
        self.loss().backward()

    def clear(self) -> None:
        """Forget the gradients."""
        self.model.zero_grad(set_to_none=True)

    def _loss(self, x: Tensor, targets: Tensor) -> Tensor:
        with autocast(x.device, self.lower):
            return self.criterion(self.forward(x.clone()), targets)


@dataclass(frozen=True, kw_only=True)
class Accumulated(Program):
    """The same in parts of at most `part` examples, each with its own backward pass."""

    part: int

    def loss(self) -> Tensor:
        """Forward of the first part."""
        return self._loss(*(tensor[: self.part] for tensor in self.data))

    def step(self) -> None:
        """Forward and backward of all parts; gradients start afresh."""
        self.clear()
        for x, targets in zip(*(tensor.split(self.part) for tensor in self.data), strict=True):
            (self._loss(x, targets) * (len(targets) / self.batch_size)).backward()


def autocast(device: torch.device, lower: torch.dtype | None) -> AbstractContextManager[object]:
    """torch's, to that dtype; nothing for None."""
    return nullcontext() if lower is None else torch.autocast(device.type, dtype=lower)


def programs(
    network: str,
    keep: float,
    batch: int,
    device: torch.device,
    *,
    names: Sequence[str] = COMPARED,
    shape: tuple[int, ...] | None = None,
    precision: str = "float32",
) -> dict[str, Program]:
    """Those of PROGRAMS that are asked for, on random images of that or the usual shape.

    - `torch`, and the same network on the layers that sketch, `lean_exact` among them;
    - `reduced_batch` and those of FITTED: `rad.planning.variants` at the budget `keep`;
    - `checkpointing`: about the square root of its depth segments, recomputed for backward;
    - `dense_reference`: keeps a sketch, rebuilds the dense input, calls torch (float32 only);
    - `same_sample_in_slices`, `different_sample_in_slices`: those in slices of the reduced batch's
      size (`rad.slice_batches`);
    - `accumulation`: the full batch in parts of the reduced batch's size;
    - `compiled`: torch.compile with `activation_memory_budget=keep`.

    The last, slices and `dense_reference` are left out of networks with a recurrent layer, which
    torch does not compile and whose first axis is time. Raises UsageError for what is unknown.
    """
    for kind, given, known in (
        ("network", [network], NETWORKS),
        ("program", names, PROGRAMS),
        ("precision", [precision], PRECISIONS),
    ):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise UsageError(f"unknown {kind} {unknown[0]!r}: choose among {', '.join(known)}")
    chosen = NETWORKS[network] if shape is None else replace(NETWORKS[network], shape=shape)
    model = chosen.build().to(device)
    absent: set[str] = set()
    if any(isinstance(layer, nn.RNNBase) for layer in model.modules()):
        absent |= {"dense_reference", "compiled", *(n for n in PROGRAMS if n.endswith(IN_SLICES))}
    if precision != "float32":
        absent |= {"dense_reference"}
    maker = _Maker(model, chosen.batch(batch, device), keep, PRECISIONS[precision], chosen.loss)
    return {name: maker.make(name) for name in names if name not in absent}


def programs_of(
    model: nn.Module, task: Task, keep: float, batch: int, names: Sequence[str] = COMPARED
) -> dict[str, Program]:
    """The same for any model of one input and any task, on its first `batch` examples."""
    (x,), targets = task.first(batch)
    maker = _Maker(model, (x, targets), keep, None, task.loss)
    return {name: maker.make(name) for name in names}


@dataclass(frozen=True)
class _Maker:
    """Makes programs of one network, its data, keep fraction and precision."""

    model: nn.Module
    data: tuple[Tensor, Tensor]
    keep: float
    lower: torch.dtype | None
    criterion: Criterion = F.cross_entropy

    def make(self, name: str) -> Program:
        if name in FITTED:
            return self._fitted(name)
        if name.endswith(IN_SLICES):
            whole = self.make(name.removesuffix(IN_SLICES))
            return self._program(rad.slice_batches(whole.model, self._reduced.batch_size))
        if name in SAMPLED:
            return self._program(rad.convert(self.model, kinds()[name].make(self.keep)))
        match name:
            case "lean_exact":
                return self._program(rad.convert(self.model, Identity()))
            case "reduced_batch":
                return self._reduced
            case "checkpointing":
                model = copy.deepcopy(self.model)
                return self._program(model, _checkpointed(model))
            case "dense_reference":
                return self._program(dense_reference(self.model, DifferentSample(self.keep)))
            case "accumulation":
                model, part = rad.convert(self.model, Identity()), self._reduced.batch_size
                return Accumulated(model, model, self.data, self.lower, self.criterion, part=part)
            case "compiled":
                model = copy.deepcopy(self.model)
                return self._program(model, self._compiled(model))
        return self._program(self.model)

    def _program(
        self,
        model: nn.Module,
        forward: Callable[[Tensor], Tensor] | None = None,
        size: int | None = None,
    ) -> Program:
        x, targets = self.data
        data = (x[:size], targets[:size].clone())
        return Program(model, forward or model, data, self.lower, self.criterion)

    @cached_property
    def _reduced(self) -> Program:
        return self._fitted("reduced_batch")

    def _fitted(self, variant: str) -> Program:
        x, targets = self.data

        def loss(out: Tensor) -> Tensor:
            return self.criterion(out, targets[: len(out)].clone())

        with autocast(x.device, self.lower):
            built = variants.build(self.model, (x,), loss, variant, self.keep)
        return self._program(built.model, size=built.batch_size)

    def _compiled(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        compiled: Any = torch.compile(model)

        def forward(x: Tensor) -> Tensor:
            with functorch_config.patch(activation_memory_budget=self.keep):
                scores: Tensor = compiled(x)
            return scores

        return forward


def _checkpointed(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model in about square root of its depth segments, recomputed in the backward pass.

    A model says how it falls into segments: it is an `nn.Sequential`, or has a method
    `segmented(x, run)`, which runs each of them as `run(function, *tensors)`.
    """
    if isinstance(model, nn.Sequential):
        segments = round(math.sqrt(len(model)))
        return lambda x: checkpoint_sequential(model, segments, x, use_reentrant=False)
    segmented: Any = getattr(model, "segmented", None)
    if segmented is None:
        raise UsageError(
            f"{type(model).__name__} has no segments to recompute: make it an nn.Sequential, give "
            "it a method segmented(x, run), or leave out checkpointing"
        )
    return lambda x: segmented(x, partial(checkpoint, use_reentrant=False))
