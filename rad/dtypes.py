"""Which dtype a computation runs in, and which one is kept."""

import torch

LOOP_DTYPES = (torch.float32, torch.float64)
"""What compiled loops calculate in; those that only move bits take shorter types, too."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which sums over values of that dtype run: float32 at least."""
    return dtype if dtype in LOOP_DTYPES else torch.promote_types(dtype, torch.float32)


def scale_dtype(dtype: torch.dtype) -> torch.dtype:
    """The type of a rounding grid (`rad.sketches.grid`) for values of that type: float32 for
    float16, or else the same."""
    return torch.float32 if dtype == torch.float16 else dtype
