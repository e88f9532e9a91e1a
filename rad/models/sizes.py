"""What the models' makers refuse before torch meets it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rad.errors import UsageError


def check_sizes(**sizes: Any) -> None:
    """Raise UsageError unless each is a whole number of at least 1."""
    for name, size in sizes.items():
        if not _is_size(size):
            raise UsageError(f"{name} is {size!r}: give a whole number of at least 1")


def check_list(name: str, sizes: Any) -> None:
    """Raise UsageError unless these are a list of whole numbers of at least 1."""
    if not isinstance(sizes, Sequence) or isinstance(sizes, str):
        raise UsageError(f"{name} is {sizes!r}: give a list of whole numbers of at least 1")
    for size in sizes:
        if not _is_size(size):
            raise UsageError(f"{name} has {size!r}: give whole numbers of at least 1")


def check_images(input_shape: Any, what: str) -> None:
    """Raise UsageError unless `input_shape` is that of images, (C, H, W); `what` takes them."""
    check_list("input_shape", input_shape)
    if len(input_shape) != 3:
        raise UsageError(
            f"{what} takes images (C, H, W), not {tuple(input_shape)}: choose such data"
        )


def check_heads(width: int, heads: int) -> None:
    """Raise UsageError unless the heads divide the width."""
    check_sizes(width=width, heads=heads)
    if width % heads:
        raise UsageError(f"width {width} is no multiple of {heads} heads: choose others")


def check_std(std: Any) -> None:
    """Raise UsageError unless this is a standard deviation."""
    if isinstance(std, bool) or not isinstance(std, int | float) or not 0 <= std < math.inf:
        raise UsageError(f"std is {std!r}: give a finite number of at least 0")


def _is_size(size: Any) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1
