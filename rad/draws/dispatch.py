"""The draws of `rad.draws.reference`, as sketches take them: by loops, on a GPU by kernels.

Arguments, results and errors are those of the functions of the same names there, which
run on other devices, under `torch.vmap` and under `torch.compile`. A layer's draws are
small, and a dozen torch operators for each would take as long as the layer's products.
Distinct integers, which need a sort, are left to torch on a GPU.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rad import backends
from rad.draws import reference


def fold_in(key: Tensor, i: int | Tensor) -> Tensor:
    """`rad.draws.reference.fold_in`: of one key on the CPU without torch's operators."""
    words = None if key.dim() else backends.host_keys(key)
    if isinstance(i, Tensor) or words is None:
        return reference.fold_in(key, i)
    folded = reference.mixed(int(words[0]) + (i + 1) * reference.FOLD)
    return torch.full((), reference.signed(folded), dtype=torch.int64, device="cpu")


def step_keys(key: Tensor, steps: int, first: int = 0) -> Tensor:
    """`rad.draws.reference.step_keys`."""
    keys = backends.host_keys(key)
    if keys is None:
        return reference.step_keys(key, steps, first)
    from rad.draws import loops

    out = torch.empty(steps, dtype=torch.int64)
    loops.step_key_rows(keys, first, out.numpy().view(np.uint64))
    return out


def row_keys(keys: Tensor, rows: int) -> Tensor:
    """`rad.draws.reference.row_keys`."""
    words = backends.host_keys(keys)
    if words is None:
        return reference.row_keys(keys, rows)
    from rad.draws import loops

    out = torch.empty(len(words) * rows, dtype=torch.int64)
    loops.row_key_rows(words, rows, out.numpy().view(np.uint64))
    return out


def words(key: Tensor, rows: range, slots: int) -> Tensor:
    """`rad.draws.reference.words`."""
    if backends.use_kernels(key):
        from rad.draws import kernels

        return kernels.words(key, rows, slots)
    keys = backends.host_keys(key)
    if keys is None:
        return reference.words(key, rows, slots)
    from rad.draws import loops

    out = torch.empty(len(rows), slots, dtype=torch.int64)
    loops.word_rows(keys, rows.start, out.numpy().view(np.uint64))
    return out


def integers(key: Tensor, rows: range, slots: int, high: int) -> Tensor:
    """`rad.draws.reference.integers`."""
    if backends.use_kernels(key):
        from rad.draws import kernels

        reference.check_high(high)
        return kernels.integers(key, rows, slots, high)
    keys = backends.host_keys(key)
    if keys is None:
        return reference.integers(key, rows, slots, high)
    from rad.draws import loops

    reference.check_high(high)
    out = torch.empty(len(rows), slots, dtype=torch.int64)
    loops.integer_rows(keys, rows.start, high, out.numpy())
    return out


def distinct_integers(key: Tensor, rows: range, count: int, high: int) -> Tensor:
    """`rad.draws.reference.distinct_integers`."""
    keys = backends.host_keys(key)
    if keys is None:
        return reference.distinct_integers(key, rows, count, high)
    from rad.draws import loops

    reference.check_count(count, high)
    out = torch.empty(len(rows), count, dtype=torch.int64)
    loops.distinct_integer_rows(keys, rows.start, high, out.numpy())
    return out


def signs(key: Tensor, rows: range, slots: int, dtype: torch.dtype) -> Tensor:
    """`rad.draws.reference.signs`."""
    if backends.use_kernels(key):
        from rad.draws import kernels

        return kernels.signs(key, rows, slots, dtype)
    keys = backends.host_keys(key)
    if keys is None:
        return reference.signs(key, rows, slots, dtype)
    from rad.draws import loops

    wide = torch.promote_types(dtype, torch.float32)
    out = torch.empty(len(rows), slots, dtype=wide)
    loops.sign_rows(keys, rows.start, out.numpy())
    return out.to(dtype)
