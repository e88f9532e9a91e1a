"""The programs that scripts/benchmark.py compares: each is one forward and backward pass."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._functorch.config as functorch_config
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

import rad
from rad import models, variants
from rad.models.irnn import IRNN
from rad.sketches import DifferentSample, Identity, Project, SameSample, Sketch

SHAPES = {"feedforward": (1, 28, 28), "convnet": (3, 32, 32), "irnn": (1, 28, 28)}
CLASSES = 10


@dataclass(frozen=True)
class Program:
    """A loss to differentiate with respect to the parameters of a model."""

    model: nn.Module
    batch_size: int
    loss: Callable[[], Tensor]
    data: tuple[Tensor, Tensor]

    def step(self) -> None:
        """Forward and backward; gradients start afresh."""
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()


@dataclass(frozen=True)
class Accumulated(Program):
    """The mean loss of a batch in parts of `sizes` examples, each with its own backward pass."""

    parts: tuple[Callable[[], Tensor], ...]
    sizes: tuple[int, ...]

    def step(self) -> None:
        """Forward and backward of all parts; gradients start afresh."""
        self.model.zero_grad(set_to_none=True)
        for part, size in zip(self.parts, self.sizes, strict=True):
            (part() * (size / self.batch_size)).backward()


def programs(
    network: str,
    keep: float,
    batch: int,
    device: torch.device,
    *,
    shape: tuple[int, ...] | None = None,
) -> dict[str, Program]:
    """Plain torch first, then its competitors, on random data of that or the usual shape."""
    shape = shape or SHAPES[network]
    model = models.build(network, shape, CLASSES, seed=0).to(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *shape, generator=generator).to(device)
    y = torch.randint(CLASSES, (batch,), generator=generator).to(device)

    def program(model: nn.Module, size: int = batch, forward: Any = None) -> Program:
        labels = y[:size].clone()
        run = forward or model
        # A fresh batch, as in training: nobody but the graph keeps it alive.
        loss = lambda: F.cross_entropy(run(x[:size].clone()), labels)  # noqa: E731
        return Program(model, size, loss, (x[:size], labels))

    def fitted(variant: str) -> Program:
        def loss(out: Tensor) -> Tensor:
            return F.cross_entropy(out, y[: len(out)].clone())

        built = variants.build(model, (x,), loss, variant, keep)
        return program(built.model, built.batch_size)

    checkpointed = models.build(network, shape, CLASSES, seed=0).to(device)
    compared = {
        "torch": program(model),
        "lean_exact": program(rad.convert(model, Identity())),
        "same_sample": program(rad.convert(model, SameSample(keep))),
        "different_sample": program(rad.convert(model, DifferentSample(keep))),
        "project": program(rad.convert(model, Project(keep))),
        "stochastic_rounding": fitted("stochastic_rounding"),
        "reduced_batch": fitted("reduced_batch"),
        "checkpointing": program(checkpointed, forward=_checkpointed(checkpointed)),
    }
    if network != "irnn":
        dense = rad.convert(model, Identity())
        for layer in dense.modules():
            if isinstance(layer, rad.nn.Sketching):
                layer.forward = _Dense(layer, DifferentSample(keep))
        compared["dense_reference"] = program(dense)
    return compared


def alternatives(network: str, keep: float, compared: dict[str, Program]) -> dict[str, Program]:
    """Further ways to save memory with the exact gradient, on the data of `programs`.

    `accumulation` trains the full batch in parts of the reduced batch's size; `compiled` is
    torch.compile told to keep that fraction of the activations (torch compiles no recurrent
    layer, so not the IRNN).
    """
    lean, small = compared["lean_exact"], compared["reduced_batch"].batch_size
    x, labels = lean.data
    found: dict[str, Program] = {}
    parts = list(zip(x.split(small), labels.split(small), strict=True))

    def part(x: Tensor, labels: Tensor) -> Callable[[], Tensor]:
        return lambda: F.cross_entropy(lean.model(x.clone()), labels)

    losses = tuple(part(*of) for of in parts)
    sizes = tuple(len(of) for _, of in parts)
    found["accumulation"] = Accumulated(lean.model, len(x), losses[0], lean.data, losses, sizes)
    if network != "irnn":
        model = copy.deepcopy(compared["torch"].model)
        compiled = torch.compile(model)

        def loss() -> Tensor:
            with functorch_config.patch(activation_memory_budget=keep):
                return F.cross_entropy(compiled(x.clone()), labels)

        found["compiled"] = Program(model, len(x), loss, lean.data)
    return found


def _checkpointed(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The model in about square root of its depth segments, recomputed in the backward pass."""
    if isinstance(model, IRNN):
        return lambda x: _checkpointed_irnn(model, x)
    assert isinstance(model, nn.Sequential)
    return lambda x: checkpoint_sequential(model, 3, x, use_reentrant=False)


def _checkpointed_irnn(model: IRNN, x: Tensor) -> Tensor:
    steps = x.flatten(1).t().unsqueeze(2)
    state = steps.new_zeros(1, len(x), model.rnn.hidden_size)
    for segment in steps.split(28):
        state = checkpoint(lambda s, h: model.rnn(s, h)[1], segment, state, use_reentrant=False)
    logits: Tensor = model.output(state[-1])
    return logits


class _Dense:
    """The straightforward RAD layer: keep a sketch, rebuild the dense input, call torch."""

    def __init__(self, layer: rad.nn.Sketching, sketch: Sketch) -> None:
        self.layer, self.sketch = layer, sketch

    def __call__(self, x: Tensor) -> Tensor:
        result: Tensor = _DenseFunction.apply(
            x, self.layer.weight, self.layer.bias, self.layer, self.sketch, self.layer.next_key()
        )
        return result


class _DenseFunction(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, layer: Any, sketch: Sketch, key: Tensor
    ) -> Tensor:
        rows = x if x.dim() == 2 else x.flatten(2).flatten(0, 1)
        ctx.save_for_backward(weight, bias, key, *sketch.compress(rows, key))
        ctx.layer, ctx.sketch, ctx.shape, ctx.rows_shape = layer, sketch, x.shape, rows.shape
        return _exact(layer, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        weight, bias, key, *kept = ctx.saved_tensors
        dense = ctx.sketch.decompress(tuple(kept), ctx.rows_shape, weight.dtype, key)
        with torch.enable_grad():
            leaves = [dense.view(ctx.shape), weight.detach(), bias.detach()]
            x, weight, bias = (leaf.requires_grad_() for leaf in leaves)
            output = _exact(ctx.layer, x, weight, bias)
        wanted = [x, weight, bias] if ctx.needs_input_grad[0] else [weight, bias]
        grads = torch.autograd.grad(output, wanted, grad_output)
        return *((None,) * (3 - len(grads))), *grads, None, None, None


def _exact(layer: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    return F.conv2d(x, weight, bias, layer.stride, layer.padding)
