"""The draws of `rad.sketches.random`, as sketches take them: by loops, on a GPU by kernels.

Arguments, results and errors are those of the functions of the same names there, which
run on other devices, under `torch.vmap` and under `torch.compile`. A layer's draws are
small, and a dozen torch operators for each would take as long as the layer's products.
Distinct integers, which need a sort, are left to torch on a GPU.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from rad import kernels
from rad.sketches import random

Keys = np.ndarray[Any, np.dtype[np.uint64]]


def in_loops(x: Tensor) -> bool:
    """Whether compiled loops can read a tensor: on the CPU, in none of torch's transforms."""
    return x.is_cpu and kernels.is_readable(x)


def host_keys(key: Tensor) -> Keys | None:
    """Keys (int64, any shape) as compiled loops take them: uint64, (n,); None where they cannot."""
    return key.numpy().view(np.uint64).reshape(-1) if in_loops(key) else None


def words(key: Tensor, rows: range, slots: int) -> Tensor:
    """`rad.sketches.random.words`."""
    if kernels.use_kernels(key):
        from rad.kernels import sampling

        return sampling.words(key, rows, slots)
    keys = host_keys(key)
    if keys is None:
        return random.words(key, rows, slots)
    from rad.sketches import compiled

    out = torch.empty(len(rows), slots, dtype=torch.int64)
    compiled.word_rows(keys, rows.start, out.numpy().view(np.uint64))
    return out


def integers(key: Tensor, rows: range, slots: int, high: int) -> Tensor:
    """`rad.sketches.random.integers`."""
    if kernels.use_kernels(key):
        from rad.kernels import sampling

        random.check_high(high)
        return sampling.integers(key, rows, slots, high)
    keys = host_keys(key)
    if keys is None:
        return random.integers(key, rows, slots, high)
    from rad.sketches import compiled

    random.check_high(high)
    out = torch.empty(len(rows), slots, dtype=torch.int64)
    compiled.integer_rows(keys, rows.start, high, out.numpy())
    return out


def distinct_integers(key: Tensor, rows: range, count: int, high: int) -> Tensor:
    """`rad.sketches.random.distinct_integers`."""
    keys = host_keys(key)
    if keys is None:
        return random.distinct_integers(key, rows, count, high)
    from rad.sketches import compiled

    random.check_count(count, high)
    out = torch.empty(len(rows), count, dtype=torch.int64)
    compiled.distinct_integer_rows(keys, rows.start, high, out.numpy())
    return out


def signs(key: Tensor, rows: range, slots: int, dtype: torch.dtype) -> Tensor:
    """`rad.sketches.random.signs`."""
    if kernels.use_kernels(key):
        from rad.kernels import sampling

        return sampling.signs(key, rows, slots, dtype)
    keys = host_keys(key)
    if keys is None:
        return random.signs(key, rows, slots, dtype)
    from rad.sketches import compiled

    wide = torch.promote_types(dtype, torch.float32)
    out = torch.empty(len(rows), slots, dtype=wide)
    compiled.sign_rows(keys, rows.start, out.numpy())
    return out.to(dtype)
