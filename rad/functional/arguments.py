"""What operators accept: sizes as torch takes them, real floating-point numbers."""

from __future__ import annotations

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
