"""Sizes as torch takes them: one integer for all axes, or one an axis."""

from __future__ import annotations

Sizes = int | tuple[int, ...]


def each(value: Sizes, axes: int) -> tuple[int, ...]:
    """One integer an axis."""
    return (value,) * axes if isinstance(value, int) else tuple(value)
