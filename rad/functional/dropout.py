"""Dropout that remembers its key: the mask is drawn again in the backward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from rad.backends.operators import opaque
from rad.draws.reference import lanes

LEVELS = 1 << 16
"""Probabilities are multiples of 1 / LEVELS."""

PIECE = 1 << 16
"""Numbers whose mask is drawn at a time: its words stay in a core's cache."""

DEVICE_PIECE = 1 << 20
"""The same on a GPU, where few large operators are faster."""


class _KeyedDropout(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, kept_levels: int, key: Tensor) -> Tensor:
        ctx.kept_levels = kept_levels
        ctx.save_for_backward(key)
        return drop(x, kept_levels, key)

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, None, None]:
        (key,) = ctx.saved_tensors
        return drop(grad_output, ctx.kept_levels, key), None, None


@opaque()
def drop(x: Tensor, kept_levels: int, key: Tensor) -> Tensor:
    """x with all but a random `kept_levels` / 2**16 of its numbers set to 0, those kept scaled up.

    What is dropped is a function of the key and of the number's place in a contiguous x.
    """
    scaled = x * (LEVELS / max(kept_levels, 1))
    for first, part in _parts(scaled, PIECE if x.is_cpu else DEVICE_PIECE):
        dropped = lanes(key, part.numel(), first) >= kept_levels
        part.masked_fill_(dropped.view(part.shape), 0)
    return scaled


def _parts(x: Tensor, size: int, first: int = 0) -> Iterator[tuple[int, Tensor]]:
    """Views of at most `size` numbers that make up x, and the place of the first in each.

    Places count as in a contiguous tensor, whatever the strides of x.
    """
    if x.numel() <= size:
        yield first, x
        return
    x = x.view(-1) if x.is_contiguous() else x
    each = x[0].numel()
    step = max(1, size // each)
    for start in range(0, len(x), step):
        part = x[start] if each > size else x[start : start + step]
        yield from _parts(part, size, first + start * each)


def random_key(device: torch.device) -> Tensor:
    """A key, one draw from torch's global generator: int64, ()."""
    return _random_like(torch.empty((), dtype=torch.int64, device=device))


@opaque(torch.Tag.nondeterministic_seeded)
def _random_like(place: Tensor) -> Tensor:
    """A draw that no compiler takes for another's, since none of theirs has the same `place`."""
    return torch.empty_like(place).random_()


def dropout(x: Tensor, p: float = 0.5, *, key: Tensor) -> Tensor:
    """Zero each element with probability p and scale the rest by 1 / (1 - p).

    The mask is a function of the key and the element's place in a contiguous x, so
    nothing but the key is kept. p is rounded to a multiple of 2**-16, and the scale
    follows the rounded p. Any shape; with p = 0 the result is x itself, as in
    torch. Raises ValueError unless 0 <= p <= 1.
    """
    if not 0 <= p <= 1:
        raise ValueError(f"dropout probability must lie in [0, 1], got {p}")
    if p == 0:
        return x
    result: Tensor = _KeyedDropout.apply(x, round((1 - p) * LEVELS), key)
    return result
