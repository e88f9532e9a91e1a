"""The programs that scripts/benchmark.py compares: each is one forward and backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
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

    def step(self) -> None:
        """Forward and backward; gradients start afresh."""
        self.model.zero_grad(set_to_none=True)
        self.loss().backward()


def programs(network: str, keep: float, batch: int, device: torch.device) -> dict[str, Program]:
    """Plain torch first, then its competitors, on random data of the network's usual shape."""
    shape = SHAPES[network]
    model = models.build(network, shape, CLASSES, seed=0).to(device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, *shape, generator=generator).to(device)
    y = torch.randint(CLASSES, (batch,), generator=generator).to(device)

    def program(model: nn.Module, size: int = batch, forward: Any = None) -> Program:
        labels = y[:size].clone()
        run = forward or model
        # A fresh batch, as in training: nobody but the graph keeps it alive.
        return Program(model, size, lambda: F.cross_entropy(run(x[:size].clone()), labels))

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
