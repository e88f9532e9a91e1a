"""What operators accept, and in which precision their sketches compute."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

Sizes = int | tuple[int, ...]


def each(value: Sizes, axes: int) -> tuple[int, ...]:
    """One integer an axis, given one for all or one for each."""
    return (value,) * axes if isinstance(value, int) else tuple(value)


def check_real(x: Tensor) -> None:
    """Raise TypeError unless x holds real floating-point numbers."""
    if not x.is_floating_point():
        raise TypeError(
            f"cannot sketch an input of {x.dtype}: give real floating-point numbers "
            "(complex ones as pairs of real ones, torch.view_as_real)"
        )


def check_biases(biases: Iterable[Tensor | None], rows: int) -> None:
    """Raise ValueError for biases of other shapes than (rows,)."""
    for bias in biases:
        if bias is not None and bias.shape != (rows,):
            raise ValueError(f"biases must be {(rows,)}, got {tuple(bias.shape)}")


def without_autocast(x: Tensor) -> AbstractContextManager[object]:
    """A context in which operators on x's device compute in the precision they are given."""
    kind = x.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which torch multiplies x here: autocast's, where it applies."""
    device = x.device.type
    if x.dtype != torch.float64 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return x.dtype
