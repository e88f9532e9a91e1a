"""Measuring what a model would take, without touching it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from typing import Any, Literal, Self, TypeVar, get_args

import torch
from torch import Tensor, nn

from rad.conversion.copies import duplicated
from rad.conversion.example import (
    Batch,
    check_loss,
    check_model,
    check_real_memory,
    read_example,
)
from rad.conversion.modules import Conversion
from rad.conversion.report import Report, report
from rad.errors import UsageError
from rad.memory.measure import parameter_bytes, peak_bytes, saved_bytes
from rad.nn import Sketching
from rad.nn.layer_io import Capture, Recording, outside_calls
from rad.nn.registry import operator_of
from rad.nn.slices import unsliced
from rad.planning.batch_axis import (
    Sizes,
    batch_sizes,
    find_batch,
    given_batch,
    leading_sizes,
    likely_batch,
)
from rad.planning.checks import check_gradients, check_recomputation
from rad.planning.plan import Memory
from rad.sketches import Identity, Sketch
from rad.sketches.base import Shape

Found = TypeVar("Found")
Loss = Callable[[Any], Tensor]
Kind = Literal["saved", "peak"]
KINDS = get_args(Kind)
Sketches = Sketch | Mapping[str, Sketch]


class Trial:
    """Measures a copy of a model on an example, with any sketches and any smaller batch.

    `example` holds the model's inputs at the full batch size (`read_example`), along the axes
    `batch_axis` where they are given (`rad.planning.batch_axis.given_batch`); `loss` maps the
    output, whatever that is, to a scalar. Bytes are those of the parameters plus, by `kind`,
    everything saved for backward, or the peak of a forward and backward pass, gradients included.
    `path` is the sketch of what lies on the gradient's path, in all that is measured from then on.
    Modules named in `recomputed` are recomputed in the backward pass (`rad.nn.recomputing`).
    With `accumulates` a smaller batch is a part of the full one, to whose gradient it adds its own:
    it counts in the peak, too.
    Every module is in the mode that it has in the model. Raises UsageError for another `kind`, for
    inputs without a batch, for a model that is none, is lazy, or is in evaluation mode as a whole,
    and where there are no numbers (meta device).
    """

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        loss: Loss,
        kind: Kind = "saved",
        batch_axis: Any = None,
        recomputed: Collection[str] = (),
    ) -> None:
        if kind not in KINDS:
            raise UsageError(f"unknown kind of budget {kind!r}: choose one of {', '.join(KINDS)}")
        check_model(model)
        self.example, self.loss, self.kind = read_example(example), loss, kind
        self._check_memory(model)
        if not any(module.training for module in model.modules()):
            raise UsageError(
                "the model is in evaluation mode, where nothing is sketched: call model.train() "
                "first (of what is then left in eval() the plan counts what torch keeps)"
            )
        self._given = None if batch_axis is None else given_batch(self.example, batch_axis)
        self.parameter_bytes = parameter_bytes(model)
        self.path: Sketch | None = None
        self.accumulates = False
        self._found: dict[Callable[[Trial], Any], Any] = {}
        self.recomputed = tuple(recomputed)
        self._arguments = (model, example, loss, kind, batch_axis)
        self._conversion = Conversion(self._copy(), recomputed=recomputed)
        self._devices = {t.device for t in self.example.tensors if t.is_cuda}

    def recomputing(self, names: Collection[str]) -> Self:
        """A trial of another copy of the model, in which those modules are recomputed."""
        return type(self)(*self._arguments, recomputed=names)

    def _check_memory(self, model: nn.Module) -> None:
        check_real_memory(model, self.example.tensors)

    def _copy(self) -> nn.Module:
        remedy = "plan for a model without what stands in the way"
        return duplicated(self._arguments[0], remedy)

    @property
    def model(self) -> nn.Module:
        """The converted copy."""
        return self._conversion.model

    def step(self, sketch: Sketches) -> Callable[[], None]:
        """A forward and backward pass with those sketches and the path of now, for timing."""
        forward = self._forward(sketch, self.full_batch)
        return lambda: self._backward(forward, self.model)

    def plain_step(self) -> Callable[[], None]:
        """A forward and backward pass of the model as it was given."""
        model = self._copy()
        return lambda: self._backward(self._forward_of(model), model)

    def memory_of(self, prepare: Callable[[nn.Module], None]) -> Memory:
        """All three figures of the model as it was given, but for what `prepare` does to a copy."""
        model = self._copy()
        prepare(model)
        forward = self._forward_of(model)
        self._backward(forward, model)  # the first pass may compile
        peak = peak_bytes(lambda: self._backward(forward, model))
        return Memory(self.parameter_bytes, saved_bytes(forward), peak)

    def _forward_of(self, model: nn.Module) -> Callable[[], Tensor]:
        def forward() -> Tensor:
            with torch.random.fork_rng(self._devices):
                loss = self.loss(self.example.call(model))
            check_loss(loss)
            return loss

        return forward

    def exact_loss(self) -> Tensor:
        """The loss of a forward pass that keeps everything exactly."""
        return self.with_path(None, lambda: self._forward(Identity(), self.full_batch))()

    def exact_bytes(self) -> int:
        """`total_bytes` where everything is kept exactly, but for what is recomputed."""
        return self.with_path(None, lambda: self.total_bytes(Identity(), self.full_batch))

    @property
    def full_batch(self) -> int:
        """The number of examples: as given, as found by `batch`, or until then the likely one."""
        found: Batch | None = self._given or vars(self).get("batch")
        return self._likely_batch if found is None else found.size

    @cached_property
    def _likely_batch(self) -> int:
        return likely_batch(self.example, self._seen)

    @cached_property
    def batch(self) -> Batch:
        """What smaller batches are cut from.

        Raises UsageError where that is ambiguous.
        """
        if self._given is None:
            return find_batch(self.example, self._seen, self._attempt)
        return self._given

    @property
    def sketches(self) -> bool:
        """Whether any layer would sketch: one in training mode whose weight is trained."""
        return any(
            layer.training and parameter.requires_grad
            for layer in self.layers.values()
            for name, parameter in layer.named_parameters()
            if "weight" in name
        )

    @property
    def layers(self) -> dict[str, Sketching]:
        """The layers that sketch the input of a weight, by name."""
        layers = self._conversion.sketching
        return {name: layer for name, layer in layers.items() if list(layer.parameters())}

    def total_bytes(self, sketch: Sketches, batch: int) -> int:
        """Parameter bytes plus saved or peak bytes."""
        forward = self._forward(sketch, batch)
        if self.kind == "peak":
            return self.parameter_bytes + self._peak(forward, batch)
        return self.parameter_bytes + saved_bytes(forward)

    def memory(self, sketch: Sketches, batch: int) -> Memory:
        """All three figures."""
        forward = self._forward(sketch, batch)
        return Memory(self.parameter_bytes, saved_bytes(forward), self._peak(forward, batch))

    def report(self, sketch: Sketches) -> Report:
        """What is replaced and what is not."""
        self._conversion.assign(sketch, path=self.path)
        return report(self.model)

    @property
    def keeps_sketches(self) -> bool:
        """Whether a forward pass leaves anything sketched."""
        return any(self.shapes().values())

    def shapes(self) -> dict[str, list[Shape]]:
        """For each layer the shapes of the tensors that it sketches."""
        recorders = {name: Recording() for name in self.layers}
        with unsliced(self.model):
            self._forward(recorders, self.full_batch)()
        return {name: recorder.shapes for name, recorder in recorders.items()}

    def widths(self) -> dict[str, set[int]]:
        """For each layer the sizes d of the axes that sketches act on in it."""
        return {name: {shape[-1] for shape in shapes} for name, shapes in self.shapes().items()}

    def inputs_and_gradients(self) -> dict[str, list[tuple[Tensor, Tensor]]]:
        """For each layer and call, its input and the gradient of the loss by its output.

        A recurrent layer makes a call for each step and each weight whose input it sketches; the
        gradient is that by what enters the activation.
        Raises UsageError where the gradient is zero everywhere, or not finite somewhere, and for a
        layer that sketches in a call that cannot be watched, such as of its `forward`.
        """
        steps = {n: Recording() for n, layer in self.layers.items() if _is_stepwise(layer)}
        with Capture(self.layers) as seen:
            self._backward(self._forward(steps, self.full_batch), self.model)
        self._check_watched({name for name in self.layers if name not in steps})
        found = seen.pairs | {name: each.products for name, each in steps.items()}
        check_gradients({name: [g for _, g in calls] for name, calls in found.items()})
        return found

    def once(self, find: Callable[[Trial], Found]) -> Found:
        """`find(self)`, found once: with the path of then."""
        if find not in self._found:
            self._found[find] = find(self)
        found: Found = self._found[find]
        return found

    def gradient_error(self, sketch: Sketches, draws: int = 4) -> float:
        """E |g_hat - g|^2 / |g|^2 of the whole gradient, measured: a mean over that many draws."""
        exact = self.once(Trial.exact_gradient)
        found = [self._gradient(sketch, seed, self.path) for seed in range(draws)]
        squares = sum((estimate - exact).square().sum().item() for estimate in found) / draws
        return squares / exact.square().sum().item()

    def with_path(self, path: Sketch | None, find: Callable[[], Found]) -> Found:
        """`find()`, with that path."""
        before, self.path = self.path, path
        try:
            return find()
        finally:
            self.path = before

    def exact_gradient(self) -> Tensor:
        """The gradient by all trained parameters where everything is kept exactly: float64."""
        return self._gradient(Identity(), 0, Identity())

    def _gradient(self, sketch: Sketches, seed: int, path: Sketch | None) -> Tensor:
        """The gradient by all trained parameters, in a row: float64."""
        loss = self.with_path(path, lambda: self._forward(sketch, self.full_batch, seed))()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        grads = torch.autograd.grad(loss, trained, allow_unused=True)
        return torch.cat([g.flatten().double() for g in grads if g is not None])

    def _check_watched(self, names: set[str]) -> None:
        """Refuse layers of those names that sketch where their calls, which are watched, do not."""
        recorders = {name: Recording() for name in sorted(names)}
        forward = self._forward(recorders, self.full_batch)
        with outside_calls({name: self.layers[name] for name in names}):
            self._backward(forward, self.model)
        for name, recorder in recorders.items():
            if recorder.shapes:
                raise UsageError(
                    f"layer {name!r} is used past its call, which cannot be watched: call the "
                    "layer, not its forward()"
                )

    @cached_property
    def _seen(self) -> Sizes:
        """The sizes in a pass on all examples."""
        self._conversion.assign(Identity())
        model = self.model
        with batch_sizes(model) as layers, torch.random.fork_rng(self._devices):
            outputs = leading_sizes(self.example.call(model))
        return Sizes(tuple(layers), outputs)

    def _attempt(self, batch: Batch, size: int) -> tuple[Sizes, int] | None:
        """The sizes in a pass on some of the examples, and its bytes; None where it fails."""
        model, outputs = self.model, list[int]()

        def forward() -> Tensor:
            output = self.example.call(model, batch, size)
            outputs.extend(leading_sizes(output))
            return self.loss(output)

        self._conversion.assign(Identity())
        try:
            with batch_sizes(model) as layers, torch.random.fork_rng(self._devices):
                nbytes = saved_bytes(forward)
        except Exception:  # whatever the user's model and loss may raise
            return None
        return Sizes(tuple(layers), tuple(outputs)), nbytes

    def _peak(self, forward: Callable[[], Tensor], batch: int) -> int:
        passes = 2 if self.accumulates and batch < self.full_batch else 1
        return peak_bytes(lambda: self._backward(forward, self.model, passes))

    def _backward(self, forward: Callable[[], Tensor], model: nn.Module, passes: int = 1) -> None:
        model.zero_grad(set_to_none=True)
        # Gradients of nothing else: the loss may reach what is not the copy's.
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        for _ in range(passes):
            forward().backward(inputs=trained)
        model.zero_grad(set_to_none=True)

    def _forward(self, sketch: Sketches, batch: int, seed: int = 0) -> Callable[[], Tensor]:
        cut = None if batch == self.full_batch else self.batch
        self._conversion.assign(sketch, seed, self.path)

        def forward() -> Tensor:
            with torch.random.fork_rng(self._devices):
                loss = self.loss(self.example.call(self.model, cut, batch))
            check_loss(loss)
            check_recomputation(loss)
            return loss

        return forward


def _is_stepwise(layer: Sketching) -> bool:
    row = operator_of(layer)
    return row is not None and row.stepwise
