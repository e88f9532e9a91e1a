"""Numbers whose squares neither vanish nor overflow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

LARGEST_EXPONENT = 120


def normalised(x: Tensor) -> tuple[Tensor, float]:
    """x over a power of two that brings its largest magnitude near 1, and that power.

    A division without rounding, so that what is summed of it is as it was, bit for bit, wherever
    the sums of x themselves stay in range. Left as they are, with 1: zeros, numbers that are not
    finite, and float16, whose range is too small to shift in. Shapes: any -> the same.
    """
    x = x.detach()
    largest = x.abs().amax().item() if x.numel() else 0.0
    if x.dtype == torch.float16 or not 0.0 < largest < math.inf:
        return x, 1.0
    exponent = max(-LARGEST_EXPONENT, min(math.frexp(largest)[1], LARGEST_EXPONENT))
    return x * math.ldexp(1.0, -exponent), math.ldexp(1.0, exponent)
