"""A sequence of layers, whose linear layers and ReLUs run together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _has_any_global_hook

from rad import backends, functional
from rad.functional.linear_relu import Stage
from rad.nn.activation import ReLU
from rad.nn.linear import Linear
from rad.packing.bits import FLOATS
from rad.sketches import Identity

HELD = 1 << 18
"""The most bytes of a ReLU's output, where it is kept, and of the gradient by it, that may live
until the layer before it is done, too; each by itself would let go of them."""

TOGETHER = 1 << 19
"""The most bytes of weights and inputs of layers after the first: their gradients are handed on,
and what was kept of inputs is let go, when all are done."""


class Sequential(nn.Sequential):
    """`torch.nn.Sequential`, whose linear layers and ReLUs run together where nobody looks between.

    On the CPU in training, a `rad.nn.Linear`, the `rad.nn.ReLU` after it and, as long as they are
    small, further such layers are one function for autograd (`rad.functional.linear_relu`):
    results, draws, gradients and bytes kept are those of the layers one by one, at less time.
    Modules with hooks, parametrizations or a replaced `forward` run by themselves, and so do all
    under autocast, `torch.compile` and torch's transforms.

    Shapes: as of the layers.
    """

    def forward(self, input: Any) -> Any:
        if not (self.training and _can_run_together(input)):
            return super().forward(input)
        layers, place, is_new = list(self._modules.values()), 0, False
        while place < len(layers):
            run = _run(layers, place, input) if isinstance(input, Tensor) else []
            if len(run) < 2:
                input = layers[place](input)
                place, is_new = place + 1, False
            else:
                input = _together(run, input, is_new)
                place, is_new = place + len(run), True
        return input


def _can_run_together(x: Any) -> bool:
    plain = type(x) in (Tensor, nn.Parameter) and x.dim() > 1 and x.dtype in FLOATS
    return (
        plain
        and torch.is_grad_enabled()
        and backends.in_loops(x)
        and not torch.is_autocast_enabled("cpu")
        and not torch._C._are_functorch_transforms_active()
        and not _has_any_global_hook()
        and not torch.jit.is_tracing()
    )


Run = list[Linear | ReLU]


def _run(layers: Sequence[nn.Module | None], place: int, x: Tensor) -> Run:
    """The layers from that place on that can run together on x: a linear layer first."""
    run: Run = []
    rows, nbytes = x.shape[:-1].numel(), 0
    for layer in layers[place:]:
        if _is_plain(layer, ReLU):
            if not (run and isinstance(run[-1], Linear)):
                break
            output = rows * run[-1].out_features * x.itemsize
            if output * (2 if layer.output_kept else 1) > HELD:
                break
            run.append(layer)
            if layer.output_kept:
                break
            continue
        if not (_is_plain(layer, Linear) and _is_trained(layer, x)):
            break
        if run:
            nbytes += layer.weight.nbytes + rows * layer.in_features * x.itemsize
            if isinstance(layer.sketch, Identity) or nbytes > TOGETHER:
                break
        run.append(layer)
    return run


Kind = TypeVar("Kind", bound=nn.Module)


def _is_plain(layer: nn.Module | None, kind: type[Kind]) -> TypeGuard[Kind]:
    """Whether a layer of that kind is in training, and nobody sees or changes its calls."""
    if type(layer) is not kind:  # a subclass may compute something else
        return False
    own = layer.__dict__
    seen = (
        own["_forward_hooks"]
        or own["_forward_pre_hooks"]
        or own["_backward_hooks"]
        or own["_backward_pre_hooks"]
    )
    return layer.training and not seen and "forward" not in own


def _is_trained(layer: Linear, x: Tensor) -> bool:
    """Whether its parameters are plain tensors of x's type, and its weight is trained."""
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    return (
        type(weight) is nn.Parameter
        and weight.requires_grad
        and weight.dtype == x.dtype
        and weight.is_cpu
        and weight.shape[1] > 0
        and (bias is None or (type(bias) is nn.Parameter and bias.dtype == x.dtype))
    )


def _together(run: Run, x: Tensor, is_new: bool) -> Tensor:
    """What the layers make of x, which no other layer reads if it `is_new`."""
    stages, kept = [], None
    for layer, after in zip(run, [*run[1:], None], strict=True):
        if isinstance(layer, ReLU):
            continue
        weight, bias = layer._parameters["weight"], layer._parameters["bias"]
        assert weight is not None
        if kept is None and not is_new:
            key, kept = layer.key_and_kept(x, weight, functional.keep_for_linear)
        else:
            key = layer.draw_key()
            kept = kept or functional.keep_for_linear(x, weight, layer.sketch, key)
        mask = after.mask if isinstance(after, ReLU) else None
        stages.append(Stage(weight, bias, layer.sketch, key, mask))
    assert kept is not None
    return functional.linear_relu(x, stages, kept)
