"""A sequence of layers that works through its batch a slice at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from rad.errors import UsageError
from rad.functional.slices import in_slices
from rad.nn.gated import GRU, LSTM
from rad.nn.kinds import kind_of
from rad.nn.normalization import WITH_STATISTICS
from rad.nn.recurrent import RNN
from rad.nn.registry import LAYERS, RAD_LAYERS
from rad.nn.sequential import Sequential
from rad.nn.softmax import Softmax

APART = frozenset(
    {
        *(kind for kind in LAYERS if not issubclass(kind, nn.RNNBase)),
        *RAD_LAYERS.difference((RNN, LSTM, GRU, Softmax), WITH_STATISTICS),
        *(nn.Identity, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm),
        *(nn.PReLU, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool3d),
    }
)
"""Layers that treat each example by itself, along the first axis."""

_SPATIAL = re.compile(r"(?:Conv|ConvTranspose|Pool)(\d)d$")
"""Layers that take an input of channels and so many axes of space without a batch, too."""


class Slices(Sequential):
    """`rad.nn.Sequential` that calculates its output for `size` examples at a time.

    Between forward and backward its layers keep what they keep anyway; what they need while they
    run is a slice's, in the forward pass and in the backward pass (`rad.functional.in_slices`).
    Layers that do not treat each example by itself, such as batch normalisation, run on the whole
    batch, and so do layers that are not known: runs of layers between them are sliced.
    A layer that sketches takes a key for each slice.

    Shapes: (B, ...) -> (B, ...), as of the layers. Raises UsageError unless `size` is a whole
    number of at least 1, or None, with which it is `rad.nn.Sequential`.
    """

    size: int | None

    def __init__(self, *layers: Any, size: int | None) -> None:
        super().__init__(*layers)
        self.set_size(size)

    def set_size(self, size: int | None) -> None:
        """Work on that many examples at a time from now on; None: on all."""
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise UsageError(f"slices of {size!r} examples: give a whole number of at least 1")
        self.size = size

    def forward(self, input: Any) -> Any:
        size = self.size
        if size is None or not isinstance(input, Tensor) or torch.compiler.is_compiling():
            return super().forward(input)
        for run, can_be_sliced in runs(self):
            if can_be_sliced and isinstance(input, Tensor) and has_batch_axis(run, input):
                input = in_slices(run, input, size)
            else:
                input = run(input)
        return input

    def extra_repr(self) -> str:
        return f"size={self.size}"


SEQUENCES = (nn.Sequential, Sequential, Slices)
"""Sequences that only call their layers in turn."""


def runs(layers: nn.Sequential) -> Iterator[tuple[nn.Sequential, bool]]:
    """The layers in order, in runs, and whether each can be sliced: else it is one layer.

    A layer that writes over its input starts no run, since a slice's input is a part of a tensor
    that others may read.
    """
    run: list[nn.Module] = []
    for layer in layers:
        if is_apart(layer) and (run or not _begins_in_place(layer)):
            run.append(layer)
            continue
        if run:
            yield Sequential(*run), True
        run = []
        yield nn.Sequential(layer), False
    if run:
        yield Sequential(*run), True


def _begins_in_place(layer: nn.Module) -> bool:
    while isinstance(layer, nn.Sequential) and len(layer):
        layer = layer[0]
    return bool(getattr(layer, "inplace", False))


def is_apart(layer: nn.Module) -> bool:
    """Whether a layer, or all in a sequence, treats each example by itself, along the first axis.

    Hooks of the user's would see a slice in place of the batch: what has one is not sliced.
    """
    hooks = (layer._forward_hooks, layer._forward_pre_hooks)
    if any((*hooks, layer._backward_hooks, layer._backward_pre_hooks)):
        return False
    kind = kind_of(layer)
    if kind in SEQUENCES:
        return all(map(is_apart, layer.children()))
    if isinstance(layer, nn.Flatten):
        return layer.start_dim > 0
    if isinstance(layer, nn.Unflatten):
        return isinstance(layer.dim, int) and layer.dim > 0
    return kind in APART and "forward" not in vars(layer)


def has_batch_axis(run: nn.Sequential, x: Tensor) -> bool:
    """Whether the first axis of what goes into a run of layers holds examples.

    It need not: a single image (C, H, W) may enter a convolution, or a single vector a linear
    layer.
    """
    for layer in run.modules():
        if isinstance(layer, nn.Flatten | nn.Unflatten | nn.GroupNorm | nn.Embedding):
            return x.dim() > 1
        if match := _SPATIAL.search(kind_of(layer).__name__):
            return x.dim() == int(match[1]) + 2
    return x.dim() > 1


@contextmanager
def unsliced(model: nn.Module) -> Iterator[None]:
    """Inside, all parts of the model work on whole batches."""
    sizes = {each: each.size for each in model.modules() if isinstance(each, Slices)}
    try:
        for each in sizes:
            each.size = None
        yield
    finally:
        for each, size in sizes.items():
            each.size = size
